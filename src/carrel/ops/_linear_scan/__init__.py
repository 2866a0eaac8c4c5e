"""`linear_scan`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._kernel_op import check_tensors, joint_dtype, resolve, wide_dtype
from . import reference
from .derivatives import op

_EXACT = frozenset({torch.float32, torch.float64, torch.complex64, torch.complex128})
_RUN = 64  # channels from which one factor for all beats a copy for each (16 ms against 21; at 32, 21 against 16)


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""The leaky running sum that every diagonal linear recurrent network reduces to.

    .. math:: h_t = a_t \odot h_{t-1} + b_t, \qquad t = 1 \ldots L, \quad h_0 = \texttt{h0}

    Args:
        a: broadcastable to ``b``; the factor kept from one token to the next (no unit). Above 1 in magnitude it is
            allowed and grows; 0 forgets all that was before. A factor that is the same for every token (shape
            ``channels``, or length 1) stays small: neither it nor its gradient is ever written out per token.
        b: (batch, length, \*channels), real or complex; what each token adds.
        h0: (batch, \*channels), the state before the first token, or None for zeros.
        reverse: scan from the last token to the first; ``h0`` then enters at the right end.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).

    Returns:
        h, shaped like ``b``: every h_t, in the type that ``a`` and ``b`` promote to; and the last h_t,
        (batch, \*channels), to be fed to the next piece as ``h0``, in the accumulation type: float32 for float16 and
        bfloat16, where the carry never rounds. For a single token the two may share memory: write into neither.

    Raises:
        ValueError: shapes, types or devices disagree, or a backend asked for by name cannot run these tensors.

    Cost: O(batch * length * channels) time, one pass over memory forward and one backward; keeps ``a`` and ``h``.

    The kernels on the CPU go token by token and are exact for any factor. Those on the GPU multiply factors within a
    tile of tokens: where such a product overflows they may give NaN although the sequential result is finite, so keep
    :math:`|a_t| \le 1` there.

    Source: Martin and Cundy 2018, arXiv:1709.04057 (their Lambda_t is ``a``, their x_t is ``b``); the gradient of the
    scan is the same scan in the other direction.
    """
    # One token, the step of a decoder: plain torch is quicker than any kernel. For (1, 1, 256) in float32 this branch
    # costs 4.7 us, a kernel by name 40, and a * h0 + b alone 3.4. What does not fit exactly goes on to the checks.
    try:
        if h0 is not None and backend == "auto" and (shape := b.shape)[1] == 1 and a.dtype is b.dtype is h0.dtype:
            h = b.addcmul(a, h0 if shape[0] == 1 else h0.unsqueeze(1))
            if h.shape == shape and h0.ndim == h.ndim - 1 and h.dtype in _EXACT:
                return h, h.view_as(h0)
    except (AttributeError, IndexError, RuntimeError):
        pass
    return _general(a, b, h0, reverse, backend)


def _general(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    _check(a, b, h0)
    dtype = joint_dtype(a, b, h0)
    name = resolve("linear_scan", backend, b.device)
    wide = wide_dtype(dtype)
    if a.ndim < b.ndim:
        a = a.reshape((1,) * (b.ndim - a.ndim) + a.shape)
    split = dtype.is_complex and not a.is_complex()  # real factors act on real and imaginary parts alike
    a, b = _as(a, dtype.to_real() if split else dtype), _as(b, dtype)
    if h0 is None:
        h0 = torch.zeros(b.shape[:1] + b.shape[2:], dtype=wide, device=b.device)
    h0 = _as(h0, wide)
    if name == "reference":
        h, last = reference.scan(a.to(wide_dtype(a.dtype)), b.to(wide), h0, reverse)
        return h.to(dtype), last
    if split:
        h, last = _flat(a.unsqueeze(-1), _pairs(b), _pairs(h0), reverse, name)
        return torch.view_as_complex(h), torch.view_as_complex(last)
    return _flat(a, b, h0, reverse, name)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # even an idle .to costs half a microsecond


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())


def _flat(a: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    """The scan in the kernels' shapes: a (B or 1, L or 1, G) with G dividing C, b (B, L, C), h0 (B, C)."""
    batch, length, *channels = b.shape
    if not _in_runs(list(a.shape[2:]), channels):
        a = a.expand(*a.shape[:2], *channels)
    if b.ndim == 3:
        return op(a, b, h0, reverse, backend)  # type: ignore[return-value]
    a = a.reshape(*a.shape[:2], math.prod(a.shape[2:]))
    size = math.prod(channels)
    h, last = op(a, b.reshape(batch, length, size), h0.reshape(batch, size), reverse, backend)
    return h.view(b.shape), last.view(h0.shape)


def _in_runs(kept: list[int], channels: list[int]) -> bool:
    """Whether each factor serves one channel, or (as one per head does) a run of neighbours worth a loop of its own."""
    own = len(kept)
    while own and kept[own - 1] == 1:
        own -= 1
    return kept[:own] == channels[:own] and (kept == channels or math.prod(channels[own:]) >= _RUN)


def _check(a: Tensor, b: Tensor, h0: Tensor | None) -> None:
    """Refuse what the docstring excludes, in one sentence."""
    check_tensors("linear_scan", a=a, b=b, h0=h0)
    shape = tuple(b.shape)
    if b.ndim < 2:
        raise ValueError(f"linear_scan: b must be (batch, length, *channels), got shape {shape}")
    if a.ndim > b.ndim or any(m not in (1, n) for m, n in zip(a.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"linear_scan: a must broadcast to b, of shape {shape}, got shape {tuple(a.shape)}")
    state = shape[:1] + shape[2:]
    if h0 is not None and h0.shape != state:
        raise ValueError(f"linear_scan: h0 must be (batch, *channels) = {state}, got shape {tuple(h0.shape)}")
