"""Training on the k largest scores: from scratch, and on from a model that another world has taught with all scores.

The classes of both worlds are points with noise around them; in the second they have moved, and a few examples of each
must do. Every side gets its own learning rate, the best of three on one fixed seed at half the steps.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from carrel.atlas.report import Report, number, progress
from carrel.attention import largest_part, normalize, softmax_part, sparse_softmax_loss
from carrel.ops import sparse_softmax

from .fitting import rise_and_fall

_CHANNELS, _HIDDEN, _NOISE, _MOVED, _SHOTS = 24, 128, 0.9, 0.5, 4
_BATCH, _TESTED, _SWEEP_SEED = 128, 4000, 1000
_RATES = (0.003, 0.01, 0.03)
_FEW = (1, 3)  # beside the k that was asked for


class Draw(NamedTuple):
    """x: (rows, channels); y: (rows,) int64."""

    x: Tensor
    y: Tensor


def run(*, seed: int, classes: int, k: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _report(seed, classes, k, steps)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, classes: int, k: int, steps: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    report = Report("sparse-softmax")
    x = 2 * torch.randn(200, 1000, generator=generator, dtype=torch.float64)
    _exactness(report, x, k)
    kept = sorted({*_FEW, k, classes})
    trained = _Trained(seed, classes, kept, steps)
    report.curve(
        f"Classes named right, of {classes}",
        x=kept,
        y={way: [scores[few].right for few in kept] for way, scores in trained.scores.items()},
        x_label="scores that training keeps",
        y_label="share named right",
        log="x",
    )
    for way, scores in trained.scores.items():
        report.table(
            f"{way}: after {trained.steps[way]} steps of {_BATCH}",
            ["scores kept", "learning rate", "right (%)", "weight of the right class", "cross-entropy, all scores"],
            [[_name(few, classes), number(s.rate), 100 * s.right, s.weight, s.loss] for few, s in scores.items()],
        )
        report.table(
            f"{way}: choosing the learning rate, share right after half the steps at one seed",
            ["scores kept", *(number(rate) for rate in _RATES)],
            [[_name(few, classes), *trained.sweep[way][few]] for few in kept],
        )
    report.table(
        f"Forward and backward of 1024 rows of 1000, k = {k}, float32, one thread",
        ["rule", "time (ms)", "times softmax"],
        _times(2 * torch.randn(1024, 1000, generator=generator), k),
    )
    scratch, tuned = (scores[k].right - scores[classes].right for scores in trained.scores.values())
    if scratch <= -0.02 and tuned >= 0.005:
        report.verdict("holds", "Few scores do better than all in fine-tuning, and starve the model from scratch.")
    elif tuned >= 0.005:
        report.verdict("caveat", "Few scores do better than all in fine-tuning, but from scratch nothing starves.")
    elif scratch <= -0.02:
        report.verdict("caveat", "Few scores starve the model from scratch, but do no better than all in fine-tuning.")
    else:
        report.verdict(
            "not-shown",
            "With each rate tuned, the few largest scores train about as well as all of them, in fine-tuning and from "
            "scratch: nothing is gained, and what one step drops gets its gradient in another.",
        )
    return report


def _name(few: int, classes: int) -> str:
    return "all" if few == classes else str(few)


def _exactness(report: Report, x: Tensor, k: int) -> None:
    p = sparse_softmax(x, k)
    softmax = torch.softmax(x, -1)
    order = x.argsort(dim=-1, descending=True, stable=True)[:, :k]
    wanted = torch.zeros_like(x).scatter(-1, order, torch.softmax(x.gather(-1, order), -1))
    report.check("Against sorting", (p - wanted).abs().max(), high=1e-12)
    report.check("Weights above zero, distance from k", ((p > 0).sum(-1) - k).abs().max(), high=0)
    report.check("All kept, against softmax", (sparse_softmax(x, x.shape[-1]) - softmax).abs().max(), high=1e-12)
    v = torch.randn(*x.shape, 4, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    cuts = list(zip(x.split(130, -1), v.split(130, -2), range(0, 1000, 130), strict=True))
    whole = (softmax.unsqueeze(-2) @ v).squeeze(-2)
    worst = 0.0
    for pieces in (cuts, cuts[::-1], cuts[::2] + cuts[1::2]):
        o = reduce(lambda a, b: a.merge(b), (softmax_part(scores, own) for scores, own, _ in pieces)).result()
        worst = max(worst, float((o - whole).abs().max()))
    report.check("Softmax in pieces, merged in three orders", worst, high=1e-12)
    parts = (largest_part(scores, k, first) for scores, _, first in cuts[::-1])
    found = reduce(lambda a, b: a.merge(b, k), parts)
    report.check("Largest in pieces, other keys than in the whole", (found.keys != order).sum(), high=0)


class _Score(NamedTuple):
    rate: float
    right: float
    weight: float
    loss: float


class _Trained:
    """A model for every number of scores kept, from scratch and on from the model that kept all of them."""

    def __init__(self, seed: int, classes: int, kept: list[int], steps: int) -> None:
        self.steps = {"From scratch": steps, "Fine-tuning": max(1, 2 * steps // 3)}
        self.scores: dict[str, dict[int, _Score]] = {way: {} for way in self.steps}
        self.sweep: dict[str, dict[int, list[float]]] = {way: {} for way in self.steps}
        self._done, self._all = 0, sum(self.steps.values()) * len(kept) * (1 + len(_RATES) / 2)
        self._classes = classes
        trial, own = _World(_SWEEP_SEED, classes), _World(seed, classes)
        bases: list[nn.Module] = []
        for way, length in self.steps.items():
            for few in kept[::-1]:  # all of them first: the base of what is tuned
                starts = (trial.start(), own.start()) if not bases or way == "From scratch" else bases
                halves = [self._train(copy.deepcopy(starts[0]), trial, way, length // 2, r, few) for r in _RATES]
                found = self.sweep[way][few] = [trial.score(way, model, few)[0] for model in halves]
                best = max(range(len(_RATES)), key=found.__getitem__)
                model = self._train(copy.deepcopy(starts[1]), own, way, length, _RATES[best], few)
                self.scores[way][few] = _Score(_RATES[best], *own.score(way, model, few))
                if not bases:
                    bases = [halves[best], model]

    def _train(self, model: nn.Module, world: _World, way: str, steps: int, rate: float, few: int) -> nn.Module:
        optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        schedule = rise_and_fall(optimiser, rate, steps)
        for _ in range(steps):
            x, y = world.examples(way)
            loss = sparse_softmax_loss(model(x), y, few) if few < self._classes else cross_entropy(model(x), y)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        self._done += steps
        progress(min(0.99, self._done / self._all), f"{way}, {_name(few, self._classes)} kept")
        return model


class _World:
    """Where the classes lie, before and after they moved."""

    def __init__(self, seed: int, classes: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._seed, self._classes = seed, classes
        first = self._normal(classes, _CHANNELS)
        second = (1 - _MOVED**2) ** 0.5 * first + _MOVED * self._normal(classes, _CHANNELS)
        self._at = {"From scratch": first, "Fine-tuning": second}
        self._few = self._drawn(second, torch.arange(classes).repeat(_SHOTS))
        self._test = {way: self._drawn(at, self._classes_at_random(_TESTED)) for way, at in self._at.items()}

    def start(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return nn.Sequential(nn.Linear(_CHANNELS, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, self._classes))

    def examples(self, way: str) -> Draw:
        if way == "From scratch":
            return self._drawn(self._at[way], self._classes_at_random(_BATCH))
        rows = torch.randint(len(self._few.y), (_BATCH,), generator=self._generator)
        return Draw(self._few.x[rows], self._few.y[rows])

    @torch.no_grad()
    def score(self, way: str, model: nn.Module, few: int) -> tuple[float, float, float]:
        """Share named right; the right class's weight under the rule of training; cross-entropy of all scores."""
        x, y = self._test[way]
        logits = model(x)
        weight = normalize(logits, "sparse-softmax", k=few).gather(-1, y[:, None]).mean()
        return float((logits.argmax(-1) == y).double().mean()), float(weight), float(cross_entropy(logits, y))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _classes_at_random(self, rows: int) -> Tensor:
        return torch.randint(self._classes, (rows,), generator=self._generator)

    def _drawn(self, at: Tensor, y: Tensor) -> Draw:
        return Draw(at[y] + _NOISE * self._normal(len(y), _CHANNELS), y)


def _times(x: Tensor, k: int) -> list[list[str | float]]:
    g = torch.randn_like(x)

    def selected(t: Tensor) -> Tensor:
        values, index = t.topk(k, -1)
        return torch.zeros_like(t).scatter(-1, index, torch.softmax(values, -1))

    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": partial(torch.softmax, dim=-1),
        "sparse softmax": partial(sparse_softmax, k=k),
        "torch.topk and softmax": selected,
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(7):
        for name, side in sides.items():
            leaf = x.detach().requires_grad_()
            began = time.perf_counter()
            torch.autograd.grad(side(leaf), leaf, g)
            best[name] = min(best[name], time.perf_counter() - began)
    return [[name, 1e3 * seconds, seconds / best["softmax"]] for name, seconds in best.items()]
