"""deer: y_t = f(y_{t-1}, x_t) for all t, by y_t = F_t + J_t (y_{t-1} - y_{t-1} of the iterate before)."""

from __future__ import annotations

import logging
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from carrel.recurrent import GRU, LSTM, DeerDivergenceError, TanhRNN, deer
from carrel.recurrent.newton import Recurrence


def loop(cell, x, y0):
    y, found = y0, []
    for t in range(x.shape[1]):
        y = cell(y, x[:, t])
        found.append(y)
    return torch.stack(found, 1)


def problem(cell, batch=3, length=150, seed=0):
    torch.manual_seed(seed)
    cell = cell.double()
    x = torch.randn(batch, length, cell.input_dim, dtype=torch.float64)
    return cell, x, torch.randn(batch, cell.state_dim, dtype=torch.float64)


class OwnCell(nn.Module):
    """A cell that knows nothing of Jacobians: a leaky unit with a product of state and input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.input_dim, self.state_dim = 2, 3
        self.W = nn.Parameter(torch.randn(3, 3) * 0.4)
        self.V = nn.Parameter(torch.randn(3, 2))

    def forward(self, y, x):
        return 0.7 * torch.sin(y @ self.W.T + x @ self.V.T) + 0.1 * y * x.sum(1, keepdim=True).tanh()


class WithJacobian(OwnCell):
    def forward_with_jacobian(self, y, x):
        inner = torch.cos(y @ self.W.T + x @ self.V.T)
        J = 0.7 * inner.unsqueeze(-1) * self.W + torch.diag_embed(0.1 * x.sum(1, keepdim=True).tanh().expand_as(y))
        return self(y, x), J


class WithoutKernel(GRU):
    """The same cell on the path that TanhRNN and LSTM take."""

    def newton(self, u, y0):
        return None


CELLS = {
    "tanh": lambda: TanhRNN(2, 4),
    "gru": lambda: GRU(2, 4),
    "gru in torch": lambda: WithoutKernel(2, 4),
    "lstm": lambda: LSTM(2, 3),
    "user": OwnCell,
    "user with Jacobian": WithJacobian,
}


@pytest.fixture(params=CELLS, ids=lambda name: name.replace(" ", "-"))
def cell(request):
    torch.manual_seed(1)
    return CELLS[request.param]()


@pytest.mark.parametrize("jac", ["full", "diag", "auto"])
def test_states_are_those_of_the_loop(cell, jac):
    cell, x, y0 = problem(cell)
    with torch.no_grad():
        y, info = deer(cell, x, y0, jac=jac)
    torch.testing.assert_close(y, loop(cell, x, y0).detach(), atol=1e-10, rtol=0)
    assert info.converged
    assert not info.fell_back
    assert info.method == ("diag" if jac == "diag" else "full")
    assert info.residual < 1e-9
    assert info.iterations == len(info.updates) < 60


@pytest.mark.parametrize("jac", ["full", "diag"])
def test_gradients_are_those_of_backpropagation_through_time(cell, jac):
    cell, x, y0 = problem(cell)
    leaves = (x.requires_grad_(), y0.requires_grad_(), *cell.parameters())
    arrived = torch.randn(*x.shape[:2], cell.state_dim, dtype=torch.float64)
    got = torch.autograd.grad(deer(cell, x, y0, jac=jac)[0], leaves, arrived)
    wanted = torch.autograd.grad(loop(cell, x, y0), leaves, arrived)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def test_gradcheck_by_finite_differences():
    cell, x, y0 = problem(LSTM(1, 1), batch=2, length=4)
    names = [name for name, _ in cell.named_parameters()]

    def run(x, y0, *values):
        return deer(cell, x, y0, dict(zip(names, values, strict=True)), tol=1e-13)[0]

    inputs = [v.detach().requires_grad_() for v in (x, y0, *cell.parameters())]
    assert torch.autograd.gradcheck(run, inputs)


def test_gradients_reach_what_a_function_closes_over_and_its_parameters():
    torch.manual_seed(0)
    x, y0 = torch.randn(2, 40, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    W = (torch.randn(3, 3, dtype=torch.float64) * 0.3).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    wanted = torch.autograd.grad(loop(lambda y, x: scale * torch.tanh(y @ W + x), x, y0).sum(), (W, scale))
    closed, _ = deer(lambda y, x: scale * torch.tanh(y @ W + x), x, y0)
    given, _ = deer(lambda y, x, p: p["scale"] * torch.tanh(y @ p["W"] + x), x, y0, {"W": W, "scale": scale})
    for y in (closed, given):
        for got, right in zip(torch.autograd.grad(y.sum(), (W, scale)), wanted, strict=True):
            torch.testing.assert_close(got, right, atol=1e-8, rtol=0)


@pytest.mark.parametrize("make", [TanhRNN, GRU])
def test_derivatives_of_gradients_are_refused(make):
    cell, x, y0 = problem(make(2, 2), length=10)
    y, _ = deer(cell, x.requires_grad_(), y0)
    with pytest.raises(RuntimeError, match="gradients can be taken once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


# ------------------------------------------------------------------------------------------------------- convergence


@pytest.mark.parametrize("jac", ["full", "diag"])
def test_a_linear_cell_takes_one_iteration_and_one_that_finds_nothing_to_do(jac):
    x = torch.randn(2, 300, 3, dtype=torch.float64)
    rates = torch.tensor([0.9, -0.5, 0.1], dtype=torch.float64)
    y, info = deer(lambda y, x: rates * y + x, x, torch.ones(2, 3, dtype=torch.float64), jac=jac)
    assert info.iterations == {"full": 2, "diag": 3}[jac]  # with the diagonal, a full step confirms
    torch.testing.assert_close(y, loop(lambda y, x: rates * y + x, x, torch.ones(2, 3).double()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("diagonal", [False, True])
def test_after_k_iterations_the_first_k_states_are_exact(cell, diagonal):
    cell, x, y0 = problem(cell, length=12)
    with torch.no_grad():
        wanted = loop(cell, x, y0)
        sweeps = Recurrence(cell, x, y0, None).newton(5 * torch.randn_like(wanted))
        for k in range(1, 6):
            sweeps.sweep(diagonal)
            torch.testing.assert_close(sweeps.y[:, :k], wanted[:, :k], atol=1e-13, rtol=0)


def test_the_full_jacobian_squares_the_error_and_the_diagonal_divides_it():
    cell, x, y0 = problem(GRU(4, 4))
    errors = {}
    with torch.no_grad():
        wanted = loop(cell, x, y0)
        for diagonal in (False, True):
            sweeps = Recurrence(cell, x, y0, None).newton(torch.zeros_like(wanted))
            found = []
            for _ in range(4):
                sweeps.sweep(diagonal)
                found.append(float((sweeps.y - wanted).abs().max()))
            errors[diagonal] = found
    full, diagonal = errors[False], errors[True]
    assert all(later < 2 * earlier**2 for earlier, later in pairwise(full) if later > 1e-14)
    assert full[3] < 1e-10 < 1e-6 < diagonal[3]
    assert all(0.01 < later / earlier < 0.9 for earlier, later in pairwise(diagonal))


def test_iterations_do_not_grow_with_length_nor_depend_on_the_order_of_the_batch():
    cell, x, y0 = problem(GRU(3, 3), batch=5, length=2000)
    counts = [deer(cell, x[:, :n], y0)[1].iterations for n in (20, 200, 2000)]
    assert max(counts) <= 6
    order = torch.tensor([4, 2, 0, 1, 3])
    (y, info), (z, other) = deer(cell, x, y0), deer(cell, x[order], y0[order])
    assert info.iterations == other.iterations
    torch.testing.assert_close(z, y[order], atol=1e-14, rtol=0)


def test_a_good_guess_saves_iterations():
    cell, x, y0 = problem(GRU(3, 3))
    y, info = deer(cell, x, y0)
    again, fewer = deer(cell, x, y0, init=y)
    assert fewer.iterations == 1 < info.iterations
    torch.testing.assert_close(again, y, atol=1e-13, rtol=0)


def test_pieces_of_the_jacobian_give_the_same(monkeypatch):
    from carrel.recurrent import newton

    cell, x, y0 = problem(LSTM(2, 2), length=40)
    leaves = (x.requires_grad_(), y0, *cell.parameters())
    y, info = deer(cell, x, y0)
    gradients = torch.autograd.grad(y.sum(), (x, *leaves[2:]))
    monkeypatch.setattr(newton, "_PIECE", 3 * 4 * 4 * 7)  # seven tokens
    again, same = deer(cell, x, y0)
    assert info.iterations == same.iterations
    torch.testing.assert_close(again, y, atol=1e-13, rtol=0)
    for one, other in zip(torch.autograd.grad(again.sum(), (x, *leaves[2:])), gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_float32_is_as_near_to_float64_as_its_rounding():
    torch.manual_seed(0)
    cell = GRU(4, 4)
    x, y0 = torch.randn(4, 1000, 4), torch.zeros(4, 4)
    for jac in ("full", "diag"):
        y, info = deer(cell.float(), x, y0, jac=jac)
        wanted = loop(cell.double(), x.double(), y0.double())
        assert (y - wanted).abs().max() < 2e-6
        assert info.iterations <= (6 if jac == "full" else 14)


# ----------------------------------------------------------------------------------------------- damping and failures


@pytest.mark.parametrize("smoother", [True, False])
@pytest.mark.parametrize("jac", ["full", "diag"])
def test_damping_gives_the_same_states_more_slowly(jac, smoother):
    cell, x, y0 = problem(TanhRNN(2, 3))
    y, plain = deer(cell, x, y0, jac=jac)
    z, damped = deer(cell, x, y0, jac=jac, damping=0.1, smoother=smoother)
    torch.testing.assert_close(z, y, atol=1e-10, rtol=0)
    assert damped.converged
    assert damped.damping == 0.1
    assert damped.iterations > plain.iterations


def chaotic(batch=2, length=300):
    torch.manual_seed(0)
    cell = TanhRNN(16, 16)
    with torch.no_grad():
        cell.weight_hh.normal_(std=3 / 4)  # gain 3: three over the root of the width
    return cell, torch.randn(batch, length, 16) * 0.1, torch.zeros(batch, 16)


def test_a_chaotic_cell_takes_the_sequential_loop_and_says_so(caplog):
    cell, x, y0 = chaotic()
    with caplog.at_level(logging.WARNING, logger="carrel.recurrent.deer"):
        y, info = deer(cell, x, y0, max_iter=30)
    assert info.fell_back
    assert not info.converged
    (record,) = caplog.records
    assert "the sequential loop takes over" in record.getMessage()
    assert re.search(r"the product of the Jacobians \|J\| grows by 10\^\d\d", record.getMessage())
    of = Recurrence(cell, x, y0, None)
    with torch.no_grad():
        torch.testing.assert_close(y, of.sequential(), atol=0, rtol=0)
    y.sum().backward()
    assert cell.weight_hh.grad is not None


def test_or_it_raises_and_tells_how_far_it_came():
    cell, x, y0 = chaotic()
    with pytest.raises(DeerDivergenceError, match="chaotic or unstable") as caught:
        deer(cell, x, y0, max_iter=20, on_fail="raise")
    assert 20 <= caught.value.iterations <= 80
    assert caught.value.residual > 0


def test_a_cell_that_fails_without_growth_is_not_called_chaotic():
    cell, x, y0 = problem(TanhRNN(2, 2))
    _, info = deer(cell, x, y0, jac="diag", max_iter=2)
    assert info.fell_back
    assert "updates were still" in info.reason
    assert "chaotic" not in info.reason


def test_a_wrong_jacobian_is_never_silently_wrong():
    class Liar(WithJacobian):
        def forward_with_jacobian(self, y, x):
            f, J = super().forward_with_jacobian(y, x)
            return f + 0.01, J  # another function than forward

    cell, x, y0 = problem(Liar())
    y, info = deer(cell, x, y0)
    assert info.fell_back
    assert "residual" in info.reason
    torch.testing.assert_close(y, loop(cell, x, y0), atol=1e-12, rtol=0)


def test_inputs_that_are_not_numbers_end_in_the_loop():
    for cell in (GRU(2, 3), LSTM(2, 3)):
        cell, x, y0 = problem(cell)
        x[1, 20] = float("nan")
        y, info = deer(cell, x, y0)
        assert info.fell_back
        assert not y[1, 20:].isfinite().any() or cell.state_dim == 6
        torch.testing.assert_close(y, loop(cell, x, y0), atol=1e-13, rtol=0, equal_nan=True)


@pytest.mark.parametrize("length", [0, 1])
def test_no_token_and_one_token(length):
    cell, x, y0 = problem(GRU(2, 3), length=length)
    y, _ = deer(cell, x, y0)
    assert y.shape == (3, length, 3)
    if length:
        torch.testing.assert_close(y, loop(cell, x, y0), atol=1e-14, rtol=0)


# ---------------------------------------------------------------------------------------------------------- bad input

X, Y0 = torch.zeros(2, 5, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("x", "y0", "options", "sentence"),
    [
        (X[0], Y0, {}, "x must be (batch, length, input) and y0 (batch, state), got (5, 3) and (2, 4)"),
        (X, Y0[:1], {}, "got (2, 5, 3) and (1, 4)"),
        (X, None, {}, "y0 must be a tensor, got NoneType"),
        (X, Y0 + 0j, {}, "complex states have no Jacobian"),
        (X, Y0.double(), {}, "both be float32 or both float64, got torch.float32 and torch.float64"),
        (X.half(), Y0.half(), {}, "both be float32 or both float64, got torch.float16"),
        (X, Y0, {"jac": "lower"}, "jac must be auto, full or diag, got 'lower'"),
        (X, Y0, {"on_fail": "hope"}, "on_fail must be sequential or raise, got 'hope'"),
        (X, Y0, {"tol": 0.0}, "tol must be above 0, got 0.0"),
        (X, Y0, {"max_iter": 0}, "max_iter must be at least 1"),
        (X, Y0, {"damping": -1.0}, "damping finite and not negative, got 100 and -1.0"),
        (X, Y0, {"init": torch.zeros(2, 5, 3)}, "init must be torch.float32 of shape (2, 5, 4)"),
        (X, Y0, {"params": [1]}, "params of a module must map names to tensors"),
    ],
)
def test_bad_input_is_named(x, y0, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        deer(GRU(3, 4), x, y0, **options)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (lambda y, x: x, "states like those it is given, torch.float32 of shape (10, 4), not torch.float32 of shape"),
        (lambda y, x: (y, x), "not tuple"),
        (lambda y, x: nn.functional.dropout(y + 1, 0.5), "the cell draws random numbers"),
        (lambda y, x: y + x.sum(), "must treat every row by itself"),
    ],
)
def test_cells_that_cannot_be_solved_are_refused(cell, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        deer(cell, torch.randn(2, 5, 3), Y0)


def test_dropout_is_refused_in_training_only():
    cell = nn.Sequential(nn.Dropout(0.5))
    cell.forward = lambda y, x: 0.5 * nn.functional.dropout(y, 0.5, cell.training) + x
    x = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match="put dropout into evaluation mode"):
        deer(cell, x, Y0)
    assert deer(cell.eval(), x, Y0)[1].converged
