"""Training on selective copying: symbols scattered among noise are to be written down, in order, at the end.

The sides of an experiment are residual stacks that differ in their mixer. All see the same data in the same order, and
each gets its own learning rate, the best of four on one fixed seed at a quarter of the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, number, progress
from carrel.layers import Mixer
from carrel.models import SequenceModel
from carrel.tasks import selective_copying

from .fitting import fit, looks_at

BATCH, DEPTH, VOCAB, LOOKS, FRESH = 32, 2, 8, 16, 512
RATES = (0.003, 0.01, 0.03, 0.1)
_SWEEP_SEED = 1000


class Side:
    """One stack, trained and looked at as it goes."""

    def __init__(
        self, seed: int, mixer: Callable[[int], Mixer], length: int, symbols: int, width: int, depth: int = DEPTH
    ) -> None:
        self.length, self.symbols = length, symbols
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = SequenceModel(mixer, width, depth, vocab=VOCAB + 2, out_dim=VOCAB)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        self.fresh = self._sequences(FRESH)
        self.at: list[int] = []
        self.accuracy: list[float] = []
        self.rate = 0.0

    def train(self, steps: int, rate: float, *, looks: int) -> None:
        self.rate = rate
        stops = looks_at(steps, looks)
        for step, _ in fit(self.model, self._fresh_loss, steps, rate):
            if step in stops:
                self.at.append(step)
                self.accuracy.append(self.score()[0])
        self.fresh = self._sequences(FRESH)  # of which neither the sweep nor the curve has seen any
        self.final = self.score()

    def _fresh_loss(self) -> Tensor:
        x, y, asked = self._sequences(BATCH)
        return functional.cross_entropy(self.model(x)[0][asked], y[asked])

    @torch.no_grad()
    def score(self) -> tuple[float, float]:
        """Share of symbols named right, and loss."""
        x, y, asked = self.fresh
        guesses = self.model(x)[0][asked]
        right = (guesses.argmax(-1) == y[asked]).double().mean()
        return float(right), float(functional.cross_entropy(guesses, y[asked]))

    @torch.no_grad()
    def streaming_error(self) -> float:
        model, x = copy.deepcopy(self.model).double(), self.fresh[0][:8]
        state, pieces = None, []
        for piece in torch.split(x, [1, 0, x.shape[1] // 2, x.shape[1] - 1 - x.shape[1] // 2], 1):
            y, state = model(piece, state)
            pieces.append(y)
        return float((torch.cat(pieces, 1) - model(x)[0]).abs().max())

    def _sequences(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        return selective_copying(batch, length=self.length, data=self.symbols, vocab=VOCAB, generator=self.generator)


S = TypeVar("S", bound=Side)


class Tuned(Generic[S]):
    """All sides, trained at the rates that their sweeps chose."""

    def __init__(self, make: Mapping[str, Callable[[int], S]], seed: int, steps: int) -> None:
        self.steps, self.quarter = steps, max(1, steps // 4)
        self.sweep: dict[str, dict[float, float]] = {}
        self.sides: dict[str, S] = {}
        work, done = len(make) * (len(RATES) * self.quarter + steps), 0
        for name, build in make.items():
            losses = self.sweep[name] = {}
            for rate in RATES:
                trial = build(_SWEEP_SEED)
                trial.train(self.quarter, rate, looks=0)
                losses[rate] = trial.score()[1]
                done += self.quarter
                progress(done / work, f"{name}: learning rate {number(rate)}")
            side = self.sides[name] = build(seed)
            side.train(steps, min(losses, key=lambda rate: losses[rate]), looks=LOOKS)
            done += steps
            progress(done / work, f"{name}: {side.accuracy[-1]:.0%} right")

    def tell(self, report: Report) -> None:
        """The curve of all sides and the two tables."""
        some = next(iter(self.sides.values()))
        report.curve(
            f"Copying {some.symbols} symbols out of {some.length} tokens",
            x=some.at,
            y={name: side.accuracy for name, side in self.sides.items()} | {"guessing": [1 / VOCAB] * len(some.at)},
            x_label="training steps",
            y_label="share of symbols named right in fresh sequences",
        )
        report.table(
            f"After {self.steps} steps of {BATCH} sequences",
            ["side", "parameters", "learning rate", "right (%)", "loss (nats)"],
            [[name, s.parameters, number(s.rate), 100 * s.final[0], s.final[1]] for name, s in self.sides.items()],
        )
        report.table(
            f"Choosing the learning rate: loss after {self.quarter} steps at one seed (nats)",
            ["side", *(number(rate) for rate in RATES)],
            [[name, *losses.values()] for name, losses in self.sweep.items()],
        )
