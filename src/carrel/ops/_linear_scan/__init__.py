"""`linear_scan`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._kernel_op import resolve, wide_dtype
from . import reference
from .derivatives import op

_EXACT = frozenset({torch.float32, torch.float64, torch.complex64, torch.complex128})
_TYPES = _EXACT | {torch.float16, torch.bfloat16}
_RUN = 16  # channels from which one factor for all beats a copy of it for each: shorter inner loops do not vectorise


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""The leaky running sum that every diagonal linear recurrent network reduces to.

    .. math:: h_t = a_t \odot h_{t-1} + b_t, \qquad t = 1 \ldots L, \quad h_0 = \texttt{h0}

    Args:
        a: broadcastable to ``b``; the factor kept from one token to the next (no unit). Above 1 in magnitude it is allowed and grows; 0
            forgets all that was before. A factor that is the same for every token (shape ``channels``, or length 1) stays small: neither
            it nor its gradient is ever written out per token.
        b: (batch, length, \*channels), real or complex; what each token adds.
        h0: (batch, \*channels), the state before the first token, or None for zeros.
        reverse: scan from the last token to the first; ``h0`` then enters at the right end.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).

    Returns:
        h, shaped like ``b``: every h_t, in the type that ``a`` and ``b`` promote to; and the last h_t, (batch, \*channels), to be fed to the
        next piece as ``h0``. It is in the accumulation type: float32 for float16 and bfloat16, where the carry never rounds.

    Raises:
        ValueError: shapes, types or devices disagree, or a backend asked for by name cannot run these tensors.

    Cost: O(batch * length * channels) time, one pass over memory forward and one backward; keeps ``a`` and ``h`` for the backward.

    The kernels on the CPU go token by token and are exact for any factor. Those on the GPU multiply factors within a tile of tokens:
    where such a product overflows they may give NaN although the sequential result is finite, so keep :math:`|a_t| \le 1` there.

    Source: Martin and Cundy 2018, arXiv:1709.04057, equation 5 (their Lambda_t is ``a``, x_t is ``b``); the gradient of the scan is
    the same scan in the other direction.
    """
    # One token, the step of a decoder. Plain torch is quicker than any kernel here: for (1, 1, 256) in float32 9 us through this branch,
    # 22 us through the kernel, 5.7 us for a * h0 + b by itself. Every later check is implied by these, and torch differentiates it.
    if (
        h0 is not None
        and backend == "auto"
        and isinstance(b, Tensor)
        and b.dtype in _EXACT
        and b.dtype is a.dtype is h0.dtype
        and (shape := b.shape)[1:2] == (1,)
        and (shape[:1] + shape[2:]) == h0.shape
        and (a.shape == shape or a.shape == shape[2:])
    ):
        h = torch.addcmul(b, a, h0.unsqueeze(1))
        return h, h.squeeze(1).clone()
    return _general(a, b, h0, reverse, backend)


def _general(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    dtype = _check(a, b, h0)
    name = resolve("linear_scan", backend, b.device)
    wide = wide_dtype(dtype)
    if a.ndim < b.ndim:
        a = a.reshape((1,) * (b.ndim - a.ndim) + a.shape)
    split = dtype.is_complex and not a.is_complex()  # real factors act on real and imaginary parts alike
    a, b = a.to(dtype.to_real() if split else dtype), b.to(dtype)
    state_shape = b.shape[:1] + b.shape[2:]
    h0 = torch.zeros(state_shape, dtype=wide, device=b.device) if h0 is None else h0.to(wide)
    if name == "reference":
        h, last = reference.scan(a.to(wide_dtype(a.dtype)), b.to(wide), h0, reverse)
        return h.to(dtype), last
    if split:
        h, last = _flat(a.unsqueeze(-1), torch.view_as_real(b), torch.view_as_real(h0), reverse, name)
        return torch.view_as_complex(h), torch.view_as_complex(last)
    return _flat(a, b, h0, reverse, name)


def _flat(a: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    """Bring the tensors to the shapes that the kernels read: a (B or 1, L or 1, G) with G dividing C, b (B, L, C), h0 (B, C)."""
    batch, length, *channels = b.shape
    if not _in_runs(list(a.shape[2:]), channels):
        a = a.expand(*a.shape[:2], *channels)
    a = a.reshape(*a.shape[:2], math.prod(a.shape[2:]))
    size = math.prod(channels)
    h, last = op(a, b.reshape(batch, length, size), h0.reshape(batch, size), reverse, backend)
    return h.view(b.shape), last.view(h0.shape)


def _in_runs(kept: list[int], channels: list[int]) -> bool:
    """Whether each factor serves one channel, or a run of neighbours (as one per head does) long enough for a loop of its own."""
    own = len(kept)
    while own and kept[own - 1] == 1:
        own -= 1
    return kept[:own] == channels[:own] and (kept == channels or math.prod(channels[own:]) >= _RUN)


def _check(a: Tensor, b: Tensor, h0: Tensor | None) -> torch.dtype:
    """Refuse what the docstring excludes, in one sentence; else the type that h will have."""
    given = {"a": a, "b": b} if h0 is None else {"a": a, "b": b, "h0": h0}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"linear_scan: {name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in _TYPES:
            raise ValueError(f"linear_scan: {name} must be floating point or complex, got {x.dtype}")
        if x.device != b.device:
            raise ValueError(f"linear_scan: {name} is on {x.device} but b is on {b.device}; they must be on one device")
    shape = tuple(b.shape)
    if b.ndim < 2:
        raise ValueError(f"linear_scan: b must be (batch, length, *channels), got shape {shape}")
    if a.ndim > b.ndim or any(m not in (1, n) for m, n in zip(a.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"linear_scan: a must broadcast to b, of shape {shape}, got shape {tuple(a.shape)}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if h0 is None:
        return dtype
    if h0.shape != shape[:1] + shape[2:]:
        raise ValueError(
            f"linear_scan: h0 must be (batch, *channels) = {shape[:1] + shape[2:]}, got shape {tuple(h0.shape)}"
        )
    wide = wide_dtype(dtype)
    with_state = torch.promote_types(wide, h0.dtype)
    return (
        dtype if with_state == wide else with_state
    )  # a state of float32 leaves half types alone, one of float64 does not
