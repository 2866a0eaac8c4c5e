"""`margin_softmax_loss`: classes as directions, the right one with a handicap."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._kernel_op import wide_dtype
from . import reference
from .chunked import Chunked

_KINDS = ("cos", "arc", "combined")
_REDUCTIONS = ("mean", "sum", "none")


def margin_softmax_loss(
    z: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: float = 30.0,
    margin: float = 0.35,
    kind: str = "cos",
    m: tuple[float, float, float] = (1.0, 0.0, 0.0),
    *,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of cosines in which the right class has to win by a margin.

    .. math:: L = -\log \frac{e^{s\,\varphi(\theta_t)}}{e^{s\,\varphi(\theta_t)} + \sum_{j \ne t} e^{s \cos\theta_j}},
              \qquad \cos\theta_j = \frac{z \cdot w_j}{\lVert z \rVert\, \lVert w_j \rVert}

    .. math:: \text{cos: } \varphi = \cos\theta - \mu, \qquad \text{arc: } \varphi = \cos(\theta + \mu), \qquad
              \text{combined: } \varphi = \cos(m_1 \theta + m_2) - m_3

    Beyond half a turn, where the cosine would rise again, "arc" goes on as cos θ - μ sin μ and "combined" by turning
    every other half wave round, so that a larger angle always costs more.

    Args:
        z: (B, D), features; their lengths do not matter.
        weight: (C, D), one direction per class; their lengths do not matter.
        target: (B,) int64, the right classes.
        scale: s, above 0, one over the temperature.
        margin: μ, at least 0, for "arc" at most π / 2; a difference of cosines for "cos", an angle for "arc".
        kind: "cos", "arc" or "combined".
        m: m1 of at least 1, m2 and m3 of at least 0, read by "combined" alone.
        reduction: "mean", "sum" or "none".
    Returns the loss: one number, or (B,) for "none"; float32 for half types, else like z.
    Raises ValueError: shapes, types or devices disagree, an argument out of range; on the CPU also a row of zeros and
        a class that is not there.
    Cost: two products of z with weight forward and backward, plus two for the gradients; by chunks of classes, so that
        neither way holds B x C numbers. Differentiated twice, or under forward mode and torch.func, it holds them.
    Source: arXiv:1801.05599, equation 6 (cos, m = μ); arXiv:1801.07698, equations 3 and 4 (arc and combined).
    """
    _check(z, weight, target, scale, margin, kind, m, reduction)
    z, weight = z.to(wide_dtype(z.dtype)), weight.to(wide_dtype(weight.dtype))
    with torch.autocast(z.device.type, enabled=False):
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            losses = reference.losses(z, weight, target, scale, kind, margin, m)
        else:
            losses = Chunked.apply(z, weight, target, float(scale), kind, float(margin), m)  # type: ignore[no-untyped-call]
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _check(
    z: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: float,
    margin: float,
    kind: str,
    m: tuple[float, float, float],
    reduction: str,
) -> None:
    name = "margin_softmax_loss"
    if z.dim() != 2 or weight.dim() != 2 or z.shape[1] != weight.shape[1] or len(weight) < 1:
        raise ValueError(
            f"{name} wants z (B, D) and weight (C, D) with C of at least 1, not {tuple(z.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if not z.is_floating_point() or z.dtype != weight.dtype:
        raise ValueError(f"{name} wants z and weight of one floating-point type, not {z.dtype} and {weight.dtype}")
    if target.shape != z.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"{name} wants a target of shape {tuple(z.shape[:1])} and type int64, not {tuple(target.shape)} and "
            f"{target.dtype}"
        )
    if not z.device == weight.device == target.device:
        raise ValueError(
            f"{name} wants all on one device, not z on {z.device}, weight on {weight.device}, target on {target.device}"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"{name} wants a finite scale above 0, not {scale}")
    if kind not in _KINDS:
        raise ValueError(f"{name} wants a kind among {', '.join(_KINDS)}, not {kind!r}")
    if not 0 <= margin < math.inf or (kind == "arc" and margin > math.pi / 2):
        raise ValueError(f"{name} wants a margin of at least 0, and of at most π / 2 for arc, not {margin}")
    if len(m) != 3 or not (1 <= m[0] < math.inf and 0 <= m[1] < math.inf and 0 <= m[2] < math.inf):
        raise ValueError(f"{name} wants m of three: m1 of at least 1, m2 and m3 of at least 0, not {m}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name} wants a reduction among {', '.join(_REDUCTIONS)}, not {reduction!r}")
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or z.is_cuda or not len(z):
        return  # symbols, wrappers, and a look that would make a GPU wait
    if not 0 <= int(target.min()) <= int(target.max()) < len(weight):
        raise ValueError(
            f"{name} wants classes from 0 to {len(weight) - 1}, not {int(target.min())} .. {int(target.max())}"
        )
    for label, x in (("z", z), ("weight", weight)):
        zero = (x.detach().abs().amax(-1) == 0).nonzero()
        if len(zero):
            raise ValueError(f"{name} wants rows that have a direction, but row {int(zero[0])} of {label} is zero")
