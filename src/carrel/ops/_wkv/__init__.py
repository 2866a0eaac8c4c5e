"""`wkv`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._kernel_op import resolve, wide_dtype
from . import reference
from .derivatives import op

_TOKENS = 32  # between two states that are kept for the gradient; on the GPU also a tile


class WKVState(NamedTuple):
    """a, b, p: (batch, channels), float32 at least: a e^p is the sum of weighted values, b e^p that of the weights."""

    a: Tensor
    b: Tensor
    p: Tensor


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None = None, *, backend: str = "auto"
) -> tuple[Tensor, WKVState]:
    r"""An average of all values so far, weighted by the exponential of their keys and forgotten at a fixed rate.

    .. math:: y_t = \frac{\sum_{i<t} e^{k_i - (t-1-i) w} v_i + e^{u + k_t} v_t}
                         {\sum_{i<t} e^{k_i - (t-1-i) w} + e^{u + k_t}}

    Each channel is on its own. The two sums are carried as multiples of :math:`e^{p}`, with p the largest exponent
    that is in them, so no key is too large or too small: whatever is taken to an exponential is at most 0.

    Args:
        w: (channels,), the rate at which the past is forgotten (per token): 0 keeps all of it, infinity none.
        u: (channels,), added to a token's own key when it is averaged for the first time.
        k, v: (batch, length, channels), real; keys and values.
        state: what an earlier call returned, or None at the start of a sequence: a = b = 0 and p minus infinity.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).

    Returns:
        y, like ``v``, in the type that k and v promote to; and the WKVState(a, b, p) to be fed to the next piece, in
        float32 for half types, never rounded to them. Gradients flow through all three.

    Raises:
        ValueError: shapes, types or devices disagree, or a backend asked for by name cannot run these tensors.

    Cost: O(batch length channels) time, two exponentials a number forward and two more backward. Besides k and v the
    backward pass keeps three numbers a channel every 32 tokens. Second derivatives and forward mode go
    through `linear_scan` and hold a few tensors of the size of k.

    Source: Peng et al. 2023, arXiv:2305.13048, section 3 (the WKV operator) and its numerically stable form.
    """
    _check(w, u, k, v, state)
    dtype, wide = _dtypes(w, u, k, v, state)
    name = resolve("wkv", backend, k.device)
    w, u = w.to(wide), u.to(wide)
    if state is None:
        zero = k.new_zeros((k.shape[0], k.shape[2]), dtype=wide)
        state = WKVState(zero, zero, torch.full_like(zero, -torch.inf))
    a, b, p = (t.to(wide) for t in state)
    if name == "reference":
        y, *last = reference.scan(w, u, k.to(wide), v.to(wide), a, b, p)
        return y.to(dtype), WKVState(*last)
    tensors = (w, u, k.to(dtype), v.to(dtype), a, b, p)
    wanted = torch._C._are_functorch_transforms_active() or (
        torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    )
    y, a, b, p, _ = op(*tensors, _TOKENS if wanted else 0, name)
    return y, WKVState(a, b, p)


def _dtypes(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None) -> tuple[torch.dtype, torch.dtype]:
    """The type of y, which k and v decide, and that of the state, which weights of float64 can widen."""
    dtype = torch.promote_types(k.dtype, v.dtype)
    wide = wide_dtype(dtype)
    for t in (w, u, *(state or ())):
        wide = torch.promote_types(wide, t.dtype)
    return (dtype if wide == wide_dtype(dtype) else wide), wide


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None) -> None:
    """Refuse what the docstring excludes, in one sentence."""
    if state is not None and (not isinstance(state, tuple) or len(state) != 3):
        raise ValueError(f"wkv: state must be a WKVState of three tensors or None, got {type(state).__name__}")
    given = {"w": w, "u": u, "k": k, "v": v} | ({} if state is None else WKVState(*state)._asdict())
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"wkv: {name} must be a tensor, got {type(t).__name__}")
        if not t.is_floating_point():
            raise ValueError(f"wkv: {name} must be real floating point, got {t.dtype}")
        if isinstance(k, Tensor) and t.device != k.device:
            raise ValueError(f"wkv: {name} is on {t.device} but k is on {k.device}; they must be on one device")
    if k.ndim != 3:
        raise ValueError(f"wkv: k must be (batch, length, channels), got shape {tuple(k.shape)}")
    batch, _, channels = k.shape
    shapes = {"w": (channels,), "u": (channels,), "v": tuple(k.shape)} | dict.fromkeys("abp", (batch, channels))
    for name, shape in shapes.items():
        if name in given and tuple(given[name].shape) != shape:
            raise ValueError(f"wkv: {name} must have shape {shape}, got {tuple(given[name].shape)}")
