"""ShortConvolution: y_t = b + Σ_k w_k x_{t-K+k}."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from carrel.layers import ShortConvolution, ShortConvolutionState
from carrel.testing import check_streaming


def made(dim=3, **options):
    torch.manual_seed(0)
    return ShortConvolution(dim, **options).double()


@pytest.mark.parametrize("width", [1, 2, 4, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_torchs_depthwise_convolution_padded_on_the_left(width, bias):
    conv = made(width=width, bias=bias)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    padded = functional.pad(x.transpose(1, 2), (width - 1, 0))
    wanted = functional.conv1d(padded, conv.weight.unsqueeze(1), conv.bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(conv(x)[0], wanted, atol=1e-14, rtol=0)


def test_a_hand_worked_row():
    conv = made(1, width=2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[10.0, 1.0]]))
        conv.bias.fill_(100)
    y, state = conv(torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64))
    assert y.flatten().tolist() == [101, 112, 123]
    assert state.x.tolist() == [[[3.0]]]


@pytest.mark.parametrize("width", [2, 4])
def test_streaming(width):
    check_streaming(made(width=width), 3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(made(), 3, cuts=cuts)


def test_the_state_keeps_no_more_than_the_last_inputs_in_memory():
    state = made()(torch.randn(2, 500, 3, dtype=torch.float64))[1]
    assert state.x.shape == (2, 3, 3)
    assert state.x.untyped_storage().nbytes() == state.x.numel() * 8


def test_gradients_are_right():
    conv = made(2)
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    past = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, past, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        y, state = torch.func.functional_call(conv, parameters, (x, ShortConvolutionState(past)))
        return y, state.x

    assert torch.autograd.gradcheck(run, (x, past, *conv.parameters()))


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 3), None, "x of shape (batch, length, 3), not (2, 3)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 3, 3), "a ShortConvolutionState or None, not Tensor"),
        (
            torch.zeros(2, 5, 3),
            ShortConvolutionState(torch.zeros(2, 3, 4)),
            "a state of shape (2, 3, 3), not (2, 3, 4)",
        ),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ShortConvolution(3)(x, state)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="dim and width of at least 1, not 3 and 0"):
        ShortConvolution(3, width=0)
