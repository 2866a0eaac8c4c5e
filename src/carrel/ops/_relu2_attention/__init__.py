"""`relu2_attention`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._kernel_op import resolve, wide_dtype
from . import reference
from .derivatives import op


def relu2_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    count: float | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Attention whose weights are squares of positive scores, divided by a count and not by their sum.

    .. math:: o_i = \frac{1}{n_i} \sum_{j \le i + m} \mathrm{relu}(c\, q_i \cdot k_j)^2\, v_j

    With neither maximum nor sum, keys may be split into any blocks whose results add up. Negative scores weigh nothing,
    and so does a key of zeros.

    Args:
        q: (batch, heads, length, N), real.
        k, v: (batch, heads, columns, N) and (batch, heads, columns, P).
        causal: queries are the last ``length`` of the columns, and each sees those up to its own: m above is
            columns - length, what came before. If False every query sees every column.
        scale: c, times a score (no unit); 1 / √N if None.
        count: n, above 0. None is the number of columns that a query sees, i + 1 + m; a number stands for all queries;
            a tensor, (length,) or (batch, length), for each.
        backend: "auto", "reference" (torch), "cpu" (matrix products, block by block) or "gpu" (Triton).
    Returns o: (batch, heads, length, P), in the type that q, k and v promote to; half types are summed in float32.
    Raises ValueError: shapes, types or devices disagree; more queries than columns if causal; a count given as a number
        that is not above 0; a backend asked for by name that cannot run these tensors.
    Cost: 2 (N + P) operations per pair of query and key seen, forward, and 6 N + 4 P backward. Memory for results and
        one block of pairs; the reference, second derivatives and forward mode hold all pairs.
    Source: Hua et al. 2022, arXiv:2202.10447, section 3.1, where n² stands in place of n / c²; the square is of
        arXiv:2109.08668.
    """
    _check(q, k, v, causal)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    wide = wide_dtype(dtype)
    name = resolve("relu2_attention", backend, q.device)
    # the square root of 1 / n goes into the query: nothing is multiplied pair by pair, and no square overflows
    factor = _root(q, k.shape[2], causal, count, wide) * (q.shape[-1] ** -0.5 if scale is None else scale)
    q = q.to(wide) * factor
    if name == "reference":
        return reference.attend(q, k.to(wide), v.to(wide), causal).to(dtype)
    (o,) = op(q, k.to(dtype), v.to(dtype), causal, name)
    return o


def _root(q: Tensor, columns: int, causal: bool, count: float | Tensor | None, wide: torch.dtype) -> Tensor | float:
    """1 / sqrt(n), to be multiplied with q."""
    batch, _, length, _ = q.shape
    if isinstance(count, Tensor):
        if tuple(count.shape) not in ((length,), (batch, length)) or count.device != q.device:
            raise ValueError(
                f"relu2_attention: count must be {(length,)} or {(batch, length)} on the device of q, "
                f"got {tuple(count.shape)} on {count.device}"
            )
        count = count if count.ndim == 1 else count.unsqueeze(1)
        return count.to(torch.float64).rsqrt().to(wide).unsqueeze(-1)
    if count is None and causal:
        seen = torch.arange(columns - length + 1, columns + 1, dtype=torch.float64, device=q.device)
        return seen.rsqrt().to(wide).unsqueeze(-1)
    count = max(columns, 1) if count is None else count
    if not 0 < count < math.inf:
        raise ValueError(f"relu2_attention: count must be a finite number above 0, got {count}")
    return count**-0.5


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    """Refuse what the docstring excludes, in one sentence."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"relu2_attention: {name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(f"relu2_attention: {name} must be real floating point, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"relu2_attention: {name} is on {x.device}, not on one device with q")
    if q.ndim != 4 or q.shape[-1] < 1:
        raise ValueError(f"relu2_attention: q must be (batch, heads, length, N) with N >= 1, got {tuple(q.shape)}")
    if k.ndim != 4 or (*k.shape[:2], k.shape[3]) != (*q.shape[:2], q.shape[3]):
        wanted = (*q.shape[:2], "columns", q.shape[3])
        raise ValueError(f"relu2_attention: k must be {wanted}, got {tuple(k.shape)}")
    if v.ndim != 4 or v.shape[:3] != k.shape[:3] or v.shape[-1] < 1:
        raise ValueError(f"relu2_attention: v must be {(*k.shape[:3], 'P')} with P >= 1, got {tuple(v.shape)}")
    if causal and k.shape[2] < q.shape[2]:
        raise ValueError(
            "relu2_attention: causal queries are the last of the columns, "
            f"but there are {q.shape[2]} queries and {k.shape[2]} columns"
        )
