"""The loss as it is defined, with all B x C cosines at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EDGE = 1e-7  # cosines nearer to 1 or -1 than this are taken for that: an angle has no slope there


def losses(
    z: Tensor, weight: Tensor, target: Tensor, scale: float, kind: str, margin: float, m: tuple[float, float, float]
) -> Tensor:
    """(B,), in torch's own differentiable operations."""
    cosines = (z / z.norm(dim=-1, keepdim=True)) @ (weight / weight.norm(dim=-1, keepdim=True)).mT
    place = target.unsqueeze(-1)
    right = cosines.gather(-1, place)
    lowered, _ = lowered_cosine(right, kind, margin, m)
    others = cosines.scatter(-1, place, -math.inf)
    return torch.logaddexp(torch.logsumexp(scale * others, -1), scale * lowered.squeeze(-1)) - scale * lowered.squeeze(
        -1
    )


def lowered_cosine(cosine: Tensor, kind: str, margin: float, m: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """What stands for the right class's cosine, and the slope of that."""
    if kind == "cos":
        return cosine - margin, torch.ones_like(cosine)
    inner = (cosine > -1 + _EDGE) & (cosine < 1 - _EDGE)
    c = torch.where(inner, cosine, cosine.detach().clamp(-1 + _EDGE, 1 - _EDGE))
    sine = torch.sqrt((1 - c) * (1 + c))
    if kind == "arc":
        turned = c > -math.cos(margin)  # the angle and the margin together stay below half a turn
        value = torch.where(turned, c * math.cos(margin) - sine * math.sin(margin), c - margin * math.sin(margin))
        slope = torch.where(turned, math.cos(margin) + math.sin(margin) * c / sine, 1.0)
    else:
        factor, added, lower = m
        angle = factor * torch.acos(c) + added
        half_turns = torch.floor(angle.detach() / math.pi)
        sign = 1 - 2 * torch.remainder(half_turns, 2)
        value = sign * torch.cos(angle) - 2 * half_turns - lower
        slope = sign * torch.sin(angle) * factor / sine
    return value, torch.where(inner, slope, 0.0)
