"""Training to name tokens that lie a given distance back, at every position at once.

The sides of an experiment are residual stacks that differ in their mixer. All see the same data in the same order, and
each gets its own learning rate, the best of four on one fixed seed at a quarter of the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, number, progress
from carrel.layers import Mixer
from carrel.models import SequenceModel

from .fitting import fit, looks_at

DISTANCES = (1, 2, 4, 8, 16, 32)
VOCAB, BATCH, LOOKS = 8, 16, 12
RATES = (0.003, 0.01, 0.03, 0.1)
_SWEEP_SEED, _FRESH = 1000, 32


class RecallSide:
    """One layer with one mixer, trained and looked at as it goes."""

    def __init__(self, seed: int, mixer: Callable[[int], Mixer], length: int, width: int) -> None:
        self.length = length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = SequenceModel(mixer, width, 1, vocab=VOCAB, out_dim=len(DISTANCES) * VOCAB)
        self.generator = torch.Generator().manual_seed(seed)
        self.at: list[int] = []
        self.accuracy: list[float] = []
        self.rate = self.loss = 0.0

    def train(self, steps: int, rate: float, *, looks: int) -> None:
        self.rate = rate
        stops = looks_at(steps, looks)
        for step, _ in fit(self.model, self._fresh_loss, steps, rate):
            if step in stops:
                self.at.append(step)
                self.accuracy.append(sum(self.score(self.length)[0]) / len(DISTANCES))
        _, self.loss = self.score(self.length)

    def _fresh_loss(self) -> Tensor:
        guesses, truth = self._asked(self._sequences(BATCH, self.length))
        return functional.cross_entropy(guesses.flatten(0, -2), truth.flatten())

    @torch.no_grad()
    def score(self, length: int) -> tuple[list[float], float]:
        """Share named right in the last quarter of fresh sequences, by distance; and the loss there."""
        guesses, truth = (x[:, -(length // 4) :] for x in self._asked(self._sequences(_FRESH, length)))
        right = (guesses.argmax(-1) == truth).double().mean((0, 1)).tolist()
        return right, float(functional.cross_entropy(guesses.flatten(0, -2), truth.flatten()))

    @torch.no_grad()
    def streaming_error(self) -> float:
        model, x = copy.deepcopy(self.model).double(), self._sequences(4, self.length)
        state, pieces = None, []
        for piece in torch.split(x, [1, 0, x.shape[1] // 2, x.shape[1] - 1 - x.shape[1] // 2], 1):
            y, state = model(piece, state)
            pieces.append(y)
        return float((torch.cat(pieces, 1) - model(x)[0]).abs().max())

    def _asked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, positions, distances, vocab) and the tokens meant, where all distances lie in the sequence."""
        furthest = max(DISTANCES)
        logits = self.model(x)[0][:, furthest:].unflatten(-1, (len(DISTANCES), VOCAB))
        truth = torch.stack([x[:, furthest - d : x.shape[1] - d] for d in DISTANCES], -1)
        return logits, truth

    def _sequences(self, batch: int, length: int) -> Tensor:
        return torch.randint(VOCAB, (batch, length), generator=self.generator)


class RecallTrained:
    """All sides, trained at the rates that their sweeps chose, and scored at their own length and a longer one."""

    def __init__(
        self, mixers: Mapping[str, Callable[[int], Mixer]], seed: int, *, length: int, width: int, steps: int, long: int
    ) -> None:
        self.steps, self.quarter, self.length, self.long = steps, max(1, steps // 4), length, long
        self.sweep: dict[str, dict[float, float]] = {}
        self.sides: dict[str, RecallSide] = {}
        self.near: dict[str, list[float]] = {}
        self.far: dict[str, list[float]] = {}
        work, done = len(mixers) * (len(RATES) * self.quarter + steps), 0
        for name, mixer in mixers.items():
            losses = self.sweep[name] = {}
            for rate in RATES:
                trial = RecallSide(_SWEEP_SEED, mixer, length, width)
                trial.train(self.quarter, rate, looks=0)
                losses[rate] = trial.loss
                done += self.quarter
                progress(done / work, f"{name}: learning rate {number(rate)}")
            side = self.sides[name] = RecallSide(seed, mixer, length, width)
            side.train(steps, min(losses, key=lambda rate: losses[rate]), looks=LOOKS)
            done += steps
            self.near[name], self.far[name] = side.score(length)[0], side.score(long)[0]
            progress(done / work, f"{name}: {side.accuracy[-1]:.0%} right")

    def mean(self, name: str, *, far: bool = False) -> float:
        return sum((self.far if far else self.near)[name]) / len(DISTANCES)

    def tell(self, report: Report) -> None:
        """Two curves and two tables."""
        some = next(iter(self.sides.values()))
        guessing = 1 / VOCAB
        report.curve(
            f"Naming the token so far back, at the end of {self.length} and of {self.long} tokens",
            x=list(DISTANCES),
            y={f"{name}, {self.length}": right for name, right in self.near.items()}
            | {f"{name}, {self.long}": right for name, right in self.far.items()}
            | {"guessing": [guessing] * len(DISTANCES)},
            x_label="distance (tokens)",
            y_label="share named right",
            log="x",
        )
        report.curve(
            "Learning it",
            x=some.at,
            y={name: side.accuracy for name, side in self.sides.items()} | {"guessing": [guessing] * len(some.at)},
            x_label="training steps",
            y_label="share named right, all distances",
        )
        report.table(
            f"After {self.steps} steps of {BATCH} sequences (% named right)",
            ["side", "learning rate", *(f"{d} back" for d in DISTANCES), f"all, {self.long} tokens"],
            [
                [name, number(side.rate), *(100 * right for right in self.near[name]), 100 * self.mean(name, far=True)]
                for name, side in self.sides.items()
            ],
        )
        report.table(
            f"Choosing the learning rate: loss after {self.quarter} steps at one seed (nats)",
            ["side", *(number(rate) for rate in RATES)],
            [[name, *losses.values()] for name, losses in self.sweep.items()],
        )
