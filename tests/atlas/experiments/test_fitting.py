"""What the experiments' trainings share: the rate rises over a tenth of the steps and falls, whatever their number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carrel.atlas.experiments.fitting import fit, looks_at, rise_and_fall


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 20, 100])
def test_every_number_of_steps_trains(steps):
    """Ten have a rise of exactly one step, by which torch's schedule divides less one."""
    model, x = nn.Linear(3, 1), torch.ones(4, 3)
    losses = [float(loss) for _, loss in fit(model, lambda: (model(x) - 2).square().mean(), steps, 0.01)]
    assert len(losses) == steps
    assert losses[-1] <= losses[0]


def test_the_rate_is_greatest_after_a_tenth_of_the_steps():
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    schedule, rates = rise_and_fall(optimiser, 1.0, 100), []
    for _ in range(99):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01


def test_gradients_are_held_to_norm_1_unless_told_otherwise():
    def greatest(clip):
        model = nn.Linear(1, 1)
        next(fit(model, lambda: 1e3 * model(torch.ones(1, 1)).sum(), 1, 0.01, clip=clip))
        return max(float(p.grad.abs().max()) for p in model.parameters())

    assert greatest(True) <= 1
    assert greatest(False) == pytest.approx(1e3)


def test_the_last_look_is_at_the_last_step():
    assert looks_at(100, 4) == {25, 50, 75, 100}
    assert looks_at(100, 0) == set()
