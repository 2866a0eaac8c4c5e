"""Until the numba kernels: the equations in torch, so that every route of `decay_attention` runs."""

from __future__ import annotations

from torch import Tensor

from . import derivatives, reference


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """o like v and the last memory like ``state``."""
    wide = (x.to(state.dtype) for x in (q, k, v))
    o, last = reference.recur(*wide, log_decay, state, exclusive)
    return o.to(v.dtype), last


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, log_decay and state."""
    return derivatives._formula(q, k, v, log_decay, state, g, g_last, exclusive, chunk, "cpu")
