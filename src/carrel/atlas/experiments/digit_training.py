"""Training on handwritten digits read pixel by pixel, 64 tokens of one number each, from where rates start.

Three parts of the data: to train on, to choose learning rates by, and to judge by. Every side of an experiment gets the
same order of data and the same sweep of two learning rates, that of the mixers' rates and steps and that of the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers import Mixer
from carrel.models import SequenceModel
from carrel.tasks import digit_images

from .fitting import rise_and_fall

BATCH, DEPTH, CLASSES = 32, 2, 10
RATES = (1e-2, 3e-2)  # learning rates of everything else
SLOW = (1e-3, 1e-2)  # and of rates and steps
_OWN = frozenset({"log_dt", "A_log", "A_imag"})


class Trained(NamedTuple):
    """One side after its sweep and its training; losses has one entry per step."""

    model: SequenceModel
    losses: list[float]
    right: float
    rate: float
    slow: float
    swept: float


class Digits:
    """The 1797 images of scikit-learn, 8 by 8, in an order drawn by the seed."""

    def __init__(self, seed: int) -> None:
        images, labels = digit_images()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        x, y = images[order].unsqueeze(-1), labels[order]
        self.seed = seed
        self.unseen, self.held, self.seen = (x[:360], y[:360]), (x[360:560], y[360:560]), (x[560:], y[560:])

    @torch.no_grad()
    def right(self, model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
        return float((model(part[0])[0].argmax(1) == part[1]).double().mean())

    def model(self, mixer: Callable[[int], Mixer], width: int) -> SequenceModel:
        """The same numbers are drawn for every side, as far as its mixers let it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return SequenceModel(mixer, width, DEPTH, in_dim=1, out_dim=CLASSES, mlp_ratio=2, pool="mean")

    def tuned(
        self,
        mixer: Callable[[int], Mixer],
        width: int,
        *,
        steps: int,
        sweep: int,
        on_run: Callable[[int], None] = lambda steps: None,
    ) -> Trained:
        """Sweep, then train in full with the pair of rates that was best on the held-out part."""
        swept = {}
        for rate in RATES:
            for slow in SLOW:
                model = self.model(mixer, width)
                self.train(model, sweep, rate, slow)
                swept[rate, slow] = self.right(model, self.held)
                on_run(sweep)
        rate, slow = max(swept, key=lambda pair: swept[pair])
        model = self.model(mixer, width)
        losses = self.train(model, steps, rate, slow)
        on_run(steps)
        return Trained(model, losses, self.right(model, self.unseen), rate, slow, swept[rate, slow])

    def train(self, model: SequenceModel, steps: int, rate: float, slow: float) -> list[float]:
        named = list(model.named_parameters())
        own = [p for name, p in named if name.rpartition(".")[2] in _OWN]
        others = [p for name, p in named if name.rpartition(".")[2] not in _OWN]
        optimiser = torch.optim.AdamW(
            [{"params": others, "lr": rate, "weight_decay": 0.01}, {"params": own, "lr": slow, "weight_decay": 0.0}]
        )
        schedule = rise_and_fall(optimiser, [rate, slow], steps)
        generator = torch.Generator().manual_seed(self.seed)
        x, y = self.seen
        losses = []
        for _ in range(steps):
            rows = torch.randint(len(y), (BATCH,), generator=generator)
            loss = functional.cross_entropy(model(x[rows])[0], y[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        return losses

    @torch.no_grad()
    def streaming_error(self, model: SequenceModel) -> float:
        """Largest difference between whole digits and pieces of them, in float64."""
        wide, x = copy.deepcopy(model).double(), self.unseen[0][:8].double()
        whole, _ = wide(x)
        y, state = whole, None
        for piece in torch.split(x, [1, 0, 7, 40, 16], dim=1):
            y, state = wide(piece, state)
        return float((y - whole).abs().max())


def smooth(losses: list[float]) -> tuple[list[float], list[float]]:
    """Means over stretches of steps, at most 30 of them, and where they lie."""
    width = max(1, len(losses) // 30)
    starts = range(0, len(losses) - width + 1, width)
    return [i + width / 2 for i in starts], [sum(losses[i : i + width]) / width for i in starts]
