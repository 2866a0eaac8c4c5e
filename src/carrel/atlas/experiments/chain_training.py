"""Training to predict Markov chains whose transitions are new in every sequence, and the least loss that there is.

Each sequence follows a transition matrix of its own, rows drawn from a Dirichlet law. All that can be known of the next
token is how often each followed the present one so far, so Bayes' rule gives the least loss exactly. The sides are
residual stacks of about as many weights each; all see the same data in the same order, and each gets its own learning
rate, the best of three on one fixed seed at a third of the steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, number, progress
from carrel.models import SequenceModel

from .fitting import fit, looks_at

VOCAB, LENGTH, BATCH, LOOKS = 4, 64, 32, 8
RATES = (0.007, 0.015, 0.03)
_SPREAD, _FRESH, _SWEEP_SEED = 0.3, 192, 1000
Make = Callable[[], SequenceModel]


def chains(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """(batch, length) tokens; the first is uniform."""
    weight = torch._standard_gamma(torch.full((batch, VOCAB, VOCAB), _SPREAD, dtype=torch.float64), generator)
    edges = (weight / weight.sum(-1, keepdim=True)).cumsum(-1)[..., :-1]
    draws = torch.rand(batch, length, generator=generator, dtype=torch.float64)
    rows, tokens = torch.arange(batch), [torch.randint(VOCAB, (batch,), generator=generator)]
    for t in range(1, length):
        tokens.append((draws[:, t, None] > edges[rows, tokens[-1]]).sum(-1))
    return torch.stack(tokens, 1)


def least_loss(x: Tensor) -> float:
    """Of predicting every token but the first by the counts before it, with the law of the rows known (nats)."""
    one = functional.one_hot(x, VOCAB).double()
    pairs = one[:, :-1, :, None] * one[:, 1:, None, :]
    counts = ((pairs.cumsum(1) - pairs) * one[:, :-1, :, None]).sum(2) + _SPREAD
    likely = counts.gather(-1, x[:, 1:, None]).squeeze(-1) / counts.sum(-1)
    return float(-likely.log().mean())


class ChainSide:
    """One stack, trained and looked at as it goes."""

    def __init__(self, seed: int, make: Make) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = make()
        self.weights = sum(p.numel() for block in self.model.blocks for p in block.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        self.fresh = chains(_FRESH, LENGTH, self.generator)
        self.at: list[int] = []
        self.above: list[float] = []
        self.rate = 0.0

    def train(self, steps: int, rate: float, *, looks: int) -> None:
        self.rate = rate
        stops = looks_at(steps, looks)
        for step, _ in fit(self.model, self._fresh_loss, steps, rate):
            if step in stops:
                self.at.append(step)
                self.above.append(self.score())
        self.fresh = chains(_FRESH, LENGTH, self.generator)  # of which neither the sweep nor the curve has seen any
        self.final = self.score()

    @torch.no_grad()
    def score(self) -> float:
        """Loss above the least (nats per token)."""
        return float(self._loss(self.fresh)) - least_loss(self.fresh)

    @torch.no_grad()
    def streaming_error(self) -> float:
        model, x = copy.deepcopy(self.model).double(), self.fresh[:8]
        state, pieces = None, []
        for piece in torch.split(x, [1, 0, LENGTH // 2, LENGTH - 1 - LENGTH // 2], 1):
            y, state = model(piece, state)
            pieces.append(y)
        return float((torch.cat(pieces, 1) - model(x)[0]).abs().max())

    def _fresh_loss(self) -> Tensor:
        return self._loss(chains(BATCH, LENGTH, self.generator))

    def _loss(self, x: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())


class ChainsTrained:
    """All sides, trained at the rates that their sweeps chose."""

    def __init__(self, make: Mapping[str, Make], seed: int, steps: int) -> None:
        self.steps, self.third = steps, max(1, steps // 3)
        self.sweep: dict[str, dict[float, float]] = {}
        self.sides: dict[str, ChainSide] = {}
        work, done = len(make) * (len(RATES) * self.third + steps), 0
        for name, build in make.items():
            losses = self.sweep[name] = {}
            for rate in RATES:
                trial = ChainSide(_SWEEP_SEED, build)
                trial.train(self.third, rate, looks=0)
                losses[rate] = trial.final if math.isfinite(trial.final) else math.inf
                done += self.third
                progress(done / work / 2, f"{name}: learning rate {number(rate)}")
            side = self.sides[name] = ChainSide(seed, build)
            side.train(steps, min(losses, key=lambda rate: losses[rate]), looks=LOOKS)
            done += steps
            progress(done / work / 2, f"{name}: {side.final:.3f} nats above the least")

    def tell(self, report: Report) -> None:
        """The curve of all sides and two tables."""
        some = next(iter(self.sides.values()))
        report.curve(
            f"Predicting chains of {VOCAB} tokens whose transitions are new in every sequence",
            x=some.at,
            y={name: side.above for name, side in self.sides.items()},
            x_label="training steps",
            y_label="loss above the least (nats per token)",
            log="y",
        )
        report.table(
            f"After {self.steps} steps of {BATCH} sequences",
            ["side", "weights in blocks", "learning rate", "above the least (nats)"],
            [[name, side.weights, number(side.rate), side.final] for name, side in self.sides.items()],
        )
        report.table(
            f"Choosing the learning rate: nats above the least after {self.third} steps at one seed",
            ["side", *(number(rate) for rate in RATES)],
            [[name, *losses.values()] for name, losses in self.sweep.items()],
        )
