"""Weights from noise: against draws, with tails of six kinds, and what soft samples do to a gradient."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from carrel.atlas.report import Report, number, progress
from carrel.attention import NOISES, gumbel_max, gumbel_softmax, perturb_max

_REAL = torch.float64
_SPREAD = math.pi / math.sqrt(6)  # of Gumbel's noise, a standard deviation
_UNIT = {  # of each noise at scale 1
    "gumbel": _SPREAD,
    "normal": 1.0,
    "logistic": math.pi / math.sqrt(3),
    "uniform": 1 / math.sqrt(12),
    "exponential": 1.0,
    "laplace": math.sqrt(2),
}
_GAPS = [0.25 * k for k in range(49)]
_EDGES = (0.0, 1.0, 2.0, 4.0, 6.0, 9.0, math.inf)
_TAUS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def run(*, seed: int, entries: int, size: float, points: int, draws: int) -> Report:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    report = Report("perturb-max")
    x = size * torch.randn(40, entries, generator=generator, dtype=_REAL)
    weights = {noise: perturb_max(x, noise, _SPREAD / _UNIT[noise], points) for noise in NOISES}
    report.check("Gumbel's noise against softmax", (weights["gumbel"] - torch.softmax(x, -1)).abs().max(), high=1e-10)
    smooth = [perturb_max(x, noise, points=points, normalized=False) for noise in ("gumbel", "normal", "logistic")]
    report.check("Sum before division, distance from 1", max((1 - p.sum(-1)).abs().max() for p in smooth), high=1e-9)
    report.check("Gradient against differences, normal noise", _slope_error(x[:2], points, generator), high=1e-6)
    progress(0.1, "draws")
    few = size * torch.randn(6, generator=generator, dtype=_REAL)
    report.check("Largest distance from draws, standard errors", _from_draws(few, points, draws, generator), high=5.0)
    picked = gumbel_max(few.expand(draws, -1), generator)[:, 0]
    off = _errors(torch.softmax(few, -1), torch.bincount(picked, minlength=6), draws)
    report.check("Gumbel-max draws against softmax, standard errors", off, high=5.0)
    key = int(torch.randint(1 << 30, (), generator=generator))
    whole, pieces = (
        gumbel_max(form, torch.Generator().manual_seed(key), 3) for form in (x, x.split([1, 4, entries - 5], -1))
    )
    report.check("Draws that change when rows come in pieces", (whole != pieces).sum(), high=0)

    progress(0.5, "tails")
    gaps = torch.tensor([[0.0, -gap] for gap in _GAPS], dtype=_REAL)
    tails = {noise: perturb_max(gaps, noise, _SPREAD / _UNIT[noise], 512)[:, 1].tolist() for noise in NOISES}
    report.curve(
        "Weight of the lower of two scores, all noise of one variance",
        x=_GAPS,
        y={noise: [max(p, 1e-16) for p in tail] for noise, tail in tails.items() if noise != "uniform"},
        x_label="gap between the two scores",
        y_label="weight of the lower one",
        log="y",
    )
    report.table(
        f"Mass (%) by how far a score lies below the largest, {entries} scores of size {number(size)}",
        ["gap", *NOISES],
        [[_range(low, high), *(_mass(x, p, low, high) for p in weights.values())]
         for low, high in itertools.pairwise(_EDGES)],
    )  # fmt: skip
    counts = [16, 32, 64, 128, 256, 512]
    exact = perturb_max(few, points=4096)
    report.curve(
        "Error for normal noise",
        x=counts,
        y={
            "shared points (here)": [_apart(perturb_max(few, points=n), exact) for n in counts],
            "quantiles of each score's own noise": [_apart(_by_quantiles(few, n), exact) for n in counts],
        },
        x_label="points",
        y_label="largest error of a weight",
        log="xy",
    )
    progress(0.7, "soft samples")
    bias, scatter = zip(*(_relaxed(few, tau, draws // 10, generator) for tau in _TAUS), strict=True)
    report.curve(
        "Gradient of an expectation by soft samples",
        x=list(_TAUS),
        y={"error of the mean": bias, "scatter of one sample": scatter},
        x_label="temperature τ",
        y_label="relative to the gradient's length",
        log="xy",
    )
    share = torch.tensor(tails["normal"]) / torch.tensor(tails["gumbel"])
    crossing = min((gap for gap, s in zip(_GAPS, share.tolist(), strict=True) if gap > 0 and s < 1), default=math.inf)
    far = [_mass(x, weights[noise], 6.0, math.inf) for noise in ("normal", "gumbel")]
    near = [_mass(x, weights[noise], 0.5, 2.0) for noise in ("normal", "gumbel")]
    if crossing <= 3.5 and share[-1] < 1e-3 and far[0] < far[1] and near[0] <= near[1]:
        report.verdict("holds", "Normal noise leaves less than softmax does to scores that are not near the largest.")
    elif crossing <= 3.5 and share[-1] < 1e-3 and far[0] < far[1]:
        report.verdict(
            "caveat",
            "Of two scores the lower one gets less than from softmax only beyond a gap of about three, and then ever "
            "less; scores that are closer keep a little more.",
        )
    else:
        report.verdict("not-shown", "At these sizes normal noise leaves no less to low scores than softmax does.")
    return report


def _noise(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    u = torch.rand(shape, generator=generator, dtype=_REAL).clamp(min=1e-300)
    if kind == "gumbel":
        return -torch.log(-torch.log(u))
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=_REAL)
    if kind == "logistic":
        return torch.logit(u)
    if kind == "uniform":
        return u
    if kind == "exponential":
        return -torch.log(u)
    return torch.log(u) - torch.log(torch.rand(shape, generator=generator, dtype=_REAL).clamp(min=1e-300))


def _from_draws(x: Tensor, points: int, draws: int, generator: torch.Generator) -> float:
    worst = 0.0
    for kind in NOISES:
        scale = _SPREAD / _UNIT[kind]
        found = torch.bincount((x + scale * _noise(kind, (draws, len(x)), generator)).argmax(-1), minlength=len(x))
        worst = max(worst, _errors(perturb_max(x, kind, scale, points), found, draws))
    return worst


def _errors(p: Tensor, counts: Tensor, draws: int) -> float:
    """The largest distance in standard errors, for weights that ten draws or more should show."""
    shown = p * draws >= 10
    return float(((counts / draws - p).abs() / (p * (1 - p) / draws).sqrt())[shown].max())


def _slope_error(x: Tensor, points: int, generator: torch.Generator) -> float:
    """Along one direction, by fourth-order differences."""
    leaf = x.clone().requires_grad_()
    along, g = (torch.randn(x.shape, generator=generator, dtype=_REAL) for _ in range(2))
    (found,) = torch.autograd.grad(perturb_max(leaf, points=points), leaf, g)
    step = 1e-2
    near, far = (
        ((perturb_max(x + h * along, points=points) - perturb_max(x - h * along, points=points)) * g).sum() / (2 * h)
        for h in (step, 2 * step)
    )
    return abs(float((found * along).sum() - (4 * near - far) / 3))


def _by_quantiles(x: Tensor, count: int) -> Tensor:
    """The mean, over the quantiles of a score's own noise, of the chance that no other is above it."""
    e = torch.special.ndtri((torch.arange(count, dtype=_REAL) + 0.5) / count)
    chance = torch.special.ndtr(x[:, None, None] - x[None, :, None] + e)
    return torch.where(torch.eye(len(x), dtype=torch.bool)[..., None], 1.0, chance).prod(1).mean(-1)


def _apart(p: Tensor, exact: Tensor) -> float:
    return max(float((p - exact).abs().max()), 1e-17)


def _mass(x: Tensor, p: Tensor, low: float, high: float) -> float:
    gap = x.amax(-1, keepdim=True) - x
    return 100 * float(torch.where((gap >= low) & (gap < high), p, 0.0).sum(-1).mean())


def _range(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"


def _relaxed(x: Tensor, tau: float, samples: int, generator: torch.Generator) -> tuple[float, float]:
    """Of soft samples' gradients of E v: how far their mean is off, and how far one of them is from the mean."""
    v = torch.linspace(-1, 1, len(x), dtype=_REAL).square() + torch.linspace(0, 1, len(x), dtype=_REAL)
    p = torch.softmax(x, -1)
    exact = p * (v - (p * v).sum())
    leaf = x.expand(samples, -1).clone().requires_grad_()
    (each,) = torch.autograd.grad((gumbel_softmax(leaf, tau, True, generator) * v).sum(), leaf)
    mean = each.mean(0)
    size = float(exact.norm())
    return float((mean - exact).norm()) / size, float((each - mean).square().sum(-1).mean().sqrt()) / size
