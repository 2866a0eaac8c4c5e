"""Normalisation over the last axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    r"""Divide by the root mean square, then scale each channel.

    .. math:: y = w \odot \frac{x}{\sqrt{\tfrac1d \sum_i x_i^2 + \epsilon}}

    Args:
        dim: size d of the last axis.
        eps: added to the mean square; 1e-6 in every dtype, so that half precision and float32 mean the same layer
            (torch's own default changes with the dtype and is 0.008 in bfloat16).
    x, y: (..., dim), in x's dtype; the sum is taken in float32 at least.   Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # one dtype for both: torch leaves its fused kernel, and warns, when the weight's differs
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
