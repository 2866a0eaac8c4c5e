"""A reader trained to look keys up: the small language model of the nbce experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VALUES, DEFAULT, PAIRS = 64, 0, 8
_DIM, _BATCH = 64, 192
_ANSWERABLE, _HABIT = 0.6, 0.7


class Notes(NamedTuple):
    """keys, values: (rows, pairs) int64; there: (rows, pairs) bool, where a pair is really written."""

    keys: Tensor
    values: Tensor
    there: Tensor


class Reader(nn.Module):
    """One layer of attention from the question to a row's notes, without positions, beside a learned sink."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.key = nn.Embedding(keys, _DIM)
        self.value = nn.Embedding(VALUES, _DIM)
        self.sink = nn.Parameter(torch.randn(_DIM))
        self.ask, self.offer, self.tell = (nn.Linear(_DIM, _DIM) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(_DIM, 2 * _DIM), nn.GELU(), nn.Linear(2 * _DIM, VALUES))

    def forward(self, notes: Notes, question: Tensor) -> Tensor:
        """Logits of the answer (rows, values)."""
        pairs = self.key(notes.keys) + self.value(notes.values)
        x = torch.cat((self.sink.expand(len(question), 1, _DIM), pairs), 1)
        scores = (self.offer(x) @ self.ask(self.key(question))[:, :, None])[..., 0] * _DIM**-0.5
        scores[:, 1:].masked_fill_(~notes.there, float("-inf"))
        read = (scores.softmax(-1)[:, None] @ self.tell(x))[:, 0]
        return self.mlp(read)


def notes(rows: int, keys: int, contexts: int, generator: torch.Generator) -> Notes:
    """Random notes for rows x contexts; no key stands twice in the notes of a row. Shapes (rows, contexts, pairs)."""
    order = torch.rand(rows, keys, generator=generator).argsort(-1)[:, : contexts * PAIRS]
    shape = (rows, contexts, PAIRS)
    count = torch.randint(1, PAIRS + 1, (rows, contexts, 1), generator=generator)
    values = torch.randint(VALUES, shape, generator=generator)
    return Notes(order.reshape(shape), values, torch.arange(PAIRS) < count)


def train(
    keys: int, steps: int, generator: torch.Generator, on_step: Callable[[int], None]
) -> tuple[Reader, list[float]]:
    """A reader that saw one row of notes per question, and its losses.

    Where the notes do not have the key, the right answer is the default most of the time and else anything.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
        reader = Reader(keys)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses = []
    for step in range(steps):
        on_step(step)
        seen = Notes(*(part[:, 0] for part in notes(_BATCH, keys, 1, generator)))
        question, answer = asked(seen, keys, generator)
        loss = cross_entropy(reader(seen, question), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return reader.eval(), losses


def asked(seen: Notes, keys: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A question about each row of notes and its answer, both (rows,)."""
    rows = len(seen.keys)

    def chance() -> Tensor:
        return torch.rand(rows, generator=generator)

    which = (chance() * seen.there.sum(-1)).long()[:, None]
    found = chance() < _ANSWERABLE
    question = torch.where(found, seen.keys.gather(1, which)[:, 0], torch.randint(keys, (rows,), generator=generator))
    anything = torch.randint(VALUES, (rows,), generator=generator)
    unknown = torch.where(chance() < _HABIT, DEFAULT, anything)
    written = (seen.keys == question[:, None]) & seen.there  # a key drawn at random may be there by chance
    answer = torch.where(written, seen.values, 0).sum(-1)
    return question, torch.where(written.any(-1), answer, unknown)
