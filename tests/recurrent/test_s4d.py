"""S4D: x_l = exp(a) x_{l-1} + b u_l, y_l = 2 Re sum_n C_n x_{l,n} + D u_l."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.ops import vandermonde
from carrel.recurrent import S4D, S4DState, hippo_matrices, legs_normal_part
from carrel.recurrent.diagonal import initial_rates
from carrel.testing import check_streaming


def small(dim=4, state_dim=6, seed=0, **kwargs):
    torch.manual_seed(seed)
    return S4D(dim, state_dim, **kwargs).double()


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "lin", "inv", "real"])
def test_output_is_the_recurrence_written_out(init, disc):
    layer = small(init=init, disc=disc)
    A, dt, C = layer.rates(), layer.log_dt.exp()[:, None], torch.view_as_complex(layer.C)
    if disc == "zoh":
        factor, b = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    else:
        factor, b = (1 + dt / 2 * A) / (1 - dt / 2 * A), dt / (1 - dt / 2 * A)
    u = torch.randn(2, 90, 4, dtype=torch.float64)
    x, rows = torch.zeros(2, 4, 3, dtype=torch.complex128), []
    for t in range(90):
        x = factor * x + b * u[:, t, :, None]
        rows.append(2 * (C * x).sum(-1).real + layer.D * u[:, t])
    y, state = layer(u)
    torch.testing.assert_close(y, torch.stack(rows, 1), atol=1e-11, rtol=0)
    torch.testing.assert_close(state.x, x, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("init", "first", "last"),
    [("legs", [0.301, 1.084, 2.119], 325.4), ("inv", [315.8, 98.46, 55.0], 0.329), ("lin", [0, math.pi], 15 * math.pi)],
)
def test_imaginary_parts_start_as_published(init, first, last):
    """For N = 32; all real parts are -1/2."""
    rates = initial_rates(init, 16)
    assert (rates.real == -0.5).all()
    torch.testing.assert_close(rates.imag[: len(first)], torch.tensor(first).double(), atol=0.1, rtol=2e-3)
    assert abs(rates.imag[-1] - last) < 2e-3 * last
    layer = S4D(3, 32, init=init)
    torch.testing.assert_close(layer.rates()[2].cdouble(), rates, atol=1e-4, rtol=1e-5)


def test_real_start_has_rates_minus_1_to_minus_n_and_no_phase():
    assert initial_rates("real", 5).tolist() == [-1, -2, -3, -4, -5]


def test_rates_decay_for_every_parameter():
    layer = small()
    with torch.no_grad():
        layer.A_log.copy_(torch.linspace(-30, 5, 12).view(4, 3))
    assert (layer.rates().real < 0).all()


def test_steps_start_log_uniform_in_their_range():
    torch.manual_seed(0)
    log_dt = S4D(20_000, 2, dt_min=1e-3, dt_max=1e-1).log_dt.double()
    assert math.log(1e-3) - 1e-5 <= log_dt.min()
    assert log_dt.max() <= math.log(1e-1) + 1e-5
    middle, spread = math.log(1e-2), math.log(100)
    assert abs(log_dt.mean() - middle) < 4 * spread / math.sqrt(12 * 20_000)


def test_first_tap_of_the_kernel_is_twice_the_real_part_of_c_b():
    layer = small(disc="bilinear")
    dt, A = layer.log_dt.exp()[:, None], layer.rates()
    b = dt / (1 - dt / 2 * A)
    wanted = 2 * (torch.view_as_complex(layer.C) * b).sum(-1).real
    torch.testing.assert_close(layer.kernel(5)[:, 0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "lin", "inv", "real"])
def test_streaming(init, disc):
    check_streaming(S4D(3, 4, init=init, disc=disc), 3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 140), max_size=6).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(small(dim=2, state_dim=4), 2, cuts=cuts)


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    layer = small(dim=2, state_dim=4, dt_min=0.1, dt_max=0.5)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == {"log_dt", "A_log", "A_imag", "C", "D"}

    def run(x, h, *values):
        y, state = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, S4DState(h)))
        return y, state.x

    h = torch.randn(2, 2, 2, dtype=torch.complex128, requires_grad=True)
    for length in (1, 4):
        x = torch.randn(2, length, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(run, (x, h, *layer.parameters()))


def test_the_diagonal_legs_start_meets_legs_in_integrals_and_not_in_its_kernel():
    """e^{tS} B/2 against e^{tA} B, the first coefficient: the kernels stay apart, their running integrals meet."""
    kernel_errors, integral_errors = [], []
    for N in (16, 64, 256):
        t = torch.linspace(0, 8, 4001, dtype=torch.float64)
        rates, _, b, V = legs_normal_part(N)
        diagonal = (0.5 * 2 * (V[0] * b * torch.exp(rates * t[:, None])).sum(1)).real
        exact = _legs_impulse(N, t)
        kernel_errors.append(((diagonal - exact).square().sum() / exact.square().sum()).sqrt().item())
        step = t[1] - t[0]
        smooth = torch.exp(-((t - 2) ** 2) * 4)  # a smooth input, seen through both
        answers = [torch.nn.functional.conv1d(smooth[None, None], k.flip(0)[None, None], padding=4000)[0, 0] * step
                   for k in (diagonal, exact)]  # fmt: skip
        answers = [a[:4001] for a in answers]
        integral_errors.append(((answers[0] - answers[1]).abs().max() / answers[1].abs().max()).item())
    assert min(kernel_errors) > 0.3
    assert integral_errors[0] > 3 * integral_errors[1] > 9 * integral_errors[2]


def _legs_impulse(N, t):
    """First coefficient of e^{tA} B: A is a triangle, so it is e^{-t} times its input."""
    _, B = hippo_matrices("legs", N)
    return torch.exp(-t) * B[0]


def test_layer_compiles_as_one_graph():
    torch.compiler.reset()
    layer = small().float()
    x = torch.randn(2, 9, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (layer, compiled):
        layer.zero_grad()
        y, after = call(x, S4DState(torch.ones(2, 4, 3, dtype=torch.complex64)))
        (y.square().sum() + after.x.abs().sum()).backward()
        results.append([y, after.x, *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


def test_autocast_and_half_precision_keep_the_recurrence_in_float32():
    layer = small(dim=8).float()
    x = torch.randn(2, 100, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x)
    torch.testing.assert_close(y, layer(x)[0], atol=1e-4, rtol=0)
    assert state.x.dtype == torch.complex64
    y, state = layer.to(torch.bfloat16)(x.bfloat16())
    assert (y.dtype, state.x.dtype) == (torch.bfloat16, torch.complex64)


def test_nothing_of_size_modes_times_length_is_held():
    """Peak of torch's own memory over a forward and backward at N = 256, far below dim * N / 2 * length numbers."""
    layer, length = S4D(4, 256), 8192
    x = torch.randn(1, length, 4, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)[0].sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 4 * 128 * length * 8 / 4


def test_layer_names_the_parameters_that_weight_decay_would_harm():
    layer = small()
    assert layer.no_weight_decay <= dict(layer.named_parameters()).keys()


def test_vandermonde_and_layer_share_their_kernel():
    layer = small()
    a, b = layer._steps()
    wanted = vandermonde(2 * torch.view_as_complex(layer.C) * b, a, 100)
    torch.testing.assert_close(layer.kernel(100), wanted, atol=0, rtol=0)
    u = torch.zeros(1, 100, 4, dtype=torch.float64)
    u[:, 0] = 1
    y = layer(u)[0][0].T
    y[:, 0] -= layer.D
    torch.testing.assert_close(y, wanted, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "dim of at least 1 and an even state_dim"),
        (
            {"dim": 2, "state_dim": 7},
            "even state_dim of at least 2, because modes come in conjugate pairs, not 2",
        ),
        ({"dim": 2, "state_dim": 0}, "not 2 and 0"),
        ({"dim": 2, "dt_min": 0.1, "dt_max": 0.1}, "0 < dt_min < dt_max, not dt_min=0.1 and dt_max=0.1"),
        ({"dim": 2, "dt_min": 0.0}, "not dt_min=0.0"),
        ({"dim": 2, "init": "random"}, "init out of legs, lin, inv, real and disc out of zoh, bilinear, not 'random'"),
        ({"dim": 2, "disc": "euler"}, "and 'euler'"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        S4D(**arguments)


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        (torch.zeros(2, 5, 3), None, "x of shape (batch, length, 4), not (2, 5, 3)"),
        (torch.zeros(2, 5, 4) + 0j, None, "real x, not torch.complex64"),
        (torch.zeros(2, 5, 4), S4DState(torch.zeros(2, 4, 3)), "complex state of shape (2, 4, 3), not torch.float32"),
        (torch.zeros(2, 5, 4), S4DState(torch.zeros(1, 4, 3) + 0j), "not torch.complex64 of shape (1, 4, 3)"),
        (torch.zeros(2, 5, 4), torch.zeros(2, 4, 3) + 0j, "S4DState or None as its state, not Tensor"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
