"""selective_scan: h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t, y_t = (h_t C_t + D x_t) silu(z_t)."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from carrel.ops import linear_scan, selective_scan

BACKENDS = ["reference", "cpu"]
REAL = torch.float64


def problem(batch=2, length=7, channels=6, state=3, groups=None, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    shared = (batch, length, state) if groups is None else (batch, length, groups, state)
    tensors = {
        "x": torch.randn(batch, length, channels, dtype=REAL),
        "delta": torch.randn(batch, length, channels, dtype=REAL) - 1,
        "A": -torch.randn(channels, state, dtype=REAL).exp(),
        "B": torch.randn(shared, dtype=REAL),
        "C": torch.randn(shared, dtype=REAL),
        "D": torch.randn(channels, dtype=REAL),
        "z": torch.randn(batch, length, channels, dtype=REAL),
        "h0": torch.randn(batch, channels, state, dtype=REAL),
        "delta_bias": torch.randn(channels, dtype=REAL),
    }
    return {name: t.to(dtype) for name, t in tensors.items()}


def written_out(x, delta, A, B, C, D=None, z=None, h0=None, delta_bias=None, delta_softplus=True):
    """Number by number, in numpy and from the equations alone."""
    x, delta, A, B, C = (t.double().numpy() for t in (x, delta, A, B, C))
    batch, length, channels = x.shape
    state = A.shape[1]
    B, C = (v if v.ndim == 4 else v[:, :, None] for v in (B, C))
    h = np.zeros((batch, channels, state)) if h0 is None else h0.double().numpy().copy()
    y = np.zeros_like(x)
    for i in range(batch):
        for t in range(length):
            for c in range(channels):
                group = c // (channels // B.shape[2])
                step = delta[i, t, c] + (0 if delta_bias is None else float(delta_bias[c]))
                step = np.logaddexp(0, step) if delta_softplus else step
                for n in range(state):
                    kept = np.exp(step * A[c, n]) * h[i, c, n]
                    h[i, c, n] = kept + step * B[i, t, group, n] * x[i, t, c]
                    y[i, t, c] += C[i, t, group, n] * h[i, c, n]
                y[i, t, c] += 0 if D is None else float(D[c]) * x[i, t, c]
                if z is not None:
                    gate = float(z[i, t, c])
                    y[i, t, c] *= gate / (1 + np.exp(-gate))
    return torch.from_numpy(y), torch.from_numpy(h)


def close(got, wanted, atol=1e-10):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 7, 6, 3, None), (2, 1, 1, 1, None), (1, 9, 6, 16, 2), (2, 5, 4, 2, 4)])
def test_every_number_is_that_of_the_equations(backend, shape):
    p = problem(*shape)
    close(selective_scan(**p, backend=backend), written_out(**p), atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absent", ["D", "z", "h0", "delta_bias"])
def test_what_is_left_out_is_not_there(backend, absent):
    p = problem() | {absent: None}
    close(selective_scan(**p, backend=backend), written_out(**p), atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_softplus_delta_is_the_step_itself(backend):
    p = problem()
    p["delta"], p["delta_bias"] = p["delta"].abs(), p["delta_bias"].abs()
    close(selective_scan(**p, delta_softplus=False, backend=backend), written_out(**p, delta_softplus=False), 1e-12)


@pytest.mark.parametrize("shape", [(2, 130, 6, 3, None), (1, 70, 130, 16, None), (2, 40, 260, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, REAL])
def test_the_kernel_equals_the_reference_over_many_blocks_and_chunks(shape, dtype):
    p = problem(*shape, dtype=dtype)
    got, wanted = selective_scan(**p, backend="cpu"), selective_scan(**p, backend="reference")
    for x, y in zip(got, wanted, strict=True):
        bound = 1e-10 if dtype == REAL else 2e-6 * float(y.abs().max())
        torch.testing.assert_close(x, y, atol=bound, rtol=0)


def test_the_kernel_is_the_composition_with_linear_scan():
    p = problem(2, 50, 6, 4)
    step = functional.softplus(p["delta"] + p["delta_bias"]).unsqueeze(-1)
    h, last = linear_scan(torch.exp(step * p["A"]), step * p["x"].unsqueeze(-1) * p["B"].unsqueeze(2), p["h0"])
    y = ((h * p["C"].unsqueeze(2)).sum(-1) + p["D"] * p["x"]) * functional.silu(p["z"])
    close(selective_scan(**p, backend="cpu"), (y, last))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_zero_leaves_the_state_alone(backend):
    p = problem()
    p["delta"][:] = -1000
    assert torch.equal(selective_scan(**p, backend=backend)[1], p["h0"])
    p["delta"][:] = -p["delta_bias"]
    assert torch.equal(selective_scan(**p, delta_softplus=False, backend=backend)[1], p["h0"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, REAL])
def test_an_endless_step_forgets_all_that_was_before(backend, dtype):
    """exp(Δ A) is then exactly 0 and h_t = Δ B_t x_t, which grows with Δ."""
    p = problem(length=2, dtype=dtype) | {"delta_bias": None}
    p["delta"][:, 1] = 1e6
    _, last = selective_scan(**p, backend=backend)
    wanted = 1e6 * p["x"][:, 1].unsqueeze(-1) * p["B"][:, 1].unsqueeze(1)
    torch.testing.assert_close(last, wanted, atol=0, rtol=1e-6)
    _, fresh = selective_scan(**(p | {"h0": 100 * p["h0"]}), backend=backend)
    assert torch.equal(last, fresh)


def test_constants_make_it_a_real_diagonal_state_space_with_eulers_rule_for_the_input():
    """y is a convolution with K_l = Σ_n C_n exp(l Δ A_n) Δ B_n."""
    p = problem(1, 30, 4, 3)
    step, B, C = torch.rand(4, dtype=REAL), torch.randn(3, dtype=REAL), torch.randn(3, dtype=REAL)
    powers = torch.exp(torch.arange(30)[:, None, None] * step[:, None] * p["A"])
    kernel = (powers * (C * B) * step[:, None]).sum(-1)
    wanted = torch.stack([(kernel[: t + 1].flip(0) * p["x"][0, : t + 1]).sum(0) for t in range(30)])
    y, _ = selective_scan(
        p["x"], step.expand(1, 30, 4), p["A"], B.expand(1, 30, 3), C.expand(1, 30, 3), delta_softplus=False
    )
    torch.testing.assert_close(y[0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [[0], [1], [33], [31, 32, 64], [70], [5, 5]])
def test_pieces_are_the_whole_bit_for_bit_in_the_kernel(backend, cuts):
    """torch's own softplus, in the reference, differs in the last bit with a number's place in memory."""
    p = problem(2, 70, 6, 3)
    whole = selective_scan(**p, backend=backend)
    outputs, h = [], p["h0"]
    for a, b in zip([0, *cuts], [*cuts, 70], strict=True):
        piece = {name: t[:, a:b] if name in ("x", "delta", "B", "C", "z") else t for name, t in p.items()}
        y, h = selective_scan(**(piece | {"h0": h}), backend=backend)
        outputs.append(y)
    close((torch.cat(outputs, 1), h), whole, atol=0 if backend == "cpu" else 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 0, 6, 3), (0, 4, 6, 3), (2, 4, 0, 3)])
def test_empty_axes_give_empty_outputs_and_the_state_that_came(backend, shape):
    p = {name: t.requires_grad_() for name, t in problem(*shape).items()}
    y, last = selective_scan(**p, backend=backend)
    assert y.shape == shape[:3]
    torch.testing.assert_close(last, p["h0"], atol=0, rtol=0)
    (y.sum() + last.sum()).backward()
    torch.testing.assert_close(p["h0"].grad, torch.ones_like(p["h0"]), atol=0, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_added_on_the_right_change_nothing_before_them(backend):
    p, longer = problem(2, 40), problem(2, 60, seed=1)
    for name in ("x", "delta", "B", "C", "z"):
        longer[name][:, :40] = p[name]
    same = {name: p[name] for name in ("A", "D", "h0", "delta_bias")}
    y = selective_scan(**p, backend=backend)[0]
    close([selective_scan(**(longer | same), backend=backend)[0][:, :40]], [y], atol=0 if backend == "cpu" else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_widened_and_the_result_rounded_once(dtype, backend):
    p = problem(2, 50)
    rounded = {name: t.to(dtype) if name in ("x", "delta", "B", "C", "z") else t.float() for name, t in p.items()}
    y, last = selective_scan(**rounded, backend=backend)
    wide, wide_last = selective_scan(**{name: t.float() for name, t in rounded.items()}, backend=backend)
    assert last.dtype == torch.float32
    assert torch.equal(last, wide_last)
    assert torch.equal(y, wide.to(dtype))


def test_strided_and_expanded_inputs_are_read_rightly():
    p = problem()
    crooked = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in p.items()}
    crooked["B"] = p["B"][:, :1].expand_as(p["B"])
    wanted = selective_scan(**(p | {"B": crooked["B"].contiguous()}), backend="cpu")
    close(selective_scan(**crooked, backend="cpu"), wanted, atol=0)


def test_the_number_of_threads_changes_no_bit():
    p = {name: t.requires_grad_() for name, t in problem(2, 130, 200, 16).items()}
    seen, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, last = selective_scan(**p, backend="cpu")
            seen.append([y, last, *torch.autograd.grad(y.sum() + last.sum(), list(p.values()))])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


_PEAK = """
import resource, torch
from carrel.ops import selective_scan
torch.set_num_threads(1)
def run(length):
    x = torch.randn(1, length, 128).requires_grad_()
    B = torch.randn(1, length, 64).requires_grad_()
    A = -torch.ones(128, 64).requires_grad_()
    selective_scan(x, x, A, B, B, z=x)[0].sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = run(8)
print(run(4096) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_nothing_of_the_size_of_all_states_is_ever_held():
    """(batch, length, channels, state) is 128 MiB here; x is 2, and forward and backward hold some twenty like it."""
    result = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 64


def test_the_vector_exponentials_are_as_exact_as_their_types():
    from numba import njit

    from carrel.ops._vector_math import exp2, log1p_unit

    @njit
    def over(x, power, log):
        for i in range(x.size):
            power[i], log[i] = exp2(x[i]), log1p_unit(-x[i] / 2000)

    for dtype, lowest in ((np.float32, -126), (np.float64, -1022)):
        x = np.concatenate([np.linspace(-2000, 0, 100_001), -np.logspace(-12, 0, 1000)]).astype(dtype)
        power, log = np.empty_like(x), np.empty_like(x)
        over(x, power, log)
        normal, eps = x >= lowest, np.finfo(dtype).eps
        exact = np.exp2(x[normal].astype(np.longdouble))
        assert np.abs(power[normal] / exact - 1).max() < 2 * eps
        assert (power[x < lowest - 1] == 0).all()
        assert power[x == 0].min() == 1
        small = -x.astype(np.longdouble) / 2000
        within = small > 0
        assert np.abs(log[within] / np.log1p(small[within]) - 1).max() < 4 * eps


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(2, 7)}, "x must be (batch, length, channels), got shape (2, 7)"),
        ({"x": None}, "x must be a tensor, got NoneType"),
        ({"x": torch.zeros(2, 7, 6, dtype=torch.int64)}, "x must be real floating point, got torch.int64"),
        ({"B": torch.zeros(2, 7, 3) + 0j}, "B must be real floating point, got torch.complex64"),
        ({"delta": torch.zeros(2, 7, 1)}, "delta must have shape (2, 7, 6), got (2, 7, 1)"),
        ({"A": -torch.ones(3, 6)}, "A must be (channels, state) = (6, 1 or more), got (3, 6)"),
        ({"A": -torch.ones(6, 0)}, "A must be (channels, state) = (6, 1 or more), got (6, 0)"),
        ({"B": torch.zeros(2, 7, 4)}, "B must be (batch, length, state) = (2, 7, 3)"),
        ({"C": torch.zeros(2, 7, 4)}, "C must have shape (2, 7, 3), got (2, 7, 4)"),
        ({"B": torch.zeros(2, 7, 4, 3)}, "the 4 groups of B must divide the 6 channels"),
        ({"D": torch.zeros(3)}, "D must have shape (6,), got (3,)"),
        ({"z": torch.zeros(2, 6, 7)}, "z must have shape (2, 7, 6), got (2, 6, 7)"),
        ({"h0": torch.zeros(2, 3, 6)}, "h0 must have shape (2, 6, 3), got (2, 3, 6)"),
        ({"delta_bias": torch.zeros(1)}, "delta_bias must have shape (6,), got (1,)"),
        ({"D": torch.zeros(6, device="meta")}, "D is on meta, not on one device with x"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    with pytest.raises(ValueError, match=re.escape(f"selective_scan: {sentence}")):
        selective_scan(**(problem() | change))


@pytest.mark.parametrize("backend", BACKENDS)
def test_growth_and_steps_back_in_time_are_refused(backend):
    p = problem()
    p["A"][3, 1] = 0
    with pytest.raises(ValueError, match="A must be negative everywhere, its largest entry is 0"):
        selective_scan(**p, backend=backend)
    p = problem() | {"delta_bias": None}
    p["delta"] = p["delta"].abs()
    p["delta"][1, 4, 2] = -0.5
    with pytest.raises(
        ValueError, match=re.escape("every step delta + delta_bias must be at least 0, the least is -0.5")
    ):
        selective_scan(**p, delta_softplus=False, backend=backend)


def test_a_backend_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        selective_scan(**problem(), backend="numba")
