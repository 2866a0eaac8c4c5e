"""A causal convolution over the last few tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .mixer import Mixer


class ShortConvolutionState(NamedTuple):
    """x: (batch, dim, width - 1), the last inputs, oldest first; zeros before the start of a sequence."""

    x: Tensor


class ShortConvolution(Mixer):
    r"""Each channel is a weighted sum of its own last few tokens.

    .. math:: y_t = b + \sum_{k=1}^{K} w_k \odot x_{t-K+k}, \qquad x_t = 0 \text{ for } t < 1

    Args:
        dim: channels of x and y.
        width: K, tokens that are seen, the present one included; at least 1.
        bias: whether there is a b.
    x, y: (batch, length, dim).   state: ShortConvolutionState(x: (batch, dim, width - 1)).
    ``weight`` is (dim, width), the present token's last, and starts uniform within ±1/√K as torch's convolutions do.
    Raises ValueError: sizes below 1; x or the state of a wrong shape.
    Cost: 2 width operations per number of x, in ``width`` passes over memory: for a few taps that is quicker than
    torch's own convolution, which wants the length last and so copies its input and its output.
    Source: arXiv:2312.00752, section 3.4, where it stands before the selective state space.
    """

    def __init__(self, dim: int, width: int = 4, bias: bool = True) -> None:
        super().__init__()
        if dim < 1 or width < 1:
            raise ValueError(f"ShortConvolution wants dim and width of at least 1, not {dim} and {width}")
        self.dim, self.width = dim, width
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(dim, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, state: ShortConvolutionState | None = None) -> tuple[Tensor, ShortConvolutionState]:
        self._check_input(x)
        self._check_state(x, state)
        batch, length, _ = x.shape
        seen = self.width - 1
        past = x.new_zeros(batch, seen, self.dim) if state is None else state.x.transpose(1, 2).to(x.dtype)
        padded = torch.cat([past, x], 1) if seen else x
        taps = self.weight.unbind(1)
        if self.bias is None:
            y = padded[:, :length] * taps[0]
        else:
            y = torch.addcmul(self.bias, padded[:, :length], taps[0])
        for k in range(1, self.width):
            y = torch.addcmul(y, padded[:, k : k + length], taps[k])
        # a copy: a view would keep the whole sequence in memory for as long as the state lives
        kept = padded[:, length:] if seen else x[:, :0]
        return y, ShortConvolutionState(kept.transpose(1, 2).clone(memory_format=torch.contiguous_format))

    def _check_state(self, x: Tensor, state: ShortConvolutionState | None) -> None:
        if state is None:
            return
        if not isinstance(state, ShortConvolutionState):
            raise ValueError(f"ShortConvolution wants a ShortConvolutionState or None, not {type(state).__name__}")
        wanted = (x.shape[0], self.dim, self.width - 1)
        if tuple(state.x.shape) != wanted:
            raise ValueError(f"ShortConvolution wants a state of shape {wanted}, not {tuple(state.x.shape)}")

    def extra_repr(self) -> str:
        return f"{self.dim}, width={self.width}, bias={self.bias is not None}"
