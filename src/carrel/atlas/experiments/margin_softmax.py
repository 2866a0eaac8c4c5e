"""What a margin does to the directions of handwritten digits, and a lower scale instead; that chunks change nothing.

A network of two layers puts images on a circle or a sphere. Every margin gets the same sweep of scales and learning
rates; held-out accuracy chooses, then the held-out gap, and other images judge.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from carrel.atlas.experiments.digit_training import Digits
from carrel.atlas.report import Report, number, progress
from carrel.ops import margin_softmax_loss

from .fitting import rise_and_fall

_REAL = torch.float64
_BATCH, _CLASSES, _PLANE = 64, 10, 2
_SCALES, _RATES = (8.0, 30.0), (1e-2, 3e-2)


class _Side(NamedTuple):
    """One run, judged on images that neither trained nor chose anything."""

    scale: float
    rate: float
    held: tuple[float, float]
    accuracy: float
    within: float
    nearest: float

    @property
    def gap(self) -> float:
        return self.within - self.nearest


def run(*, seed: int, dim: int, margin: float, hidden: int, steps: int, classes: int) -> Report:
    torch.set_num_threads(1)
    report = Report("margin-softmax")
    generator = torch.Generator().manual_seed(seed)
    _exactness(report, generator)
    counts = [classes // 16, classes // 4, classes]
    ours, dense = zip(*(_largest(n, generator) for n in counts), strict=True)
    report.check("Largest tensor over that of all cosines, by chunks", ours[-1] / dense[-1], high=0.25)
    report.curve(
        "Numbers in the largest tensor that was made, 256 rows of 16, forward and backward",
        x=counts,
        y={"by chunks of classes": ours, "all cosines at once": dense},
        x_label="classes",
        y_label="numbers",
        log="xy",
    )

    data = _centred(Digits(seed))
    margins = [0.0, margin / 2, margin]
    dims = sorted({_PLANE, dim})
    rules = [("cos", m) for m in margins] + [("arc", margin)]
    runs: dict[tuple[int, str, float, float], _Side] = {}
    for i, size in enumerate(dims):
        for j, (kind, m) in enumerate(rules):
            progress((i + j / len(rules)) / len(dims), f"{size} dimensions, {kind}, margin {number(m)}")
            for scale in _SCALES:
                sides = [_trained(data, size, hidden, kind, m, scale, rate, steps) for rate in _RATES]
                runs[size, kind, m, scale] = max(sides, key=lambda side: side.held)
    tuned = {(size, kind, m): max((runs[size, kind, m, s] for s in _SCALES), key=lambda side: side.held)
             for size in dims for kind, m in rules}  # fmt: skip

    report.check("Accuracy without a margin, tuned", tuned[dims[-1], "cos", 0.0].accuracy, low=0.5)
    report.curve(
        "Gap between classes on unseen images",
        x=margins,
        y={
            f"{size} dimensions, scale {s:g}": [runs[size, "cos", m, s].gap for m in margins]
            for size in dims
            for s in _SCALES
        },
        x_label="margin, a difference of cosines",
        y_label="cosine with the own centre less that with the nearest other",
    )
    report.curve(
        "Accuracy on unseen images",
        x=margins,
        y={
            f"{size} dimensions, scale {s:g}": [100 * runs[size, "cos", m, s].accuracy for m in margins]
            for size in dims
            for s in _SCALES
        },
        x_label="margin, a difference of cosines",
        y_label="accuracy (%)",
    )
    columns = ["dimensions", "kind", "margin", "scale", "rate", "accuracy (%)", "own centre", "nearest other", "gap"]
    rows = []
    for (size, kind, m), side in tuned.items():
        chosen = [number(m), number(side.scale), number(side.rate)]
        rows.append([size, kind, *chosen, 100 * side.accuracy, side.within, side.nearest, side.gap])
    report.table("Scale and learning rate chosen by held-out accuracy", columns, rows)
    _judge(report, runs, tuned, dims[-1], margin)
    return report


def _judge(report: Report, runs: Any, tuned: Any, dim: int, margin: float) -> None:
    slack = 0.02  # of the accuracy; one standard error of 360 images is about half of it
    pairs = [(runs[dim, "cos", 0.0, s], runs[dim, "cos", margin, s]) for s in _SCALES]
    wider = all(b.gap > a.gap and b.accuracy >= a.accuracy - slack for a, b in pairs)
    plain, best = tuned[dim, "cos", 0.0], tuned[dim, "cos", margin]
    wider_tuned = best.gap > plain.gap and best.accuracy >= plain.accuracy - slack
    low, high = _SCALES
    as_wide = runs[dim, "cos", 0.0, low].gap > 0.9 * runs[dim, "cos", margin, high].gap
    if wider and wider_tuned and not as_wide:
        report.verdict("holds", "Where classes have room the margin widens the gap between them at equal accuracy.")
    elif wider and wider_tuned:
        report.verdict(
            "caveat",
            "Where classes have room the margin widens the gap between them at equal accuracy, at either scale; but a "
            "lower scale without any margin opens it about as far as the margin does at the usual, higher scale. On a "
            "circle, too small for ten classes, the gap widens too and accuracy moves either way.",
        )
    elif wider:
        report.verdict(
            "caveat",
            "The margin widens the gap at either scale, but no longer once each side has chosen its own scale.",
        )
    else:
        report.verdict("not-shown", "Here the margin does not widen the gap at equal accuracy.")


def _centred(data: Digits) -> Digits:
    """Without the mean image of those that are trained on, which two dimensions cannot do with."""
    mean = data.seen[0].mean(0)
    data.seen, data.held, data.unseen = ((x - mean, y) for x, y in (data.seen, data.held, data.unseen))
    return data


def _trained(
    data: Digits, dim: int, hidden: int, kind: str, margin: float, scale: float, rate: float, steps: int
) -> _Side:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        weight = nn.Parameter(torch.randn(_CLASSES, dim))
    optimiser = torch.optim.AdamW([*net.parameters(), weight], lr=rate, weight_decay=0.01, fused=True)
    schedule = rise_and_fall(optimiser, rate, steps)
    generator = torch.Generator().manual_seed(data.seed)
    x, y = data.seen[0].squeeze(-1), data.seen[1]
    for _ in range(steps):
        rows = torch.randint(len(y), (_BATCH,), generator=generator)
        loss = margin_softmax_loss(net(x[rows]), weight, y[rows], scale, margin, kind)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        seen = normalize(net(x), dim=-1)
        centres = normalize(torch.stack([seen[y == digit].mean(0) for digit in range(_CLASSES)]), dim=-1)
        held = _judged(net, weight, centres, data.held)
        accuracy, within, nearest = _judged(net, weight, centres, data.unseen)
    return _Side(scale, rate, (held[0], held[1] - held[2]), accuracy, within, nearest)


def _judged(net: nn.Module, weight: Tensor, centres: Tensor, part: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    """Accuracy, and the mean cosine with the centre of the own class and with the nearest other one."""
    z, y = normalize(net(part[0].squeeze(-1)), dim=-1), part[1]
    right = (z @ normalize(weight, dim=-1).mT).argmax(-1) == y
    cosines = z @ centres.mT
    own = cosines.gather(-1, y.unsqueeze(-1))
    others = cosines.scatter(-1, y.unsqueeze(-1), -math.inf).amax(-1)
    return float(right.double().mean()), float(own.mean()), float(others.mean())


def _exactness(report: Report, generator: torch.Generator) -> None:
    z = torch.randn(40, 12, generator=generator, dtype=_REAL)
    weight = torch.randn(5000, 12, generator=generator, dtype=_REAL)
    target = torch.randint(5000, (40,), generator=generator)
    both = z.clone().requires_grad_(), weight.clone().requires_grad_()
    cosines = normalize(both[0], dim=-1) @ normalize(both[1], dim=-1).mT
    right = target.unsqueeze(-1)
    error = 0.0
    for kind in ("cos", "arc"):
        own = cosines.gather(-1, right)
        own = own - 0.35 if kind == "cos" else torch.cos(torch.acos(own) + 0.35)
        wanted = cross_entropy(30 * cosines.scatter(-1, right, own), target)
        found = margin_softmax_loss(*both, target, kind=kind)
        gradients = zip(
            torch.autograd.grad(found, both), torch.autograd.grad(wanted, both, retain_graph=True), strict=True
        )
        error = max(error, float((found - wanted).detach().abs()), *(float((a - b).abs().max()) for a, b in gradients))
    report.check("Loss and gradients against the definition", error, high=1e-12)
    losses = torch.stack(
        [margin_softmax_loss(z, weight, target, margin=m / 20, kind=kind, reduction="none") for kind in ("cos", "arc")
         for m in range(20)]
    ).unflatten(0, (2, 20))  # fmt: skip
    report.check("Least change of a loss as its margin grows", losses.diff(dim=1).min(), low=0.0)
    stretched = margin_softmax_loss(100 * z, 0.01 * weight, target, reduction="none")
    plain = margin_softmax_loss(z, weight, target, reduction="none")
    report.check("Loss after stretching features and classes, change", (stretched - plain).abs().max(), high=1e-12)


class _Watch(TorchDispatchMode):
    """The most numbers in any one tensor that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.numbers = max([self.numbers, *(x.numel() for x in made if isinstance(x, Tensor))])
        return out


def _largest(classes: int, generator: torch.Generator) -> tuple[int, int]:
    """By chunks, and with all cosines at once."""
    z = torch.randn(256, 16, generator=generator, requires_grad=True)
    weight = torch.randn(classes, 16, generator=generator, requires_grad=True)
    target = torch.randint(classes, (256,), generator=generator)
    with _Watch() as ours:  # type: ignore[no-untyped-call]
        torch.autograd.grad(margin_softmax_loss(z, weight, target), (z, weight))
    with _Watch() as dense:  # type: ignore[no-untyped-call]
        cosines = normalize(z, dim=-1) @ normalize(weight, dim=-1).mT
        lowered = torch.full((256, 1), -0.35)
        loss = cross_entropy(30 * cosines.scatter_add(-1, target.unsqueeze(-1), lowered), target)
        torch.autograd.grad(loss, (z, weight))
    return ours.numbers, dense.numbers
