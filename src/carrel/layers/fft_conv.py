"""Long causal convolutions by the fast Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor


def fft_conv(u: Tensor, k: Tensor, state_carry: Tensor | None = None) -> Tensor:
    r"""Convolve each channel with its own kernel, causally.

    .. math:: y_l = \sum_{i=0}^{l} k_i\, u_{l-i} + \text{state\_carry}_l

    Args:
        u: (..., channels, length), real.
        k: (channels, kernel length) or broadcastable to u's leading axes; what lies beyond u's length plays no part.
        state_carry: like the result: what earlier pieces of the sequence still contribute, or None.
    Returns (..., channels, length), in the type that u and k promote to, float32 at least.
    Raises ValueError: u or k is complex or whole-numbered, their leading axes do not broadcast, the carry has another
    shape. Cost: three transforms of twice the length, O(length log length) per channel; the error is that of the
    transform, relative to the largest outputs and not to each one.
    """
    if not (u.is_floating_point() and k.is_floating_point()):
        raise ValueError(f"fft_conv: u and k must be real and floating point, got {u.dtype} and {k.dtype}")
    try:
        leading = torch.broadcast_shapes(u.shape[:-1], k.shape[:-1])
    except RuntimeError:
        raise ValueError(f"fft_conv: k of shape {tuple(k.shape)} does not fit u of shape {tuple(u.shape)}") from None
    length = u.shape[-1]
    if state_carry is not None and state_carry.shape != (*leading, length):
        raise ValueError(
            f"fft_conv: state_carry must be {(*leading, length)} like the result, got {tuple(state_carry.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(u.dtype, k.dtype), torch.float32)
    u, k = u.to(dtype), k[..., :length].to(dtype)
    if length == 0 or k.shape[-1] == 0:
        y = u.new_zeros((*leading, length))
    else:
        size = transform_size(length + k.shape[-1] - 1)
        spectrum = torch.fft.rfft(u, size) * torch.fft.rfft(k, size)
        y = torch.fft.irfft(spectrum, size)[..., :length]
    return y if state_carry is None else y + state_carry


def transform_size(least: int) -> int:
    """The next even size without prime factors above 5, which transforms quickly."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
