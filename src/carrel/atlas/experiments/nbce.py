"""One answer from many contexts: ways of pooling side by side, for a reader in numbers and for a trained one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.decoding import pool

from .recall_reader import PAIRS, Notes, Reader, notes, train

_VOCAB = 64
_CONTEXTS = (2, 4, 8)
_FEW, _MANY = 4, 7
_QUESTIONS = 400
_FILTER = 0.95


class _Way(NamedTuple):
    """A pooling with its beta; None stands for n - 1, which is Bayes' rule."""

    pooling: str
    beta: float | None

    @property
    def name(self) -> str:
        return f"{self.pooling}, β = {'n − 1' if self.beta is None else format(self.beta, 'g')}"


_WAYS = (
    _Way("mean", 0.0),
    _Way("mean", 0.25),
    _Way("mean", None),
    _Way("max", 0.25),
    _Way("min-entropy", 0.0),
    _Way("min-entropy", 0.25),
)
_MEAN, _MAX, _SUREST = _WAYS[1], _WAYS[3], _WAYS[5]


class _Score(NamedTuple):
    """Shares: the right token is the likeliest; its probability; its context is the chosen one."""

    greedy: float
    sampled: float
    context: float


def run(*, seed: int, cases: int, mass: float, keys: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(seed, cases, mass, keys, steps)
    finally:
        torch.set_num_threads(threads)


def _run(seed: int, cases: int, mass: float, keys: int, steps: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    report = Report("nbce")
    report.check("Mean with β = n − 1 against Bayes' rule", _bayes_error(generator), high=1e-12)

    sure = _read_in_numbers(cases, mass, generator)
    weak = _read_in_numbers(cases, 0.6, generator)
    largest = _CONTEXTS[-1]
    report.check("Min-entropy, 8 contexts: probability of the right token", sure[largest, _SUREST].sampled, low=0.9)
    report.check("Max, 8 contexts: right token likeliest", sure[largest, _MAX].greedy, low=0.95)
    report.check("Max, 8 contexts: probability of the right token", sure[largest, _MAX].sampled, high=0.5)
    report.check("Mean, 8 contexts: probability of the right token", sure[largest, _MEAN].sampled, high=0.1)
    for title, found in ((f"A reader in numbers, sure to {mass:g}", sure), ("A reader in numbers, sure to 0.6", weak)):
        report.table(
            f"{title}: the right token likeliest, and its probability",
            ["pooling", *(f"{n} contexts: {what}" for n in _CONTEXTS for what in ("likeliest", "probability"))],
            [[w.name, *(x for n in _CONTEXTS for x in found[n, w][:2])] for w in _WAYS],
        )
    report.curve(
        f"Probability of the right token, a reader in numbers, sure to {mass:g}",
        x=list(_CONTEXTS),
        y={w.name: [sure[n, w].sampled for n in _CONTEXTS] for w in _WAYS},
        x_label="contexts",
        y_label="probability",
        log="x",
    )

    reader, losses = train(keys, steps, generator, lambda step: progress(0.05 + 0.9 * step / steps, "training"))
    sizes = [n for n in (_FEW, _MANY) if n * PAIRS <= keys]
    exams = {n: _Exam(reader, keys, n, generator) for n in sizes}
    trained = {(n, w, p): exams[n].score(w, p) for n in sizes for w in _WAYS for p in (1.0, _FILTER)}
    most = sizes[-1]
    report.check("Trained reader, min-entropy: right token likeliest", trained[most, _SUREST, _FILTER].greedy, low=0.98)
    report.check("Trained reader, min-entropy: its probability", trained[most, _SUREST, _FILTER].sampled, low=0.95)
    report.check("Trained reader, min-entropy: right context chosen", trained[most, _SUREST, _FILTER].context, low=0.98)
    report.table(
        "A trained reader: the right token likeliest, and its probability",
        ["contexts", "top-p", "pooling", "likeliest", "probability", "right context"],
        [
            [n, p, w.name, s.greedy, s.sampled, None if w.pooling == "mean" else s.context]
            for (n, w, p), s in trained.items()
        ],
    )
    report.table(
        "The trained reader given all notes at once",
        ["contexts", "pairs at most", "right"],
        [[n, n * PAIRS, exams[n].together()] for n in sizes],
    )
    every = max(1, steps // 60)
    report.curve(
        "Training of the reader",
        x=list(range(0, steps, every)),
        y=losses[::every],
        x_label="step",
        y_label="cross entropy (nats)",
    )

    surest, mean = trained[most, _SUREST, 1.0], trained[most, _MEAN, 1.0]
    largest_value = trained[most, _MAX, 1.0]
    if not (surest.greedy >= 0.98 and surest.sampled >= 0.95 and sure[largest, _SUREST].sampled >= 0.9):
        report.verdict("not-shown", "Taking the surest context did not answer reliably here.")
    elif most < _MANY or not (mean.greedy <= 0.2 and largest_value.sampled < surest.sampled - 0.1):
        report.verdict(
            "caveat",
            "The surest context answers and can be sampled from; the other poolings were hardly worse at this size.",
        )
    elif weak[largest, _SUREST].greedy >= weak[largest, _MAX].greedy - 0.01:
        report.verdict(
            "holds",
            "The surest context answers and can be sampled from, whatever the reader; mean and maximum do not both.",
        )
    else:
        report.verdict(
            "caveat",
            "With many contexts the plain mean drifts to the model's own opinion, the largest values answer but cannot "
            "be sampled from, and the surest context does both; but a reader that is less sure can be misled by a "
            "surer wrong context, and this small reader answers as well from all notes at once, so the failure of "
            "prompts that are too long is not shown here.",
        )
    return report


def _read_in_numbers(cases: int, mass: float, generator: torch.Generator) -> dict[tuple[int, _Way], _Score]:
    """A reader whose distributions are written down.

    Its own knowledge: half on a habit, half on anything. The one context that has the answer gives it ``mass``; every
    other context leaves 0.7 of the own knowledge and puts 0.3 on a word of its own.
    """
    found = {}
    one = torch.eye(_VOCAB, dtype=torch.float64)
    for n in _CONTEXTS:
        answer, habit = (torch.randint(_VOCAB, (cases,), generator=generator) for _ in range(2))
        own = 0.5 * one[habit] + 0.5 / _VOCAB
        contexts = 0.7 * own[:, None] + 0.3 * one[torch.randint(_VOCAB, (cases, n), generator=generator)]
        right = torch.randint(n, (cases,), generator=generator)
        contexts[torch.arange(cases), right] = mass * one[answer] + (1 - mass) / _VOCAB
        for way in _WAYS:
            found[n, way] = _score(contexts.log(), own.log(), way, 1.0, answer, right)
    return found


def _score(contexts: Tensor, own: Tensor, way: _Way, top_p: float, answer: Tensor, right: Tensor) -> _Score:
    beta = contexts.shape[1] - 1.0 if way.beta is None else way.beta
    logits, info = pool(contexts, own, way.pooling, beta, top_p)
    likely = logits.softmax(-1).gather(1, answer[:, None])
    shares = (logits.argmax(-1) == answer, likely, info.chosen == right)
    return _Score(*(float(share.double().mean()) for share in shares))


class _Exam:
    """Questions whose answer stands in one of n contexts, and what the trained reader makes of each context."""

    def __init__(self, reader: Reader, keys: int, n: int, generator: torch.Generator) -> None:
        self.reader, rows = reader, torch.arange(_QUESTIONS)
        self.notes = notes(_QUESTIONS, keys, n, generator)
        self.right = torch.randint(n, (_QUESTIONS,), generator=generator)
        written = self.notes.there[rows, self.right].sum(-1)
        pair = (torch.rand(_QUESTIONS, generator=generator) * written).long()
        self.question = self.notes.keys[rows, self.right, pair]
        self.answer = self.notes.values[rows, self.right, pair]
        with torch.no_grad():
            each = Notes(*(part.flatten(0, 1) for part in self.notes))
            self.contexts = reader(each, self.question.repeat_interleave(n)).unflatten(0, (_QUESTIONS, n))
            nothing = Notes(*(part[:, 0, :0] for part in self.notes))
            self.own = reader(nothing, self.question)

    def score(self, way: _Way, top_p: float) -> _Score:
        return _score(self.contexts, self.own, way, top_p, self.answer, self.right)

    def together(self) -> float:
        with torch.no_grad():
            logits = self.reader(Notes(*(part.flatten(1, 2) for part in self.notes)), self.question)
        return float((logits.argmax(-1) == self.answer).double().mean())


def _bayes_error(generator: torch.Generator) -> float:
    """Contexts that are independent given the answer, all tables known: pooled against the posterior."""
    n, words = 5, 12
    prior = torch.rand(words, generator=generator, dtype=torch.float64).softmax(-1).log()
    likelihood = torch.rand(n, words, generator=generator, dtype=torch.float64).log()
    posterior = (prior + likelihood.sum(0)).log_softmax(-1)
    z, _ = pool((prior + likelihood)[None], prior[None], "mean", n - 1, 1.0)
    return float((z[0].log_softmax(-1) - posterior).abs().max())
