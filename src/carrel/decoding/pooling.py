"""Distributions of the next token, one per context, pooled into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Pooling = str | Callable[[Tensor, Tensor], Tensor]
POOLINGS = ("min-entropy", "mean", "max")

_FLOOR = -100.0  # log-probabilities below this count as none at all


class PoolInfo(NamedTuple):
    """Which context spoke, and how sure each one was.

    chosen: (batch,) int64, the context that the likeliest token comes from; -1 where it comes from all of them.
    entropies: (batch, contexts) in nats, each context's entropy after the filter.
    """

    chosen: Tensor
    entropies: Tensor


class Pooled(NamedTuple):
    """What `pool` knows. speaker: (batch, vocab) int64, the context behind each token's value, -1 for all of them."""

    logits: Tensor
    speaker: Tensor
    entropies: Tensor

    def chosen(self, token: Tensor) -> Tensor:
        return self.speaker.gather(-1, token[:, None])[:, 0]


def pool(
    logp_ctx: Tensor,
    logp_free: Tensor,
    pooling: Pooling = "min-entropy",
    beta: float = 0.25,
    top_p: float = 0.95,
    *,
    renormalize: bool = False,
) -> tuple[Tensor, PoolInfo]:
    r"""Logits of the next token given many contexts, each of which the model has read alone.

    .. math:: z = (\beta + 1)\, P_k[\log p(t \mid S_k)] - \beta \log p(t)

    With P the mean, :math:`\beta = n - 1` and no filter this is Bayes' rule for contexts that are independent given
    the answer. ``"min-entropy"`` takes the context whose distribution has the least entropy, ``"max"`` each token's
    largest value, ``"mean"`` the average.

    Args:
        logp_ctx: (batch, n, vocab), logits or log-probabilities, one row per context; -inf is allowed.
        logp_free: (batch, vocab), those without any context.
        pooling: one of the three names, or a function of the filtered log-probabilities (batch, n, vocab) and their
            entropies (batch, n) that returns (batch, vocab).
        beta: how much of the model's own opinion is taken away, at least -1; -1 leaves that opinion alone.
        top_p: of every row only the likeliest tokens that together have this probability are kept, the rest becomes
            -inf; a token as likely as the last one kept is kept too. 1 keeps all.
        renormalize: whether what is kept is made to sum to one again, before the entropy. The published code does not.
    Where the model's own log-probability is below -100 or was filtered out, the pooled value stands alone. Should the
    filter leave a row no token that all contexts of a mean share, that row is pooled without it.
    Returns logits (batch, vocab), float32 at least, unnormalised; and :class:`PoolInfo`.
    Raises ValueError: another shape, pooling, beta or top_p, no context, or a row with NaN, +inf or nothing but -inf.
    Cost: n + 1 rows of the vocabulary, read a few times; the filter sorts each.
    Source: Su 2023, https://kexue.fm/archives/9617.
    """
    pooled = pool_all(logp_ctx, logp_free, pooling, beta, top_p, renormalize)
    return pooled.logits, PoolInfo(pooled.chosen(pooled.logits.argmax(-1)), pooled.entropies)


def pool_all(
    logp_ctx: Tensor, logp_free: Tensor, pooling: Pooling, beta: float, top_p: float, renormalize: bool
) -> Pooled:
    check_options(pooling, beta, top_p)
    _check_rows(logp_ctx, logp_free)
    rows = torch.cat((logp_free[:, None], logp_ctx), 1)
    full = rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)
    kept = nucleus(full, top_p)
    if renormalize:
        kept = kept.log_softmax(-1)
    free, each = kept[:, 0], kept[:, 1:]
    entropies = -(each.exp() * each.clamp(min=_FLOOR)).sum(-1)
    best, speaker = _pooled(pooling, each, entropies)
    if pooling == "mean":
        lost = best.isneginf().all(-1, keepdim=True)
        if lost.any():
            best = torch.where(lost, _pooled(pooling, full[:, 1:], entropies)[0], best)
    if beta == -1:
        return Pooled(free, torch.full_like(speaker, -1), entropies)
    # where the own opinion is missing the branch not taken would be -inf - -inf
    known = free >= _FLOOR
    merged = (beta + 1) * best - beta * torch.where(known, free, 0.0)
    return Pooled(torch.where(known, merged, best), speaker, entropies)


def _pooled(pooling: Pooling, each: Tensor, entropies: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, vocab) of values and of the contexts they come from."""
    batch, _, vocab = each.shape
    if pooling == "min-entropy":
        chosen = entropies.argmin(-1)
        return each[torch.arange(batch, device=each.device), chosen], chosen[:, None].expand(batch, vocab)
    if pooling == "max":
        best = each.max(1)
        return best.values, best.indices
    of_all = torch.full((batch, 1), -1, device=each.device).expand(batch, vocab)
    if pooling == "mean":
        return each.mean(1), of_all
    assert callable(pooling)
    value = pooling(each, entropies)
    if not isinstance(value, Tensor) or tuple(value.shape) != (batch, vocab):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"a pooling function should return a tensor of shape {(batch, vocab)}, not {got}")
    return value, of_all


def nucleus(logp: Tensor, top_p: float) -> Tensor:
    """Log-probabilities (…, vocab) with -inf for all but the likeliest tokens that together reach ``top_p``."""
    if top_p >= 1:
        return logp
    values = logp.detach()
    # numpy sorts numbers alone many times faster than torch sorts them with their places
    if values.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(values.numpy(), -1))
    else:
        ordered = values.sort(-1).values
    ordered = ordered.flip(-1)
    mass = ordered.exp().cumsum(-1, dtype=torch.float64)
    last = (mass < top_p).sum(-1, keepdim=True).clamp(max=logp.shape[-1] - 1)
    return logp.masked_fill(logp < ordered.gather(-1, last), float("-inf"))


def check_options(pooling: Pooling, beta: float, top_p: float) -> None:
    if not callable(pooling) and pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)} or a function, not {pooling!r}")
    if not -1 <= beta < float("inf"):
        raise ValueError(f"beta should be at least -1, not {beta}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p should be above 0 and at most 1, not {top_p}")


def _check_rows(logp_ctx: Tensor, logp_free: Tensor) -> None:
    if logp_ctx.dim() != 3 or logp_free.shape != (logp_ctx.shape[0], logp_ctx.shape[2]):
        raise ValueError(
            "pool wants (batch, contexts, vocab) and (batch, vocab), "
            f"not {tuple(logp_ctx.shape)} and {tuple(logp_free.shape)}"
        )
    if not logp_ctx.shape[1]:
        raise ValueError("pool wants at least one context, not none")
    if not (logp_ctx.is_floating_point() and logp_free.is_floating_point()):
        raise TypeError(f"pool wants real numbers, not {logp_ctx.dtype} and {logp_free.dtype}")
    for name, rows in (("without context", logp_free[:, None]), ("of context", logp_ctx)):
        # NaN and +inf make the largest of a row infinite as well, so one look at each row's largest is enough
        well = rows.amax(-1).isfinite()
        if not bool(well.all()):
            which = f" {int((~well).nonzero()[0, 1])}" if name == "of context" else ""
            raise ValueError(f"the logits {name}{which} are not finite: NaN, infinite, or nothing but -inf")
