"""`linear_scan`: what is asked of the arguments, and which kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

BACKENDS = ("auto", "reference", "cpu", "gpu")


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""The leaky running sum that every diagonal linear recurrent network reduces to.

    .. math:: h_t = a_t \odot h_{t-1} + b_t, \qquad t = 1 \ldots L, \quad h_0 = \texttt{h0}
    """
    if b.ndim < 2:
        raise ValueError(f"linear_scan: b must be (batch, length, *channels), got shape {tuple(b.shape)}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    h0 = b.new_zeros(b.shape[0], *b.shape[2:], dtype=wide) if h0 is None else h0.to(wide)
    a = a.reshape((1,) * (b.ndim - a.ndim) + a.shape)
    h, last = reference.scan(a.to(wide), b.to(wide), h0, reverse)
    return h.to(dtype), last
