"""How concentrated a row of attention is, and how many directions a whole matrix of it has."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT_KINDS: tuple[str, ...] = ("exp", "identity", "relu2")
_LOWEST = -1e30  # stands for -inf where a difference is taken


class Concentration(NamedTuple):
    """All (...), one number per row. S: E|a| / sqrt(E a²), from 1 / sqrt(n) for one entry alone to 1 for equal ones.
    entropy: of p = |a| / Σ|a|, in nats; NaN where an entry is negative. n_eff: 1 / Σp², which is n S²: entries in
    effect. top: the mass of the largest ones."""

    S: Tensor
    entropy: Tensor
    n_eff: Tensor
    top: Tensor


def concentration(
    attn: Tensor, dim: int = -1, mask: Tensor | None = None, *, top: int = 1, strict: bool = False
) -> Concentration:
    r"""How concentrated the rows of a given matrix are.

    .. math:: S = \frac{\sum_j |a_j|}{\sqrt{n \sum_j a_j^2}}, \qquad H = -\sum_j p_j \ln p_j, \qquad
              n_{\text{eff}} = \frac1{\sum_j p_j^2} = n S^2, \qquad p_j = \frac{|a_j|}{\sum_i |a_i|}

    Args:
        attn: a, real, of any shape; rows need not sum to 1.
        dim: the axis of a row.
        mask: bool, broadcastable to attn; where False an entry is not there, and is not counted in n.
        top: how many of the largest entries are counted as such, at least 1.
        strict: raise for rows of nothing but 0, whose measures are NaN, and for negative entries, which have no
            entropy.
    Returns `Concentration`, each without the axis, float32 at least.
    Raises ValueError: a mask of another shape or type, top below 1; what ``strict`` asks for.
    Cost: a few passes.   Source: kexue.fm/archives/9889; `attention_concentration` needs no matrix.
    """
    if not attn.is_floating_point() or not -attn.dim() <= dim < attn.dim() or top < 1:
        raise ValueError(
            f"concentration wants a real attn that has axis {dim} and top of at least 1, not {attn.dtype} of shape "
            f"{tuple(attn.shape)} and {top}"
        )
    a = attn.detach().to(torch.promote_types(attn.dtype, torch.float32)).movedim(dim, -1)
    count = torch.full(a.shape[:-1], a.shape[-1], dtype=a.dtype, device=a.device)
    if mask is not None:
        try:
            seen = mask.expand(attn.shape).movedim(dim, -1)
        except RuntimeError:
            seen = mask
        if mask.dtype != torch.bool or seen.shape != a.shape:
            raise ValueError(
                f"concentration wants a mask of bool that broadcasts to {tuple(attn.shape)}, not {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        a = torch.where(seen, a, 0.0)
        count = seen.sum(-1).to(a.dtype)
    sums = _Sums(a.shape[:-1], top, a)
    sums.add(a)
    found = sums.result(count)
    if strict and bool(found.S.isnan().any()):
        raise ValueError("concentration wants rows with an entry that is not 0, if strict")
    if strict and bool(found.entropy.isnan().any()):
        raise ValueError("concentration wants entries of at least 0 for an entropy, if strict")
    return found


@torch.no_grad()
def attention_concentration(
    q: Tensor,
    k: Tensor,
    kind: str = "exp",
    *,
    scale: float | None = None,
    causal: bool = False,
    top: int = 1,
    block: int = 512,
) -> Concentration:
    r"""`concentration` of the rows that queries make of keys, from running sums; the matrix is never there.

    .. math:: \text{exp: } a_{ij} = e^{c\, q_i \cdot k_j}, \qquad \text{identity: } a_{ij} = c\, q_i \cdot k_j, \qquad
              \text{relu2: } a_{ij} = \max(c\, q_i \cdot k_j, 0)^2

    Args:
        q: (..., T, d); k: (..., n, d). Give "identity" the features of a linear attention.
        kind: one of `WEIGHT_KINDS`; "exp" is softmax, whose division changes no measure.
        scale: c; None is 1 / sqrt(d).
        causal: the last query sees all keys, the one before it all but the last, and so on.
        top: how many of the largest entries are counted as such, at least 1.
        block: queries and keys that meet at a time.
    Returns `Concentration` of (..., T), float32 at least.
    Raises ValueError: shapes that do not meet, an unknown kind, more queries than keys if causal.
    Cost: one pass of products, 2 T n d, a few operations per score; holds block² scores.
    Source: kexue.fm/archives/9889.
    """
    if q.dim() < 2 or k.dim() != q.dim() or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"attention_concentration wants q (..., T, d) and k (..., n, d), not {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if kind not in WEIGHT_KINDS:
        raise ValueError(f"attention_concentration wants a kind among {', '.join(WEIGHT_KINDS)}, not {kind!r}")
    length, keys = q.shape[-2], k.shape[-2]
    if top < 1 or block < 1 or keys < 1 or (causal and length > keys):
        raise ValueError(
            "attention_concentration wants top and block of at least 1, a key, and no more queries than keys if "
            f"causal, not {top}, {block}, {length} queries and {keys} keys"
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    flat_q, flat_k = (x.reshape(-1, *x.shape[-2:]) for x in (q, k))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    last = keys - length + torch.arange(length, device=q.device) if causal else None  # the last key each query sees
    parts = []
    for one_q, one_k in zip(flat_q, flat_k, strict=True):
        for i in range(0, length, block):
            rows = one_q[i : i + block].to(wide) * factor
            sums = (_Exponentials if kind == "exp" else _Sums)((len(rows),), top, rows)
            ends = last[i : i + block] if last is not None else None
            for j in range(0, keys if ends is None else int(ends[-1]) + 1, block):
                scores = rows @ one_k[j : j + block].to(wide).mT
                hidden = None
                if ends is not None and j + scores.shape[-1] - 1 > int(ends[0]):
                    hidden = torch.arange(j, j + scores.shape[-1], device=q.device) > ends.unsqueeze(-1)
                if kind == "relu2":
                    scores = torch.relu(scores).square()
                sums.add(scores, hidden)
            count = torch.full((len(rows),), keys, dtype=wide, device=q.device) if ends is None else ends.to(wide) + 1
            parts.append(sums.result(count))
    empty = q.new_zeros(0, dtype=wide)
    return Concentration(*(torch.cat([empty, *v]).reshape(q.shape[:-1]) for v in zip(*parts, strict=True)))


def effective_rank(A: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    r"""How many directions a matrix has in effect.

    .. math:: \mathrm{erank}(A) = \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = \frac{\sigma_i}{\sum_j \sigma_j}

    Args:
        A: (..., m, n), real; or its factors (..., m, r) and (..., n, r), of which it is the first times the second
            transposed, such as the features of queries and keys. Those are never multiplied.
    Returns (...), from 1 to the rank; NaN for a matrix of nothing but 0.
    Raises ValueError: not matrices, or factors that do not go together.
    Cost: singular values of A, or two QR decompositions and those of an r by r matrix.
    Source: Roy and Vetterli 2007, definition 1.
    """
    if isinstance(A, Tensor):
        if A.dim() < 2 or not A.is_floating_point():
            raise ValueError(f"effective_rank wants a real matrix (..., m, n), not {A.dtype} of {tuple(A.shape)}")
        core = A
    else:
        left, right = A
        if left.dim() < 2 or left.shape[:-2] != right.shape[:-2] or left.shape[-1] != right.shape[-1]:
            raise ValueError(
                f"effective_rank wants factors (..., m, r) and (..., n, r), not {tuple(left.shape)} and "
                f"{tuple(right.shape)}"
            )
        core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right, mode="r").R.mT
    values = torch.linalg.svdvals(core)
    shares = values / values.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(shares, shares).sum(-1))


class _Sums:
    """Of weights: Σ|a|, Σa², Σ|a| ln|a|, the largest, and whether one was negative."""

    def __init__(self, shape: tuple[int, ...], top: int, like: Tensor) -> None:
        self.one, self.two, self.logs = (like.new_zeros(shape) for _ in range(3))
        self.negative = like.new_zeros(shape, dtype=torch.bool)
        self.largest, self.top = like.new_zeros((*shape, 0)), top

    def add(self, a: Tensor, hidden: Tensor | None = None) -> None:
        if hidden is not None:
            a = a.masked_fill(hidden, 0.0)
        size = a.abs()
        self.one += size.sum(-1)
        self.two += a.square().sum(-1)
        self.logs += torch.xlogy(size, size).sum(-1)
        self.negative |= (a < 0).any(-1)
        self._keep(size)

    def _keep(self, size: Tensor) -> None:
        both = torch.cat([self.largest, size.topk(min(self.top, size.shape[-1])).values], -1)
        self.largest = both.topk(min(self.top, both.shape[-1])).values

    def result(self, count: Tensor) -> Concentration:
        entropy = torch.log(self.one) - self.logs / self.one
        return Concentration(
            self.one / (count * self.two).sqrt(),
            torch.where(self.negative, math.nan, entropy.clamp(min=0)),
            self.one.square() / self.two,
            self.largest.sum(-1) / self.one,
        )


class _Exponentials(_Sums):
    """Of exponentials of scores, as multiples of the largest: the sums of e, e² and e ln e."""

    def __init__(self, shape: tuple[int, ...], top: int, like: Tensor) -> None:
        super().__init__(shape, top, like)
        self.peak = like.new_full(shape, _LOWEST)

    def add(self, a: Tensor, hidden: Tensor | None = None) -> None:
        if hidden is not None:
            a = a.masked_fill(hidden, _LOWEST)
        peak = torch.maximum(self.peak, a.amax(-1))
        back = self.peak - peak
        fade = torch.exp(back)
        below = a - peak.unsqueeze(-1)
        e = torch.exp(below)
        self.logs = (self.logs + back * self.one) * fade + (below * e).sum(-1)
        self.one = self.one * fade + e.sum(-1)
        self.two = self.two * fade.square() + e.square().sum(-1)
        self.peak = peak
        self._keep(a)

    def result(self, count: Tensor) -> Concentration:
        self.largest = torch.exp(self.largest - self.peak.unsqueeze(-1))
        return super().result(count)
