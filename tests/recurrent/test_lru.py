"""The Linear Recurrent Unit: λ = exp(-exp(ν) + i exp(θ)), h_t = λ h_{t-1} + γ B x_t, y_t = Re(C h_t) + D x_t."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.recurrent import LRU, LRUState
from carrel.testing import check_streaming


def small(dim=4, state_dim=3, seed=0, **ring):
    torch.manual_seed(seed)
    return LRU(dim, state_dim, **ring).double()


def parts(layer):
    """The paper's letters as complex matrices: λ, γ, B, C, D."""
    b = torch.complex(layer.B[:, 0], layer.B[:, 1])
    c = torch.complex(layer.C[..., 0], -layer.C[..., 1])
    return layer.eigenvalues(), layer.gamma_log.exp(), b, c, layer.D


def test_output_is_the_recurrence_written_out():
    layer = small(r_min=0.5, r_max=0.99)
    lam, gamma, b, c, d = parts(layer)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    h = torch.zeros(2, 3, dtype=torch.complex128)
    rows = []
    for t in range(7):
        h = lam * h + gamma * (x[:, t].to(b.dtype) @ b.T)
        rows.append((h @ c.T).real + d * x[:, t])
    y, state = layer(x)
    torch.testing.assert_close(y, torch.stack(rows, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(state.h, h, atol=1e-12, rtol=0)


def test_eigenvalue_is_exp_of_minus_exp_nu_plus_i_exp_theta():
    layer = small()
    wanted = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    torch.testing.assert_close(layer.eigenvalues(), wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.9, 0.999), (0.4, 0.6)])
def test_eigenvalues_start_uniform_over_the_ring(r_min, r_max):
    torch.manual_seed(1)
    squared = LRU(1, 40_000, r_min=r_min, r_max=r_max).double().eigenvalues().abs().square()
    spread = r_max**2 - r_min**2
    four_errors = 4 * spread / math.sqrt(12 * 40_000)
    assert r_min**2 - 1e-6 <= squared.min()
    assert squared.max() <= r_max**2 + 1e-6
    assert abs(squared.mean() - (r_min**2 + r_max**2) / 2) < four_errors
    assert abs(squared.var() - spread**2 / 12) < 0.02 * spread**2 / 12


def test_phases_start_uniform_up_to_max_phase():
    torch.manual_seed(1)
    phase = LRU(1, 40_000, max_phase=0.3).theta_log.exp()
    assert phase.max() <= 0.3 + 1e-6
    assert abs(phase.mean() - 0.15) < 4 * 0.3 / math.sqrt(12 * 40_000)


def test_modulus_stays_below_one_for_every_real_nu():
    layer = small()
    with torch.no_grad():
        layer.nu_log.copy_(torch.tensor([-30.0, 0.0, 5.0]))
    assert (layer.eigenvalues().abs() < 1).all()


def test_gamma_keeps_a_state_driven_by_white_noise_at_the_noises_variance():
    """E|h|² = γ² / (1 - |λ|²) E|u|²: 1 with γ² = 1 - |λ|²; without γ it would be 1 / (1 - |λ|²)."""
    torch.manual_seed(2)
    layer = LRU(1, 256, r_min=0.6, r_max=0.95).double()
    with torch.no_grad():
        layer.B[:] = torch.tensor([1.0, 0.0])[:, None]
        noise = torch.randn(64, 400, 1, dtype=torch.float64)
        power = layer(noise)[1].h.abs().square().mean(0)  # 400 tokens are 20 times the longest memory
        layer.gamma_log.zero_()
        bare = layer(noise)[1].h.abs().square().mean(0)
        expected = 1 / (1 - layer.eigenvalues().abs().square())
    error_of_mean = 1 / math.sqrt(64)  # of one mode, at least; modes with near phases share their noise
    assert abs(power.mean() - 1) < 0.5 * error_of_mean
    assert abs((bare / expected).mean() - 1) < 0.5 * error_of_mean
    assert (bare / power).mean() > 2


def test_output_is_an_fft_convolution_with_powers_of_lambda():
    layer = small(r_min=0.8, r_max=0.999)
    lam, gamma, b, c, d = parts(layer)
    x = torch.randn(2, 50, 4, dtype=torch.float64)
    u = gamma * (x.to(b.dtype) @ b.T)
    kernel = lam ** torch.arange(50)[:, None]
    h = torch.fft.ifft(torch.fft.fft(u, 128, dim=1) * torch.fft.fft(kernel, 128, dim=0), dim=1)[:, :50]
    torch.testing.assert_close(layer(x)[0], (h @ c.T).real + d * x, atol=1e-10, rtol=0)


def test_layer_is_a_dense_real_rnn_of_rotations():
    """h = (Re, Im) turns by [[ρ cos θ, -ρ sin θ], [ρ sin θ, ρ cos θ]] per mode."""
    layer = small(r_min=0.8, r_max=0.999)
    lam, gamma, b, c, d = parts(layer)
    blocks = [torch.stack([torch.stack([z.real, -z.imag]), torch.stack([z.imag, z.real])]) for z in lam]
    turn = torch.block_diag(*blocks)
    into = torch.stack([gamma[:, None] * b.real, gamma[:, None] * b.imag], 1).flatten(0, 1)
    out = torch.stack([c.real, -c.imag], -1).flatten(1)
    x = torch.randn(2, 50, 4, dtype=torch.float64)
    h, rows = torch.zeros(2, 6, dtype=torch.float64), []
    for t in range(50):
        h = h @ turn.T + x[:, t] @ into.T
        rows.append(h @ out.T + d * x[:, t])
    torch.testing.assert_close(layer(x)[0], torch.stack(rows, 1), atol=1e-10, rtol=0)


def test_streaming():
    check_streaming(LRU(6, 5, r_min=0.5, r_max=0.999), 6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(small(r_min=0.5, r_max=0.999), 4, cuts=cuts)


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    layer = small(dim=3, state_dim=2, r_min=0.5, r_max=0.9)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == {"nu_log", "theta_log", "gamma_log", "B", "C", "D"}

    def run(x, h, *values):
        y, state = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, LRUState(h)))
        return y, state.h

    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h, *layer.parameters()))


@pytest.mark.parametrize("state", [False, True])
def test_layer_compiles_as_one_graph(state):
    torch.compiler.reset()
    layer = small().float()
    x = torch.randn(2, 9, 4)
    before = LRUState(layer(x)[1].h.detach()) if state else None
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (layer, compiled):
        layer.zero_grad()
        y, after = call(x, before)
        (y.square().sum() + after.h.abs().sum()).backward()
        results.append([y, after.h, *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_autocast_keeps_the_recurrence_in_float32():
    layer = small(dim=16, state_dim=16, r_min=0.99, r_max=0.9999).float()
    x = torch.randn(2, 200, 16)
    exact = layer(x)[0]
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x)
        seen.append(layer.eigenvalues())
    assert state.h.dtype == torch.complex64
    torch.testing.assert_close(seen[0], layer.eigenvalues(), atol=0, rtol=0)
    error = (y - exact).abs().max() / exact.abs().max()
    assert error < 0.02  # two products of bfloat16, eps 2**-8; a bfloat16 λ would round to 1 and miss by far more


def test_half_precision_layer_keeps_a_complex64_state():
    layer = small().to(torch.bfloat16)
    y, state = layer(torch.randn(2, 5, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == torch.complex64


def test_the_ring_may_reach_the_circle_and_the_centre():
    torch.manual_seed(0)
    layer = LRU(2, 1000, r_min=0.0, r_max=1.0)
    assert all(p.isfinite().all() for p in layer.parameters())
    narrow = LRU(2, 1000, r_min=1 - 1e-12, r_max=1.0)
    assert all(p.isfinite().all() for p in narrow.parameters())
    assert (narrow.gamma_log.exp() >= 0.99e-4).all()  # √(1 - |λ|²) with 1 - |λ|² held at 1e-8


def test_layer_names_the_parameters_that_weight_decay_would_harm():
    layer = small()
    assert layer.no_weight_decay == {"nu_log", "theta_log", "gamma_log"}
    assert layer.no_weight_decay <= dict(layer.named_parameters()).keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "dim and state_dim of at least 1, not 0 and 0"),
        ({"dim": 2, "state_dim": 0}, "dim and state_dim of at least 1, not 2 and 0"),
        ({"dim": 2, "r_min": 0.9, "r_max": 0.9}, "0 <= r_min < r_max <= 1, not r_min=0.9 and r_max=0.9"),
        ({"dim": 2, "r_min": -0.1}, "not r_min=-0.1"),
        ({"dim": 2, "r_max": 1.01}, "r_max=1.01"),
        ({"dim": 2, "max_phase": 0.0}, "max_phase above 0 and up to 2π, not 0.0"),
        ({"dim": 2, "max_phase": 7.0}, "max_phase above 0 and up to 2π, not 7.0"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LRU(**arguments)


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        (torch.zeros(2, 5, 3), None, "x of shape (batch, length, 4), not (2, 5, 3)"),
        (torch.zeros(2, 5, 4), LRUState(torch.zeros(2, 3)), "complex state of shape (2, 3), not torch.float32"),
        (torch.zeros(2, 5, 4), LRUState(torch.zeros(1, 3) + 0j), "shape (2, 3), not torch.complex64 of shape (1, 3)"),
        (torch.zeros(2, 5, 4), torch.zeros(2, 3) + 0j, "LRUState or None as its state, not Tensor"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
