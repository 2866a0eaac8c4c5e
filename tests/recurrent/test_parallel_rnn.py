"""ParallelRNN: y_t = cell(y_{t-1}, x_t), long pieces by deer, short ones token by token."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from carrel.models import SequenceModel
from carrel.recurrent import GRU, LSTM, ParallelRNN, ParallelRNNState, TanhRNN
from carrel.testing import check_streaming


class Minimal(nn.Module):
    def __init__(self, dim=3):
        super().__init__()
        self.W = nn.Parameter(torch.randn(dim, dim) * 0.3)

    def forward(self, y, x):
        return torch.tanh(y @ self.W.T + x)


def small(make=GRU, dim=3, seed=0, **options):
    torch.manual_seed(seed)
    return ParallelRNN(make(dim, dim), **{"min_parallel": 6, **options}).double()


@pytest.mark.parametrize("make", [GRU, LSTM, TanhRNN])
def test_outputs_are_those_of_torch(make):
    torch.manual_seed(0)
    module = {GRU: nn.GRU, LSTM: nn.LSTM, TanhRNN: nn.RNN}[make](4, 4, batch_first=True).double()
    mixer = ParallelRNN(make.from_torch(module))
    x = torch.randn(2, 200, 4, dtype=torch.float64)
    y, state = mixer(x)
    wanted, hidden = module(x)
    torch.testing.assert_close(y, wanted, atol=1e-10, rtol=0)
    hidden = torch.cat(hidden, -1) if make is LSTM else hidden
    torch.testing.assert_close(state.y, hidden[0], atol=1e-10, rtol=0)
    assert mixer.info is not None
    assert mixer.info.converged


@pytest.mark.parametrize("jac", ["full", "diag"])
@pytest.mark.parametrize("make", [GRU, LSTM, TanhRNN])
def test_streaming(make, jac):
    check_streaming(small(make, jac=jac), 3)


def test_streaming_of_a_cell_of_ones_own():
    torch.manual_seed(0)
    check_streaming(ParallelRNN(Minimal(), 3, min_parallel=6), 3)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 25), max_size=5).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(small(), 3, cuts=cuts)


def test_short_pieces_go_token_by_token():
    mixer = small(min_parallel=8)
    x = torch.randn(1, 8, 3, dtype=torch.float64)
    _, state = mixer(x[:, :7])
    assert mixer.info is None
    mixer(x, state)
    assert mixer.info is not None


def test_half_types_and_autocast_compute_in_float32():
    mixer = small().float()
    x = torch.randn(2, 50, 3)
    exact = mixer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x)
    assert torch.equal(y, exact)
    for length in (50, 3):
        y, state = mixer.to(torch.bfloat16)(x[:, :length].bfloat16())
        assert (y.dtype, state.y.dtype) == (torch.bfloat16, torch.float32)
        assert (y - exact[:, :length]).abs().max() < 0.05


def test_a_model_of_it_learns():
    torch.manual_seed(0)
    model = SequenceModel(
        lambda dim: ParallelRNN(GRU(dim, dim), min_parallel=16), 8, 1, in_dim=1, out_dim=1, pool="none"
    )
    x = torch.randn(16, 64, 1)
    target = torch.cumsum(x, 1).sin()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (model(x)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ParallelRNN(Minimal()), "ParallelRNN wants dim for a cell without input_dim, such as Minimal"),
        (lambda: ParallelRNN(GRU(2, 3)), "as wide as its input, within its state; got dim 2, an output of 3"),
        (lambda: ParallelRNN(GRU(2, 2), state_dim=4), "a state of 4"),
        (lambda: ParallelRNN(GRU(2, 2), min_parallel=0), "min_parallel of at least 1, not 0"),
    ],
)
def test_bad_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 3), None, "x of shape (batch, length, 3), not (2, 3)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 3), "a ParallelRNNState or None as its state, not Tensor"),
        (
            torch.zeros(2, 5, 3),
            ParallelRNNState(torch.zeros(1, 3)),
            "a real state of shape (2, 3), not torch.float32",
        ),
        (torch.zeros(2, 5, 3), ParallelRNNState(torch.zeros(2, 3) + 0j), "not torch.complex64 of shape (2, 3)"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
