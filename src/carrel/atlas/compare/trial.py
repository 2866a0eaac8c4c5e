"""One mixer trained on one task with one learning rate and one seed; the sweep is made of short trials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.compare.stack import build, one_thread
from carrel.atlas.report import Report, progress
from carrel.layers import parameter_groups
from carrel.models import SequenceModel
from carrel.tasks import Batch, Task, make_task

_JUDGED = 512  # fresh sequences at the end
_GLANCE = 256  # and at every look on the way
_WARM_UP = 0.1  # of the steps
_TELL = 16  # steps between two words of progress
_JUDGE = 1_000_003  # the judge's generator is no trainer's


def run(
    *,
    seed: int,
    mixer: Mapping[str, Any],
    task: str,
    length: int,
    dim: int,
    depth: int,
    batch: int,
    rate: float,
    steps: int,
    schedule: str,
    looks: int,
    held_out: bool,
) -> Report:
    """Train, look on the way, judge at the end. The report's first table has one row: share right and loss.

    ``held_out``: judge by data that no rate was chosen on, where a task's data are finite.
    """
    with one_thread():
        problem = make_task(task, length)
        model = build(mixer, problem, dim, depth, seed)
        glance = _fresh(problem, _GLANCE, _JUDGE + seed, held_out)
        stops = {round(steps * (i + 1) / looks) for i in range(looks)}
        at, rights = [], []
        for step in _train(model, problem, torch.Generator().manual_seed(seed), batch, rate, steps, schedule):
            if step in stops:
                at.append(step)
                rights.append(judge(model, glance)[0])
            if step % _TELL == 0 or step in stops:
                progress(step / steps, f"{rights[-1]:.0%} right" if rights else "")
        right, loss = judge(model, _fresh(problem, _JUDGED, 2 * _JUDGE + seed, held_out))
    report = Report("compare-trial")
    report.table("Fresh sequences", ["right", "loss (nats)", "chance"], [[right, loss, problem.chance]])
    if at:
        report.curve("On the way", x=at, y=rights, x_label="training steps", y_label="share of answers right")
    if math.isfinite(loss) and right > problem.chance + 3 * math.sqrt(problem.chance / _JUDGED):
        report.verdict("holds", "It is right more often than by guessing.")
    else:
        report.verdict("not-shown", "It is right no more often than by guessing.")
    return report


def rate_at(step: int, steps: int, schedule: str) -> float:
    """The share of the peak rate at a step from 0: a linear warm-up over a tenth, then a half cosine or a level."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def loss_of(model: SequenceModel, batch: Batch) -> Tensor:
    """Cross entropy of the answers that are asked for."""
    return functional.cross_entropy(model(batch.x)[0][batch.mask], batch.y[batch.mask])


@torch.no_grad()
def judge(model: SequenceModel, batch: Batch) -> tuple[float, float]:
    """Share of right answers, and loss; a model that gives no numbers is right nowhere."""
    rights, losses, answers = 0.0, 0.0, 0
    for x, y, mask in zip(*(torch.split(part, 64) for part in batch), strict=True):
        guesses, wanted = model(x)[0][mask], y[mask]
        rights += float((guesses.argmax(-1) == wanted).sum()) if bool(torch.isfinite(guesses).all()) else 0.0
        losses += float(functional.cross_entropy(guesses, wanted, reduction="sum"))
        answers += len(wanted)
    return rights / answers, losses / answers


def _train(
    model: SequenceModel, task: Task, generator: torch.Generator, batch: int, rate: float, steps: int, schedule: str
) -> Iterator[int]:
    """Yields the number of every step done."""
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=rate)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_at(step, steps, schedule)
        optimiser.zero_grad()
        torch.autograd.backward(loss_of(model, task.sample(batch, generator)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield step + 1


def _fresh(task: Task, count: int, seed: int, held_out: bool) -> Batch:
    """Sequences that training does not see, unless they are few and these are its own."""
    return task.sample(count, torch.Generator().manual_seed(seed), held_out=held_out)
