"""Weights from noise by shared points beside the definition, and soft samples beside torch's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax as torch_gumbel_softmax

from carrel.attention import gumbel_softmax, perturb_max

from .case import Bar, Case, Problem, Side

_ENTRIES, _POINTS = 1000, 256
_PAIRS, _SOFTMAX = "every pair of scores", "torch gumbel_softmax"


def _every_pair(x: Tensor, points: int) -> Tensor:
    """The mean over the quantiles of a score's own normal noise, one score at a time so that it fits into memory."""
    e = torch.special.ndtri((torch.arange(points, dtype=x.dtype, device=x.device) + 0.5) / points)
    rows = []
    for i in range(len(x)):
        logs = torch.special.log_ndtr(x[i] - x[:, None] + e)
        rows.append(torch.exp(logs.sum(0) - logs[i]).mean())
    return torch.stack(rows)


def _weights(device: torch.device) -> Problem:
    x = 2 * torch.randn(_ENTRIES, generator=torch.Generator().manual_seed(0)).to(device)

    def check() -> float:
        few = x[:20].double()
        return float((perturb_max(few.float()).double() - _every_pair(few, 100_000)).abs().max())

    sides: dict[str, Side] = {
        "carrel perturb_max": lambda: perturb_max(x, points=_POINTS),
        _PAIRS: lambda: _every_pair(x, _POINTS),
        "torch softmax": lambda: torch.softmax(x, -1),
    }
    return Problem(check, 1e-5, sides)


def _samples(device: torch.device) -> Problem:
    x = torch.randn(64, 10_000, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)

    def check() -> float:
        """How far the share of draws that fall on the first entry is from softmax's."""
        p = torch.tensor([0.3, 0.7], device=device)
        drawn = gumbel_softmax(p.log().expand(1_000_000, 2), generator=torch.Generator().manual_seed(0))
        return abs(float((drawn[:, 0] > 0.5).double().mean()) - 0.3)

    sides: dict[str, Side] = {
        "carrel gumbel_softmax": lambda: torch.autograd.grad(gumbel_softmax(x), x, g),
        _SOFTMAX: lambda: torch.autograd.grad(torch_gumbel_softmax(x), x, g),
    }
    return Problem(check, 2e-3, sides)


CASES = (
    Case(
        "perturb-max",
        f"normal noise, {_ENTRIES} scores, {_POINTS} points, float32",
        _weights,
        bars=(Bar(_PAIRS, 50),),
        rounds=3,
        warmup=1,
    ),
    Case("gumbel-softmax", "forward and backward, 64 rows of 10000, float32", _samples, rounds=5),
)
