"""The gated MLP of residual stacks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SwiGLU(nn.Module):
    r"""A token-wise MLP whose hidden layer is gated by itself.

    .. math:: y = W_o \,(\mathrm{SiLU}(W_g x) \odot W_v x)

    Args:
        dim: width of x and y.
        hidden: width of the gated layer.
    x, y: (..., dim).   Source: arXiv:2002.05202, equation 6 (no biases).
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        out: Tensor = self.out(functional.silu(gate) * value)
        return out
