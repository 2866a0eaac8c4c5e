"""The same loss by chunks of classes: one product of matrices each, an online sum of exponentials, and nothing kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import reference

_LOGITS = {"cpu": 1 << 17, "cuda": 1 << 24}  # of one chunk: half a MiB in float32 stays in a core's cache
_LEAST = 64  # classes of one chunk, however many rows there are


class Chunked(torch.autograd.Function):
    """losses (B,) from z (B, D) and weight (C, D), which are float32 or float64."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        target: Tensor,
        scale: float,
        kind: str,
        margin: float,
        m: tuple[float, float, float],
    ) -> Tensor:
        shrink = 1 / z.norm(dim=-1, keepdim=True)
        direction = z * shrink
        right = (direction * torch.nn.functional.normalize(weight[target], dim=-1, eps=0.0)).sum(-1)
        lowered, slope = reference.lowered_cosine(right, kind, margin, m)
        inverse = 1 / weight.norm(dim=-1)
        top = torch.full_like(right, -scale)  # no logit is below it
        total = torch.zeros_like(right)
        scaled = scale * direction
        for start, classes in _chunks(weight, inverse, len(z)):
            logits = _put(scaled @ classes.mT, target, start, -math.inf)
            higher = torch.maximum(top, logits.amax(-1))
            total = total * torch.exp(top - higher) + logits.sub_(higher.unsqueeze(-1)).exp_().sum(-1)
            top = higher
        lead = top + total.log() - scale * lowered  # of all the others together over the right class
        ctx.save_for_backward(z, weight, target, direction, shrink, inverse, slope, lead, scale * lowered)
        ctx.rule = (scale, kind, margin, m)
        return torch.logaddexp(lead, torch.zeros_like(lead))

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, target, direction, shrink, inverse, slope, lead, logit = ctx.saved_tensors
        scale, kind, margin, m = ctx.rule
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            again = reference.losses(z, weight, target, scale, kind, margin, m)
            both = [x for x in (z, weight) if x.requires_grad]
            found = iter(torch.autograd.grad(again, both, arrived[0], create_graph=True))
            return (*(next(found) if x.requires_grad else None for x in (z, weight)), *(None,) * 5)
        wanted_z, wanted_weight = ctx.needs_input_grad[:2]
        to_z = torch.zeros_like(direction)
        to_weight = torch.empty_like(weight) if wanted_weight else None
        scaled, sent = scale * direction, (scale * arrived[0]).unsqueeze(-1) * direction
        below = -(logit + torch.logaddexp(lead, torch.zeros_like(lead))).unsqueeze(-1)  # minus the log of the sum
        missing = -torch.sigmoid(lead) * slope
        for start, classes in _chunks(weight, inverse, len(z)):
            shares = _put(torch.addmm(below, scaled, classes.mT).exp_(), target, start, missing)
            if wanted_z:
                to_z.addmm_(shares, classes)
            if to_weight is not None:
                part = shares.mT @ sent
                along = (part * classes).sum(-1, keepdim=True)
                stop = start + len(classes)
                to_weight[start:stop] = part.addcmul_(classes, along, value=-1).mul_(inverse[start:stop].unsqueeze(-1))
        if not wanted_z:
            return None, to_weight, None, None, None, None, None
        to_z = to_z * (scale * arrived[0]).unsqueeze(-1)
        to_z = (to_z - direction * (to_z * direction).sum(-1, keepdim=True)) * shrink
        return to_z, to_weight, None, None, None, None, None


def _chunks(weight: Tensor, inverse: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Classes of length 1, and the number of the first of them."""
    size = max(_LEAST, _LOGITS.get(weight.device.type, _LOGITS["cpu"]) // max(rows, 1))
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size] * inverse[start : start + size].unsqueeze(-1)


def _put(chunk: Tensor, target: Tensor, start: int, value: Tensor | float) -> Tensor:
    """Write a value where a row's right class is in this chunk; without looking, so that no GPU has to wait."""
    place = (target - start).unsqueeze(-1)
    inside = (place >= 0) & (place < chunk.shape[-1])
    place = place.clamp(0, chunk.shape[-1] - 1)
    new = value.unsqueeze(-1) if isinstance(value, Tensor) else value
    return chunk.scatter_(-1, place, torch.where(inside, new, chunk.gather(-1, place)))
