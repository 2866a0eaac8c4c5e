"""Training as the experiments do it: AdamW, gradients held to norm 1, a rate that rises over a tenth of the steps and
falls along a cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from carrel.layers import parameter_groups


def rise_and_fall(optimiser: Optimizer, rate: float | Sequence[float], steps: int) -> OneCycleLR:
    """The schedule; one rate for each group of parameters, or one for all."""
    rise = max(0.1, 1.5 / steps)  # a rise of exactly one step is more than torch can divide by
    peak = rate if isinstance(rate, float) else list(rate)
    return OneCycleLR(optimiser, peak, total_steps=max(2, steps), pct_start=min(1.0, rise))


def fit(
    model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float, *, clip: bool = True
) -> Iterator[tuple[int, Tensor]]:
    """Train, and hand over the number of every step that is done with the loss it started from.

    ``loss`` draws a batch and says how wrong the model is on it.
    """
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=rate)
    schedule = rise_and_fall(optimiser, rate, steps)
    for step in range(1, steps + 1):
        now = loss()
        optimiser.zero_grad()
        torch.autograd.backward(now)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step, now.detach()


def looks_at(steps: int, looks: int) -> set[int]:
    """The steps, equally far apart, after which a curve gets a point; the last is one of them."""
    return {round(steps * (i + 1) / looks) for i in range(looks)}
