"""`decay_attention`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import resolve, wide_dtype
from . import reference
from .derivatives import op


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    exclusive: bool = False,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Linear attention whose memory fades: a matrix that every token decays, adds to and is answered from.

    .. math:: S_t = \mathrm{diag}(e^{\texttt{log\_decay}_t})\, S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t,

    or :math:`o_t = S_{t-1}^\top q_t` if ``exclusive``. Written out, each value is weighed by a masked product of query
    and key, :math:`o_t = \sum_{s \le t} (q_t \cdot e^{b_t - b_s} k_s)\, v_s`, with b the running sum of log_decay.

    Args:
        q, k: (batch, heads, length, N), real; what asks and what is asked. No scale is applied.
        v: (batch, heads, length, P); what is remembered.
        log_decay: (batch, heads, length), one per head, or (batch, heads, length, N), one per channel of ``k``; at
            most 0. 0 forgets nothing, -1e4 everything.
        state: (batch, heads, N, P), the memory before the first token, or None for zeros.
        exclusive: answer each token before it is added, so that it does not see itself.
        chunk: tokens worked on between two memories that are written down. It changes time and rounding, not results.
        backend: "auto", "reference" (torch, token by token), "cpu" (numba) or "gpu" (Triton).

    Returns:
        o, (batch, heads, length, P), in the type that q, k and v promote to; and the last S_t, (batch, heads, N, P), to
        be fed to the next piece as ``state``. It is float32 for half types and never rounded to them.

    Raises:
        ValueError: shapes, types or devices disagree; a log_decay above 0 (looked for on the CPU only, where it is read
            anyway); chunk below 1; a backend asked for by name that cannot run these tensors.

    Cost: O(batch heads length N P) time; memory for the results and one S per chunk. Second derivatives and forward
    mode go through `linear_scan` and hold every S_t.

    Source: Yang et al. 2023, arXiv:2312.06635, equation 3 (a decay per channel); Sun et al. 2023, arXiv:2307.08621,
    equation 6 (one per head). Our N and P are their d_k and d_v.
    """
    given = {"q": q, "k": k, "v": v, "log_decay": log_decay, "state": state}
    _check(given, chunk)
    dtype, wide = _dtypes(given)
    name = resolve("decay_attention", backend, q.device)
    batch, heads, _, size = q.shape
    state = q.new_zeros((batch, heads, size, v.shape[-1]), dtype=wide) if state is None else state.to(wide)
    log_decay = (log_decay.unsqueeze(-1) if log_decay.ndim == 3 else log_decay).to(wide)
    # of one token the equation itself costs a third of what a kernel does to start
    if name == "reference" or (name == "cpu" and backend == "auto" and q.shape[2] == 1):
        o, last = reference.recur(q.to(wide), k.to(wide), v.to(wide), log_decay, state, exclusive)
        return o.to(dtype), last
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return op(q, k, v, log_decay, state, exclusive, chunk, name)  # type: ignore[return-value]


def _dtypes(given: dict[str, Tensor | None]) -> tuple[torch.dtype, torch.dtype]:
    """The type of o, which q, k and v decide, and that of the memory, which the others can widen."""
    held = {name: x.dtype for name, x in given.items() if x is not None}
    dtype = torch.promote_types(torch.promote_types(held["q"], held["k"]), held["v"])
    wide = torch.promote_types(wide_dtype(dtype), held["log_decay"])
    wide = torch.promote_types(wide, held.get("state", wide))
    return (dtype if wide == wide_dtype(dtype) else wide), wide


def _check(given: dict[str, Tensor | None], chunk: int) -> None:
    """Refuse what the docstring excludes, in one sentence."""
    for name, x in given.items():
        if x is None and name == "state":
            continue
        if not isinstance(x, Tensor):
            raise ValueError(f"decay_attention: {name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(f"decay_attention: {name} must be real floating point, got {x.dtype}")
        if x.device != given["q"].device:  # type: ignore[union-attr]  # q comes first
            raise ValueError(f"decay_attention: {name} is on {x.device}, not on one device with q")
    q, k, v, log_decay, state = given.values()
    assert isinstance(q, Tensor)
    assert isinstance(k, Tensor)
    assert isinstance(v, Tensor)
    assert isinstance(log_decay, Tensor)
    if q.ndim != 4 or q.shape[-1] < 1:
        raise ValueError(f"decay_attention: q must be (batch, heads, length, N) with N >= 1, got {tuple(q.shape)}")
    if k.shape != q.shape:
        raise ValueError(f"decay_attention: k must have the shape of q, {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3] or v.shape[-1] < 1:
        raise ValueError(f"decay_attention: v must be {(*q.shape[:3], 'P')} with P >= 1, got {tuple(v.shape)}")
    if log_decay.shape not in (q.shape[:3], q.shape):
        raise ValueError(
            f"decay_attention: log_decay must be {tuple(q.shape[:3])}, one per head, or {tuple(q.shape)}, one per "
            f"channel, got {tuple(log_decay.shape)}"
        )
    wanted = (*q.shape[:2], q.shape[3], v.shape[3])
    if state is not None and tuple(state.shape) != wanted:
        raise ValueError(f"decay_attention: state must be {wanted}, got {tuple(state.shape)}")
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"decay_attention: chunk must be a whole number of at least 1, got {chunk!r}")
