"""The cells that deer steps with: torch's equations, and J = ∂f/∂y."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from carrel.recurrent import GRU, LSTM, TanhRNN

PAIRS = {
    "tanh": (TanhRNN, nn.RNN, nn.RNNCell),
    "gru": (GRU, nn.GRU, nn.GRUCell),
    "lstm": (LSTM, nn.LSTM, nn.LSTMCell),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    torch.manual_seed(0)
    return PAIRS[request.param]


def state_of(hidden):
    return torch.cat(hidden, -1) if isinstance(hidden, tuple) else hidden


@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_torch_give_the_numbers_of_torch(pair, bias):
    ours, whole, single = pair
    module, one = whole(3, 4, num_layers=2, bias=bias).double(), single(3, 4, bias=bias).double()
    for layer, width in enumerate((3, 4)):
        cell = ours.from_torch(module, layer)
        weights = {
            name.removesuffix(f"_l{layer}"): p for name, p in module.named_parameters() if name.endswith(f"_l{layer}")
        }
        same = single(width, 4, bias=bias).double()
        same.load_state_dict(weights)
        x, y = torch.randn(5, width, dtype=torch.float64), torch.randn(5, cell.state_dim, dtype=torch.float64)
        hidden = tuple(y.chunk(2, -1)) if ours is LSTM else y
        torch.testing.assert_close(cell(y, x), state_of(same(x, hidden)), atol=1e-14, rtol=0)
    assert {n for n, _ in ours.from_torch(one).named_parameters()} == {n for n, _ in one.named_parameters()}


def test_the_jacobian_is_the_derivative(pair):
    cell = pair[0](3, 4).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, cell.state_dim, dtype=torch.float64)
    wanted = torch.func.vmap(torch.func.jacrev(lambda y, x: cell(y[None], x[None])[0]))(y, x)
    f, J = cell.forward_with_jacobian(y, x)
    torch.testing.assert_close(f, cell(y, x), atol=1e-14, rtol=0)
    torch.testing.assert_close(J, wanted, atol=1e-14, rtol=0)
    f, diagonal = cell.linearize_diagonal(y, cell.prepare(x))
    torch.testing.assert_close(f, cell(y, x), atol=1e-14, rtol=0)
    torch.testing.assert_close(diagonal, wanted.diagonal(dim1=-2, dim2=-1), atol=1e-14, rtol=0)


def test_output_is_h():
    assert LSTM(2, 3).output(torch.arange(6.0)).tolist() == [0, 1, 2]
    assert GRU(2, 3).output(torch.arange(3.0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GRU(0, 3), "GRU wants input_dim and hidden_dim of at least 1, not 0 and 3"),
        (
            lambda: GRU.from_torch(nn.LSTM(2, 3)),
            "GRU takes the weights of a GRU or GRUCell of torch, not of LSTM(2, 3)",
        ),
        (lambda: TanhRNN.from_torch(nn.RNN(2, 3, nonlinearity="relu")), "RNN or RNNCell of torch with tanh"),
        (lambda: LSTM.from_torch(nn.LSTM(2, 3, proj_size=2)), "has no projection"),
        (lambda: GRU.from_torch(nn.GRU(2, 3, bidirectional=True)), "goes one way"),
        (lambda: GRU.from_torch(nn.GRU(2, 3), 1), "has layers 0 to 0, not 1"),
    ],
)
def test_bad_input_is_named(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()
