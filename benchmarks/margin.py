"""Margin softmax by chunks of classes beside pytorch-metric-learning and plain torch, in time and in bytes."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from carrel.ops import margin_softmax_loss

from .case import Bar, Case, Problem, Side

_ROWS, _CLASSES, _DIM, _SCALE, _MARGIN = 256, 100_000, 128, 30.0, 0.35
_PLAIN, _PEER = "plain torch", "pytorch-metric-learning CosFaceLoss"


def _plain(z: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Normalise, multiply, subtract in place, torch's cross-entropy."""
    cosines = normalize(z, dim=-1) @ normalize(weight, dim=-1).mT
    lowered = cosines.new_full((len(z), 1), -_MARGIN)
    return cross_entropy(cosines.scatter_add_(-1, target.unsqueeze(-1), lowered).mul_(_SCALE), target)


def _drawn(classes: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_ROWS, _DIM, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(classes, _DIM, generator=generator).to(device, dtype).requires_grad_()
    return z, weight, torch.randint(classes, (_ROWS,), generator=generator).to(device)


def _problem(device: torch.device) -> Problem:
    z, weight, target = _drawn(_CLASSES, device)

    def check() -> float:
        few = _drawn(3000, device)
        exact = [x.detach().double().requires_grad_() for x in few[:2]]
        wanted, found = _plain(exact[0], exact[1], few[2]), margin_softmax_loss(*few, scale=_SCALE, margin=_MARGIN)
        pairs = zip(torch.autograd.grad(found, few[:2]), torch.autograd.grad(wanted, exact), strict=True)
        return max(float((found - wanted).abs()), *(float((x - y).abs().max() / y.abs().max()) for x, y in pairs))

    def ours() -> object:
        return torch.autograd.grad(margin_softmax_loss(z, weight, target, scale=_SCALE, margin=_MARGIN), (z, weight))

    def plain() -> object:
        return torch.autograd.grad(_plain(z, weight, target), (z, weight))

    sides: dict[str, Side] = {"carrel margin_softmax_loss": ours, _PLAIN: plain}
    absent = {}
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        absent[_PEER] = "not installed"
    else:
        from pytorch_metric_learning.losses import CosFaceLoss

        module = CosFaceLoss(num_classes=_CLASSES, embedding_size=_DIM, margin=_MARGIN, scale=_SCALE).to(device)
        sides[_PEER] = lambda: torch.autograd.grad(module(z, target), (z, module.W))
    return Problem(check, 1e-5, sides, absent=absent, memory=True)


CASES = (
    Case(
        "margin-softmax",
        f"forward and backward, {_ROWS} rows of {_DIM}, {_CLASSES} classes, float32",
        _problem,
        bars=(Bar(_PLAIN, 1), Bar(_PEER, 1)),
        rounds=5,
        warmup=1,
    ),
    Case(
        "gpu-margin-softmax",
        f"forward and backward, {_ROWS} rows of {_DIM}, {_CLASSES} classes, float32",
        _problem,
        "cuda",
    ),
)
