"""What makes a row of scores a row of weights, by name; and the losses that belong to the sparse ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from carrel.ops import entmax, entmax15, sparse_softmax, sparsemax

from .perturb import perturb_max

NORMALIZERS: tuple[str, ...] = (
    "softmax",
    "sparse-softmax",
    "sparsemax",
    "entmax15",
    "entmax",
    "taylor-softmax",
    "relu2",
    "perturb-max",
)
_REDUCTIONS = ("mean", "sum", "none")


def normalize(x: Tensor, kind: str = "softmax", dim: int = -1, mask: Tensor | None = None, **options: Any) -> Tensor:
    r"""Weights that are at least 0 and sum to 1, from scores, by the name of the rule.

    .. math:: \text{softmax: } \frac{e^{x_i}}{\sum_j e^{x_j}}, \qquad
              \text{sparsemax: } \arg\min_{p \in \Delta} \lVert p - x \rVert^2, \qquad
              \text{entmax: } \max\big((\alpha - 1) x_i - \tau, 0\big)^{1 / (\alpha - 1)}, \qquad
              \text{relu2: } \frac{\max(x_i, 0)^2}{\sum_j \max(x_j, 0)^2}

    Args:
        x: real, of any shape. Entries of -inf get 0.
        kind: one of `NORMALIZERS`. All but "taylor-softmax" and "relu2" are blind to a shift of the row.
        dim: the axis that sums to 1.
        mask: bool, broadcastable to x; where False the weight is 0, and so is its gradient.
        options: ``k`` of "sparse-softmax", ``alpha`` of "entmax" (a number or a tensor, see `carrel.ops.entmax`) and
            ``order`` of "taylor-softmax", ``noise``, ``scale`` and ``points`` of "perturb-max".
    Returns p: like x. A row without a visible entry, or for "relu2" without a positive one, is 0 throughout.
    Raises ValueError: an unknown kind, an option that it does not take, what the rule itself refuses.
    Cost: a few passes over x, hundreds for "perturb-max".
    Source: the functions named as the kinds are; arXiv:2109.08668 for "relu2".
    """
    rule = _RULES.get(kind)
    if rule is None:
        raise ValueError(f"normalize wants a kind among {', '.join(NORMALIZERS)}, not {kind!r}")
    if foreign := sorted(options.keys() - set(_OPTIONS.get(kind, ()))):
        own = ", ".join(_OPTIONS.get(kind, ())) or "none"
        raise ValueError(f"normalize wants the options of {kind} ({own}), not {', '.join(foreign)}")
    _check(x, dim, "normalize")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"normalize wants a mask of bool, True where an entry may get weight, not {mask.dtype}")
        try:
            x = torch.where(mask.expand(x.shape), x, -torch.inf)
        except RuntimeError:
            raise ValueError(
                f"normalize wants a mask that broadcasts to {tuple(x.shape)}, not {tuple(mask.shape)}"
            ) from None
    return rule(x, dim=dim, **options)


def taylor_softmax(x: Tensor, order: int = 2, dim: int = -1) -> Tensor:
    r"""Softmax with the exponential cut off after a few terms of its series: heavy tails, and no zeros.

    .. math:: p_i = \frac{f(x_i)}{\sum_j f(x_j)}, \qquad f(x) = \sum_{m=0}^{\text{order}} \frac{x^m}{m!}

    For an even order f is positive. It falls again far below 0 (from -1 on for order 2), and a shift of the row
    matters. Of order 2, f(q·k) is a product of features, 1 + d + d (d + 1) / 2 of them.

    Args:
        x: real, of any shape. Entries of -inf get 0.
        order: even, at least 2.
        dim: the axis that sums to 1.
    Returns p: like x.
    Raises ValueError: an odd order, or x not floating point.   Cost: order multiplications per entry.
    Source: arXiv:1511.05042, section 2.2.
    """
    _check(x, dim, "taylor_softmax")
    if order < 2 or order % 2:
        raise ValueError(f"taylor_softmax wants an even order of at least 2, not {order}")
    hidden = torch.isneginf(x)
    wide = torch.where(hidden, 0.0, x).to(_wide(x))
    value = torch.ones_like(wide)
    for m in range(order, 0, -1):
        value = 1 + value * wide / m
    return _shares(torch.where(hidden, 0.0, value), dim).to(x.dtype)


def entmax_loss(x: Tensor, target: Tensor, alpha: float = 1.5, *, reduction: str = "mean") -> Tensor:
    r"""The loss whose gradient is `entmax` minus the truth; cross-entropy for alpha = 1.

    .. math:: L = \langle p - y, x \rangle + H(p) - H(y), \qquad
              H(p) = \frac{1 - \sum_i p_i^\alpha}{\alpha(\alpha - 1)}, \qquad p = \mathrm{entmax}_\alpha(x), \qquad
              \nabla_x L = p - y

    It is convex and at least 0. For one right class it is exactly 0 once that class leads by 1 / (alpha - 1).

    Args:
        x: (..., classes), scores.
        target: (...) int64, the right class; or a distribution like x.
        alpha: at least 1.
        reduction: "mean", "sum" or "none".
    Returns the loss: one number, or (...) for "none".
    Raises ValueError: alpha below 1, a target of another shape or type, an unknown reduction.
    Cost: one `entmax` and one pass; the backward is one subtraction.   Source: arXiv:1905.05702, section 3.3.
    """
    _check(x, -1, "entmax_loss")
    if not alpha >= 1:
        raise ValueError(f"entmax_loss wants alpha to be at least 1, not {alpha}")
    y = _truth(x, target, "entmax_loss")
    if alpha == 1:
        losses = cross_entropy(x.flatten(0, -2), y.flatten(0, -2), reduction="none").reshape(x.shape[:-1])
        losses = losses + torch.xlogy(y, y).sum(-1)
    else:
        losses = _FenchelYoung.apply(x, y, float(alpha))  # type: ignore[no-untyped-call]
    return _reduce(losses, reduction, "entmax_loss")


def sparsemax_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""The loss whose gradient is `sparsemax` minus the truth.

    .. math:: L = \tfrac12 \sum_{j \in S} (x_j^2 - \tau^2) + \tfrac12 - x_t, \qquad S = \{j : x_j > \tau\}

    for one right class t: 0 exactly where it leads all others by 1 or more. Arguments, returns and errors are those
    of `entmax_loss`.   Source: arXiv:1602.02068, equation 20.
    """
    return entmax_loss(x, target, 2.0, reduction=reduction)


def sparse_softmax_loss(
    x: Tensor, target: Tensor, k: int, *, include_target: bool = True, reduction: str = "mean"
) -> Tensor:
    r"""Cross-entropy over the k largest scores.

    .. math:: L = \log \sum_{j \in \Omega_k} e^{x_j} - x_t

    Args:
        x: (..., classes), scores.
        target: (...) int64, the right class.
        k: scores kept.
        include_target: keeps the right class beside them if it is not among them. Without it the loss may be negative.
        reduction: "mean", "sum" or "none".
    Returns the loss: one number, or (...) for "none".   Raises ValueError: as `sparse_softmax` and `entmax_loss` do.
    Source: arXiv:2112.12433.
    """
    _check(x, -1, "sparse_softmax_loss")
    if target.is_floating_point():
        raise ValueError("sparse_softmax_loss wants the numbers of the right classes, not a distribution")
    right = _truth(x, target, "sparse_softmax_loss") > 0
    wide = x.to(_wide(x))
    kept = sparse_softmax(wide.detach(), k) > 0  # a weight that vanishes would add nothing to the sum
    chosen = torch.where(kept | right if include_target else kept, wide, -torch.inf)
    losses = torch.logsumexp(chosen, -1) - wide.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return _reduce(losses.to(x.dtype), reduction, "sparse_softmax_loss")


class _FenchelYoung(torch.autograd.Function):
    """L(x, y) for y fixed. The way through p adds nothing to the gradient, since p is where the sum is largest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, alpha: float) -> Tensor:
        p = entmax(x, alpha)
        ctx.save_for_backward(x, p, y)
        ctx.alpha = alpha
        wide = _wide(x)
        gap = (p - y).to(wide)
        moved = torch.where(gap == 0, 0.0, gap * (x.to(wide) - x.to(wide).amax(-1, keepdim=True))).sum(-1)
        powers = y.to(wide).pow(alpha).sum(-1) - p.to(wide).pow(alpha).sum(-1)
        return (moved + powers / (alpha * (alpha - 1))).clamp(min=0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, p, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            p = entmax(x, ctx.alpha)
        return gradients[0].unsqueeze(-1) * (p - y), None, None


def _softmax(x: Tensor, dim: int = -1) -> Tensor:
    nothing = torch.isneginf(x.amax(dim, keepdim=True))
    return torch.where(nothing, 0.0, torch.softmax(torch.where(nothing, 0.0, x), dim))


def _relu2(x: Tensor, dim: int = -1) -> Tensor:
    top = x.detach().amax(dim, keepdim=True)
    size = torch.where(top > 0, top, 1.0)  # weights do not depend on it; squares of half types would overflow
    return _shares((torch.relu(x) / size).to(_wide(x)).square(), dim).to(x.dtype)


def _shares(weight: Tensor, dim: int) -> Tensor:
    total = weight.sum(dim, keepdim=True)
    return weight / torch.where(total > 0, total, 1.0)


def _truth(x: Tensor, target: Tensor, name: str) -> Tensor:
    """The target as a distribution like x."""
    if target.is_floating_point() and target.shape == x.shape:
        return target.detach().to(x.dtype)
    if target.dtype != torch.int64 or target.shape != x.shape[:-1]:
        raise ValueError(
            f"{name} wants a target of shape {tuple(x.shape[:-1])} and type int64, or a distribution of shape "
            f"{tuple(x.shape)}, not {tuple(target.shape)} and {target.dtype}"
        )
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < x.shape[-1]:
        raise ValueError(
            f"{name} wants classes from 0 to {x.shape[-1] - 1}, not {int(target.min())} .. {int(target.max())}"
        )
    return torch.zeros_like(x).scatter_(-1, target.unsqueeze(-1), 1.0)


def _reduce(losses: Tensor, reduction: str, name: str) -> Tensor:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name} wants a reduction among {', '.join(_REDUCTIONS)}, not {reduction!r}")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(x: Tensor, dim: int, name: str) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} wants x to be floating point, not {x.dtype}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{name} wants dim to be an axis of x of shape {tuple(x.shape)}, not {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"{name} wants at least one entry along axis {dim}, x has shape {tuple(x.shape)}")


_RULES: dict[str, Callable[..., Tensor]] = {
    "softmax": _softmax,
    "sparse-softmax": sparse_softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "entmax": entmax,
    "taylor-softmax": taylor_softmax,
    "relu2": _relu2,
    "perturb-max": perturb_max,
}
_OPTIONS = {
    "sparse-softmax": ("k",),
    "entmax": ("alpha",),
    "taylor-softmax": ("order",),
    "perturb-max": ("noise", "scale", "points"),
}
