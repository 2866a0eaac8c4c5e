"""How the spread of a softmax changes with length, and where it passes on most gradient: estimates beside averages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.attention import attention_scale, gradient_size

_BASE, _SPREADS, _PLANTED = 512, (1.0, 2.0, 3.0), 4
_ENTRIES = 1 << 22  # numbers held at once
_COMPARED = (128, 512, 2048)


def run(*, seed: int, rows: int, longest: int, planted: float) -> Report:
    generator = torch.Generator().manual_seed(seed)
    report = Report("attention-scale")
    lengths = [128 * 4**k for k in range(int(math.log(longest / 128, 4) + 1e-9) + 1)]
    spread = _Spread(lengths, rows, planted, generator)
    progress(0.6, "gradients")
    climbs = {n: _Climb(n, rows, generator) for n in _COMPARED}

    closed = attention_scale(torch.tensor(_COMPARED), 1, "gradmax-normal").tolist()
    numeric = [_by_halving(n) for n in _COMPARED]
    report.check(
        "Closed form against the estimate's maximum found by halving",
        max(abs(a - b) for a, b in zip(closed, numeric, strict=True)),
        high=1e-6,
    )
    report.check("Gradient against the Jacobian's entries, relative", _jacobian_error(generator), high=1e-10)
    one = climbs[512]
    gain = float(one.exact(2.5) / one.exact(1.0))
    report.check("Gradient at 2.5 over that at 1, 512 keys", gain, low=1.9)

    report.curve(
        "Keys that a row attends to, at three sizes of scores",
        x=lengths,
        y={
            **{f"1/√d, scores of size {s:g}": spread.keys[s, False] for s in _SPREADS},
            **{f"ln n, scores of size {s:g}": spread.keys[s, True] for s in _SPREADS},
        },
        x_label="keys that compete",
        y_label="effective keys, 1 / Σp²",
        log="xy",
    )
    report.curve(
        "Gradient of a softmax over 512 keys",
        x=one.at.tolist(),
        y={"exact average": one.mean.tolist(), "estimate": one.estimate.clamp(min=0).tolist()},
        x_label="factor a",
        y_label="gradient a (1 − Σp²)",
        log="x",
    )
    report.table(
        "Entropy (nats) by length",
        ["keys", *(f"size {s:g}, {rule}" for s in _SPREADS for rule in ("1/√d", "ln n"))],
        [[n, *(spread.entropy[s, log][i] for s in _SPREADS for log in (False, True))] for i, n in enumerate(lengths)],
    )
    report.table(
        f"Mass on {_PLANTED} keys at {planted:g} among noise of size 1",
        ["keys", "1/√d", "ln n"],
        [[n, *(spread.found[log][i] for log in (False, True))] for i, n in enumerate(lengths)],
    )
    report.table(
        "The factor with the largest gradient",
        ["keys", "closed form", "per row, median", "Σp² at the closed form: estimate", "exact"],
        [
            [n, a, float(climbs[n].best.median()), math.exp(a * a) / n, climbs[n].concentration(a)]
            for n, a in zip(_COMPARED, closed, strict=True)
        ],
    )
    steady = abs(spread.entropy[3.0, True][-1] - spread.entropy[3.0, True][lengths.index(_BASE)]) <= 0.4
    drifts = spread.entropy[3.0, False][-1] - spread.entropy[3.0, False][lengths.index(_BASE)]
    slows = spread.entropy[1.0, True][-1] < spread.entropy[1.0, False][-1]
    peak_passed = all(float(c.exact(8.0) / c.exact(a)) > 1.2 for a, c in zip(closed, climbs.values(), strict=True))
    if steady and drifts > 1 and slows and peak_passed:
        report.verdict(
            "caveat",
            "The factor ln n holds the spread steady where scores are large, as in trained heads, and only slows it "
            "where they are small; and the exact average of the gradient goes on rising well past the closed form.",
        )
    elif steady and drifts > 1:
        report.verdict(
            "holds", "The factor ln n holds the spread steady; the gradient is largest near the closed form."
        )
    else:
        report.verdict("not-shown", "At these sizes the factor ln n does not hold the spread steady.")
    return report


class _Spread:
    """Averages over random rows, by size of the scores and with or without the factor ln n / ln 512."""

    def __init__(self, lengths: list[int], rows: int, planted: float, generator: torch.Generator) -> None:
        both = (False, True)
        self.entropy: dict[tuple[float, bool], list[float]] = {(s, log): [] for s in _SPREADS for log in both}
        self.keys: dict[tuple[float, bool], list[float]] = {(s, log): [] for s in _SPREADS for log in both}
        self.found: dict[bool, list[float]] = {log: [] for log in both}
        for n in lengths:
            progress(0.6 * n / sum(lengths), f"{n} keys")
            noise = torch.randn(max(8, min(rows, _ENTRIES // n)), n, generator=generator)
            target = noise.clone()
            target[:, :_PLANTED] = planted
            for log in both:
                factor = (attention_scale(n, 1, "entropy", base=_BASE) if log else torch.ones(())).item()
                for s in _SPREADS:
                    p = torch.softmax(factor * s * noise, -1)
                    self.entropy[s, log].append(float(-torch.xlogy(p, p).sum(-1).mean()))
                    self.keys[s, log].append(float(1 / p.square().sum(-1).mean()))
                self.found[log].append(float(torch.softmax(factor * target, -1)[:, :_PLANTED].sum(-1).mean()))


class _Climb:
    """The gradient of a softmax over n normal scores as its factor grows, averaged over rows."""

    def __init__(self, n: int, rows: int, generator: torch.Generator) -> None:
        self.scores = torch.randn(rows, n, generator=generator, dtype=torch.float64)
        self.at = torch.exp(torch.linspace(math.log(0.25), math.log(64), 41, dtype=torch.float64))
        each = torch.stack([gradient_size(self.scores, float(a)) for a in self.at])
        self.mean, self.best = each.mean(1), self.at[each.argmax(0)]
        self.estimate = self.at * (1 - torch.exp(self.at.clamp(max=20) ** 2) / n)

    def exact(self, a: float) -> Tensor:
        return gradient_size(self.scores, a).mean()

    def concentration(self, a: float) -> float:
        return float(torch.softmax(a * self.scores, -1).square().sum(-1).mean())


def _by_halving(n: int) -> float:
    """Where the slope of a - a exp(a^2) / n changes sign."""
    low, high = 0.0, math.sqrt(math.log(n) + 1)
    for _ in range(80):
        a = (low + high) / 2
        low, high = (a, high) if math.exp(a * a) * (1 + 2 * a * a) / n < 1 else (low, a)
    return low


def _jacobian_error(generator: torch.Generator) -> float:
    row = torch.randn(30, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda s: torch.softmax(1.7 * s, -1), row)
    return abs(float(gradient_size(row, 1.7) / (jacobian.abs().sum() / 2)) - 1)
