"""S4: x' = (Λ - p p^H) x + b u by the bilinear rule, y = 2 Re sum_n C_n x_n + D u."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.recurrent import S4, S4State, discretize, hippo_matrices, legs_normal_part
from carrel.testing import check_streaming


def small(dim=3, state_dim=6, length=80, seed=0, **kwargs):
    torch.manual_seed(seed)
    return S4(dim, state_dim, length, **kwargs).double()


@torch.no_grad()
def dense(layer):
    """Λ - p p^H and b over all pairs, discretised by matrices; C over all pairs."""
    whole = [torch.cat([x, x.conj()], -1) for x in (layer.rates(), *map(torch.view_as_complex, (layer.P, layer.B)))]
    systems = []
    for rates, p, b, log_dt in zip(*whole, layer.log_dt, strict=True):
        systems.append(discretize(torch.diag(rates) - torch.outer(p, p.conj()), b, float(log_dt.exp())))
    C = layer._output()
    return systems, torch.cat([C, C.conj()], -1)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 80, 81, 200])
def test_output_is_the_dense_recurrence_written_out(length):
    """Shorter than the kernel, as long, and longer, where a second piece continues the state of the first."""
    layer = small()
    systems, C = dense(layer)
    u = torch.randn(2, length, 3, dtype=torch.float64)
    rows = []
    for channel, (A, B) in enumerate(systems):
        x, y = torch.zeros(2, 6, dtype=torch.complex128), []
        for t in range(length):
            x = x @ A.T + u[:, t, channel : channel + 1] * B
            y.append((x @ C[channel]).real + layer.D[channel] * u[:, t, channel])
        rows.append(torch.stack(y, 1))
    torch.testing.assert_close(layer(u)[0], torch.stack(rows, -1), atol=1e-9, rtol=0)


@torch.no_grad()
def test_it_starts_as_legs():
    """Λ, p and b are LegS in another basis, and the kernel is c A^l B with LegS discretised by the bilinear rule."""
    torch.manual_seed(0)
    layer = S4(2, 16, 300).double()
    V = legs_normal_part(16).vectors
    A, B = hippo_matrices("legs", 16)
    for channel in range(2):
        Ab, Bb = discretize(A, B, float(layer.log_dt[channel].exp()))
        c = 2 * (layer._output()[channel] @ V.mH).real
        x, K = Bb, []
        for _ in range(300):
            K.append(c @ x)
            x = Ab @ x
        wanted = torch.stack(K)
        torch.testing.assert_close(layer.kernel()[channel], wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


def test_output_weights_start_with_variance_one_each():
    torch.manual_seed(0)
    C = S4(400, 8, 50).double()._output()
    assert abs(C.real.var() - 0.5) < 0.05
    assert abs(C.imag.var() - 0.5) < 0.05
    assert abs(C.mean()) < 0.05


def test_the_o_n_step_is_the_dense_one():
    layer = small()
    system = layer._system(torch.float64)
    x, u = torch.randn(2, 3, 3, dtype=torch.complex128), torch.randn(2, 3, 1, dtype=torch.float64)
    systems, _ = dense(layer)
    got = system.step(x, u)
    for channel, (A, B) in enumerate(systems):
        both = torch.cat([x[:, channel], x[:, channel].conj()], -1) @ A.T + u[:, channel] * B
        torch.testing.assert_close(got[:, channel], both[:, :3], atol=1e-12, rtol=0)


def test_recovered_output_weights_are_kept_until_a_parameter_changes():
    layer = small()
    with torch.no_grad():
        first = layer._output()
        assert layer._output() is first
        layer.C.mul_(2)
        torch.testing.assert_close(layer._output(), 2 * first, atol=1e-12, rtol=0)
        layer.log_dt.data = layer.log_dt.data + 0.1
        moved = layer._output()
        assert (moved - 2 * first).abs().max() > 1e-3
    assert layer._output() is not moved  # gradients are wanted
    assert layer._output().requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("length", [40, 300])
def test_streaming(length):
    check_streaming(S4(3, 4, length), 3)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 150), max_size=4).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(small(dim=2, state_dim=4, length=70), 2, cuts=cuts)


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    layer = small(dim=2, state_dim=4, length=5, dt_min=0.1, dt_max=0.5)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == {"log_dt", "A_log", "A_imag", "P", "B", "C", "D"}

    def run(x, h, *values):
        y, state = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, S4State(h)))
        return y, state.x

    def without_state(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    h = torch.randn(2, 2, 2, dtype=torch.complex128, requires_grad=True)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h, *layer.parameters()))
    assert torch.autograd.gradcheck(without_state, (x, *layer.parameters()))


def test_layer_compiles_as_one_graph():
    torch.compiler.reset()
    layer = small().float()
    x = torch.randn(2, 70, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (layer, compiled):
        layer.zero_grad()
        y, after = call(x, S4State(torch.ones(2, 3, 3, dtype=torch.complex64)))
        (y.square().sum() + after.x.abs().sum()).backward()
        results.append([y, after.x, *(p.grad.clone() for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3 * one.abs().max().item(), rtol=0)


def test_half_precision_keeps_the_recurrence_in_float32():
    layer = small().float()
    x = torch.randn(2, 70, 3)
    y, state = layer.to(torch.bfloat16)(x.bfloat16())
    assert (y.dtype, state.x.dtype) == (torch.bfloat16, torch.complex64)


def test_layer_names_the_parameters_that_weight_decay_would_harm():
    layer = small()
    assert layer.no_weight_decay <= dict(layer.named_parameters()).keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "S4 wants dim of at least 1"),
        ({"dim": 2, "state_dim": 7}, "even state_dim of at least 2"),
        ({"dim": 2, "length": 0}, "length of at least 1, not 0"),
        ({"dim": 2, "dt_min": 0.2}, "0 < dt_min < dt_max, not dt_min=0.2 and dt_max=0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        S4(**arguments)


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 3), None, "x of shape (batch, length, 3), not (2, 3)"),
        (torch.zeros(2, 5, 3) + 0j, None, "real x, not torch.complex64"),
        (torch.zeros(2, 5, 3), S4State(torch.zeros(2, 3, 3)), "complex state of shape (2, 3, 3), not torch.float32"),
        (torch.zeros(2, 5, 3), S4State(torch.zeros(1, 3, 3) + 0j), "not torch.complex64 of shape (1, 3, 3)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 3, 3) + 0j, "S4State or None as its state, not Tensor"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
