"""S5: h_t = exp(Δ A) h_{t-1} + (exp(Δ A) - 1) / A B x_t, y_t = 2 Re(C h_t) + D x_t."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.recurrent import S5, S5State, hippo_matrices
from carrel.testing import check_streaming


def small(dim=4, state_dim=8, blocks=2, seed=0, **kwargs):
    torch.manual_seed(seed)
    return S5(dim, state_dim, blocks, **kwargs).double()


def test_output_is_the_recurrence_written_out():
    layer = small()
    A, dt = layer.rates(), layer.log_dt.exp()
    B = torch.complex(layer.B[:, 0], layer.B[:, 1])
    C = torch.complex(layer.C[..., 0], -layer.C[..., 1])
    factor, into = torch.exp(dt * A), ((torch.exp(dt * A) - 1) / A)[:, None] * B
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    h, rows = torch.zeros(2, 4, dtype=torch.complex128), []
    for t in range(9):
        h = factor * h + (x[:, t] + 0j) @ into.T
        rows.append(2 * (h @ C.T).real + layer.D * x[:, t])
    y, state = layer(x)
    torch.testing.assert_close(y, torch.stack(rows, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(state.h, h, atol=1e-12, rtol=0)


def test_it_starts_as_the_normal_part_of_legs_between_real_matrices():
    """2 Re C exp(t A) B = C' exp(t S) B' for real B', C' and S the block diagonal normal part of LegS."""
    layer = small(dim=3, state_dim=12, blocks=2)
    A, p = hippo_matrices("legs", 6)[0], torch.sqrt(torch.arange(6).double() + 0.5)
    S = torch.block_diag(*[A + torch.outer(p, p)] * 2)
    B, C = torch.complex(layer.B[:, 0], layer.B[:, 1]), torch.complex(layer.C[..., 0], -layer.C[..., 1])
    torch.manual_seed(0)
    torch.rand(6, dtype=torch.float64)  # what the steps draw
    into = (torch.randn(2, 6, 3, dtype=torch.float64) * 3**-0.5).flatten(0, 1)
    out = (torch.randn(2, 3, 6, dtype=torch.float64) * 12**-0.5).transpose(0, 1).flatten(1)
    for t in (0.0, 0.1, 1.0):
        got = 2 * ((C * torch.exp(t * layer.rates())) @ B).real
        torch.testing.assert_close(got, out @ torch.linalg.matrix_exp(t * S) @ into, atol=1e-5, rtol=0)


def test_streaming():
    check_streaming(S5(6, 8, 2), 6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(small(), 4, cuts=cuts)


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    layer = small(dim=3, state_dim=4, blocks=1, dt_min=0.1, dt_max=0.5)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == {"log_dt", "A_log", "A_imag", "B", "C", "D"}

    def run(x, h, *values):
        y, state = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, S5State(h)))
        return y, state.h

    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h, *layer.parameters()))


def test_autocast_and_half_precision_keep_the_recurrence_in_float32():
    layer = small(dim=16, state_dim=16).float()
    x = torch.randn(2, 50, 16)
    exact = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x)
    assert state.h.dtype == torch.complex64
    assert (y - exact).abs().max() < 0.02 * exact.abs().max()
    y, state = layer.to(torch.bfloat16)(x.bfloat16())
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.complex64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "S5 wants dim of at least 1"),
        ({"dim": 2, "state_dim": 7}, "even state_dim of at least 2"),
        ({"dim": 2, "state_dim": 12, "blocks": 4}, "multiple of 2 blocks, not state_dim=12 and blocks=4"),
        ({"dim": 2, "blocks": 0}, "multiple of 2 blocks, not state_dim=64 and blocks=0"),
        ({"dim": 2, "dt_min": 0.2}, "0 < dt_min < dt_max, not dt_min=0.2 and dt_max=0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        S5(**arguments)


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        (torch.zeros(2, 5, 4), S5State(torch.zeros(2, 4)), "complex state of shape (2, 4), not torch.float32"),
        (torch.zeros(2, 5, 4), S5State(torch.zeros(1, 4) + 0j), "not torch.complex64 of shape (1, 4)"),
        (torch.zeros(2, 5, 4), torch.zeros(2, 4) + 0j, "S5State or None as its state, not Tensor"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
