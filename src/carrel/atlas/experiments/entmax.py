"""How many weights are above zero by alpha, alpha learnt per head from outputs alone, and the time that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.attention import entmax_loss, normalize
from carrel.ops import entmax

_REAL = torch.float64
_ALPHAS = (1.1, 1.25, 4 / 3, 1.5, 1.75, 2.0)
_TEACHERS = (1.1, 1.3, 1.6, 2.0)
_QUERIES, _KEYS, _CHANNELS = 16, 40, 16
_HALVINGS = 50


def run(*, seed: int, rows: int, entries: int, size: float, steps: int) -> Report:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    report = Report("entmax")
    x = size * torch.randn(rows, entries, generator=generator, dtype=_REAL)
    supports = [_support(entmax(x, alpha)) for alpha in _ALPHAS]
    gap = max(float((entmax(x, a) - halving(x, a)).abs().max()) for a in _ALPHAS)
    report.check("Against halving the interval, for six alphas", gap, high=1e-9)
    report.check("Slope in alpha against a difference quotient", _slope_error(x[:20, :60]), high=1e-6)
    report.check("Gradient of the loss against weights minus truth", _loss_error(x[:20, :60]), high=1e-12)
    report.check(
        "Support at the next alpha over that at the last, largest ratio",
        max(b / a for a, b in pairwise(supports)),
        high=1.0,
    )
    start, learnt = _learn(generator, steps)
    error = max(abs(a - t) for a, t in zip(learnt[-1], _TEACHERS, strict=True))
    report.check("Learnt alpha against the teacher's, worst head", error, high=0.1)

    report.curve(
        f"Weights above zero among {entries} scores of size {size:g}",
        x=list(_ALPHAS),
        y=supports,
        x_label="alpha",
        y_label="weights above zero",
        log="y",
    )
    report.curve(
        "Alpha of four heads while they learn",
        x=start,
        y={f"teacher {t:g}": [row[h] for row in learnt] for h, t in enumerate(_TEACHERS)},
        x_label="training steps",
        y_label="alpha",
    )
    report.table(
        f"Forward and backward of 256 rows of {entries}, float32, one thread",
        ["rule", "time (ms)", "times softmax"],
        _times(size * torch.randn(256, entries, generator=generator)),
    )
    report.table("Weights above zero", [f"alpha {a:.4g}" for a in _ALPHAS], [supports])
    if error < 0.1 and supports == sorted(supports, reverse=True) and supports[-1] < entries:
        report.verdict(
            "holds",
            "Supports shrink steadily from softmax to sparsemax, and every head finds the alpha of its teacher.",
        )
    else:
        report.verdict("caveat", "Supports shrink with alpha, but not every head finds its teacher's alpha.")
    return report


def halving(x: Tensor, alpha: float, rounds: int = _HALVINGS) -> Tensor:
    """Entmax the usual way: tau lies within [-1, 0] below the largest score, and every round halves that."""
    z = (alpha - 1) * (x - x.amax(-1, keepdim=True))
    low = -torch.ones_like(z[..., :1])
    width = torch.ones_like(low)
    for _ in range(rounds):
        width = width / 2
        mass = (z - low - width).clamp(min=0).pow(1 / (alpha - 1)).sum(-1, keepdim=True)
        low = torch.where(mass >= 1, low + width, low)
    p = (z - low).clamp(min=0).pow(1 / (alpha - 1))
    return p / p.sum(-1, keepdim=True)


class _Halving(torch.autograd.Function):
    """The closed-form gradient, as such packages have it."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> Tensor:  # type: ignore[no-untyped-def]
        p = halving(x, alpha)
        ctx.save_for_backward(p)
        ctx.alpha = alpha
        return p

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (p,) = ctx.saved_tensors
        s = torch.where(p > 0, p.pow(2 - ctx.alpha), 0.0)
        (g,) = gradients
        return s * (g - (s * g).sum(-1, keepdim=True) / s.sum(-1, keepdim=True)), None


def _learn(generator: torch.Generator, steps: int) -> tuple[list[int], list[list[float]]]:
    """Heads that see queries, keys, values and a teacher's outputs, and learn alpha alone; the course of it."""
    heads = len(_TEACHERS)
    teacher = torch.tensor(_TEACHERS, dtype=_REAL).view(heads, 1, 1)
    free = torch.zeros(heads, 1, 1, dtype=_REAL, requires_grad=True)  # alpha = 1 + softplus
    optimiser = torch.optim.Adam([free], lr=0.03)
    at, course = [], []
    for step in range(steps + 1):
        alpha = 1 + torch.nn.functional.softplus(free)
        if step % max(1, steps // 50) == 0 or step == steps:
            progress(0.2 + 0.7 * step / steps, f"learning alpha, step {step}")
            at.append(step)
            course.append(alpha.flatten().tolist())
        q, k, v = (torch.randn(heads, n, _CHANNELS, generator=generator, dtype=_REAL) for n in (_QUERIES, _KEYS, _KEYS))
        scores = q @ k.mT * 2 / _CHANNELS**0.5
        wanted = normalize(scores, "entmax", alpha=teacher) @ v
        loss = (normalize(scores, "entmax", alpha=alpha) @ v - wanted).square().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return at, course


def _times(x: Tensor) -> list[list[str | float]]:
    g = torch.randn_like(x)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": partial(torch.softmax, dim=-1),
        "sparsemax": partial(normalize, kind="sparsemax"),
        "entmax, alpha 1.5": partial(normalize, kind="entmax15"),
        "entmax, alpha 1.25": partial(normalize, kind="entmax", alpha=1.25),
        f"alpha 1.25 by {_HALVINGS} halvings in torch": lambda t: _Halving.apply(t, 1.25),  # type: ignore[no-untyped-call]
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(7):
        for name, side in sides.items():
            leaf = x.detach().requires_grad_()
            began = time.perf_counter()
            torch.autograd.grad(side(leaf), leaf, g)
            best[name] = min(best[name], time.perf_counter() - began)
    return [[name, 1e3 * seconds, seconds / best["softmax"]] for name, seconds in best.items()]


def _support(p: Tensor) -> float:
    return float((p > 0).sum(-1).double().mean())


def _slope_error(x: Tensor) -> float:
    alpha, step = torch.tensor([1.4], dtype=_REAL, requires_grad=True), 1e-6
    weight = torch.linspace(-1, 1, x.shape[-1], dtype=_REAL)
    (slope,) = torch.autograd.grad((entmax(x, alpha) * weight).sum(), alpha)
    ahead, behind = ((entmax(x, alpha.detach() + s) * weight).sum() for s in (step, -step))
    return float((slope - (ahead - behind) / (2 * step)).abs().max())


def _loss_error(x: Tensor) -> float:
    x, target = x.clone().requires_grad_(), torch.arange(len(x)) % x.shape[-1]
    (dx,) = torch.autograd.grad(entmax_loss(x, target, 1.25, reduction="sum"), x)
    p = entmax(x.detach(), 1.25)
    p[torch.arange(len(x)), target] -= 1
    return float((dx - p).abs().max())
