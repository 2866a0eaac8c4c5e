"""A comparison as it goes: its pieces run one after the other by the runner, finished ones come from the cache.

A comparison that was stopped and is asked again therefore goes on where it was. It hands the runner one piece at a
time, so that experiments and other comparisons take turns with it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from carrel.atlas.cache import machine, versions
from carrel.atlas.compare.contender import Contender
from carrel.atlas.compare.outcome import Outcome, Side, best_rate
from carrel.atlas.compare.plan import RATES, Plan
from carrel.atlas.job import Job, State
from carrel.atlas.result import Result
from carrel.atlas.runner import QueueFull, Runner
from carrel.atlas.work import Work

_GUESS = 0.03  # seconds of a training step, until it is measured
_LOOKS = 1.15  # what looking on the way adds
_MEASURE = 6.0  # seconds of measuring one mixer

Piece = tuple[str, str]  # whose, and "speed", "rate 0.01" or "seed 2"


class Comparison:
    """Written by the thread that is in ``run``; read by anyone. ``change`` grows by one with every change."""

    def __init__(self, plan: Plan, runner: Runner, *, fresh: bool = False) -> None:
        self.id, self.plan, self.fresh = secrets.token_hex(6), plan, fresh
        self.state: State = "queued"
        self.error = self.log = self.doing = ""
        self.outcome: Outcome | None = None
        self.change = 0
        self.cached = True  # until a piece has to be run
        self.fraction = 0.0
        self.started = self.ended = 0.0
        self._runner, self._stop = runner, threading.Event()
        self._job: Job | None = None
        self._now: Piece = ("", "")
        self._done: dict[Piece, Result] = {}
        self._spent = [0.0, 0.0]  # seconds that pieces took here, and that were foreseen for them

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def elapsed_s(self) -> float:
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    @property
    def position(self) -> int:
        """The place of its piece in the queue; 0 once that runs."""
        return 0 if self._job is None else self._job.position

    @property
    def eta_s(self) -> float | None:
        """Seconds until it is done, as far as its own pieces go; None before the first has shown how long they take."""
        if self.finished:
            return 0.0
        if self.state == "queued" or not any(kind == "speed" for _, kind in self._done):
            return None
        took, foreseen = self._spent
        pace = min(4.0, max(0.25, took / foreseen)) if foreseen > 5 else 1.0
        return max(1.0, pace * (1 - self._share()) * self._whole())

    @property
    def note(self) -> str:
        """What it does now, in words."""
        job = self._job
        if job is not None and job.state == "queued" and job.position > 1:
            return f"{self.doing}, after {job.position - 1} before it in the queue"
        said = job.note if job is not None and job.note not in ("", "starting") else ""
        return ", ".join(part for part in (self.doing, said) if part)

    def run(self, on_event: Callable[[Comparison], None] | None = None) -> Comparison:
        """Run every piece that is not kept yet; ``on_event(self)`` is called at least every quarter of a second.

        A failure or a stop is told by ``state`` and ``error``; whatever was finished is kept.
        """
        self.started, self.state = time.monotonic(), "running"
        try:
            for side, kind, work in self._pieces():
                self._job, self.doing, self._now = None, f"{side.label}: {_words(kind)}", (side.label, kind)
                self._done[side.label, kind] = self._result(work, on_event, side, kind)
                self._touch(on_event)
            self.outcome = self._join()
            self._end("done")
        except _Stopped as stopped:
            self.error, self.log = stopped.error, stopped.log
            self._end("failed" if stopped.error else "cancelled")
        except Exception as error:  # a fault of ours must not leave it running for ever
            self.error = f"the comparison could not go on: {type(error).__name__}: {error}"
            self._end("failed")
        if on_event is not None:
            on_event(self)
        return self

    def cancel(self) -> bool:
        """Stop it; finished pieces are kept. False if it was over already."""
        if self.finished:
            return False
        self._stop.set()
        if (job := self._job) is not None:
            self._runner.cancel(job.id)
        return True

    def to_json(self) -> dict[str, Any]:
        """Where it is; the outcome apart."""
        eta = self.eta_s
        return {
            **self.plan.to_json(),
            "id": self.id,
            "mixers": [side.label for side in self.plan.contenders],
            "state": self.state,
            "fraction": round(self.fraction, 4),
            "note": self.note,
            "eta_s": None if eta is None else round(eta, 1),
            "error": self.error,
        }

    def _pieces(self) -> Iterator[tuple[Contender, str, Work]]:
        """Measuring first, which finds a mixer that cannot be built; then the sweeps; then seed by seed."""
        plan = self.plan
        for side in plan.contenders:
            yield side, "speed", plan.speed(side)
        for side in plan.contenders:
            for rate in RATES:
                yield side, f"rate {rate}", plan.sweep(side, rate)
        rates = {side.label: best_rate(self._losses(side)) for side in plan.contenders}
        for seed in range(plan.seeds):
            for side in plan.contenders:
                yield side, f"seed {seed}", plan.trial(side, rates[side.label], seed)

    def _result(self, work: Work, on_event: Callable[[Comparison], None] | None, side: Contender, kind: str) -> Result:
        while not self._stop.is_set():
            try:
                job = self._job = self._runner.enqueue(work, fresh=self.fresh)
            except RuntimeError as error:  # the queue is full, or the runner is closed
                raise _Stopped(str(error) if isinstance(error, QueueFull) else "") from None
            if not job.cached:
                self.cached = False
            while not job.finished:
                self._touch(on_event)
                try:
                    self._runner.wait(job, timeout=0.25)
                except TimeoutError:
                    continue
            if job.result is not None:
                if not job.cached:
                    self._spent[0] += job.elapsed_s
                    self._spent[1] += self._weight(side.label, kind)
                return job.result
            if job.state == "failed":
                cause = job.error.partition(": ")[2] if job.error.startswith(f"{job.slug} failed") else job.error
                raise _Stopped(f"{side.label}: {cause}", job.log)
            # cancelled by another who waited for the same piece: ask again, unless it was us
        raise _Stopped("")

    def _losses(self, side: Contender) -> dict[float, float | None]:
        return {rate: _cell(self._done[side.label, f"rate {rate}"], "loss (nats)") for rate in RATES}

    def _join(self) -> Outcome:
        sides = []
        for side in self.plan.contenders:
            costs, losses = self._done[side.label, "speed"], self._losses(side)
            seeds = [self._done[side.label, f"seed {seed}"] for seed in range(self.plan.seeds)]
            line = seeds[0].curves[0].series[0]
            sides.append(
                Side(
                    side.label,
                    side.module,
                    dict(side.options),
                    side.mlp,
                    right=tuple(_cell(seed, "right") or 0.0 for seed in seeds),
                    rate=best_rate(losses),
                    sweep=tuple(losses.items()),
                    parameters=costs.tables[0].rows[0][0],  # type: ignore[arg-type]
                    training_tokens_per_s=_cell(costs, "training (tokens/s)") or 0.0,
                    decoding_tokens_per_s=_cell(costs, "decoding (tokens/s)") or 0.0,
                    state_bytes=int(_cell(costs, "state (bytes)") or 0),
                    peak_bytes=None if (peak := _cell(costs, "peak memory (bytes)")) is None else int(peak),
                    step_s=_cell(costs, "training step (s)") or 0.0,
                    token_bytes=int(_cell(costs, "state of a token (bytes)") or 0),
                    at=tuple(int(step) for step in line.x),
                    on_the_way=tuple(seed.curves[0].series[0].seeds[0] for seed in seeds),
                )
            )
        whole = sum(result.seconds for result in self._done.values())
        chance = _cell(self._done[self.plan.contenders[0].label, "seed 0"], "chance") or 0.0
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return Outcome(self.plan.to_json(), chance, tuple(sides), round(whole, 1), date, machine(), versions())

    def _weight(self, label: str, kind: str) -> float:
        """Seconds foreseen for a piece."""
        if kind == "speed":
            return _MEASURE
        known = self._done.get((label, "speed"))
        step = _GUESS if known is None else _cell(known, "training step (s)") or _GUESS
        return 1.0 + step * (self.plan.quarter if kind.startswith("rate") else self.plan.steps * _LOOKS)

    def _whole(self) -> float:
        plan = self.plan
        kinds = ["speed", *(f"rate {rate}" for rate in RATES), *(f"seed {seed}" for seed in range(plan.seeds))]
        return sum(self._weight(side.label, kind) for side in plan.contenders for kind in kinds)

    def _share(self) -> float:
        """How much of the foreseen time is behind."""
        behind = sum(self._weight(label, kind) for label, kind in list(self._done))
        if (job := self._job) is not None and self._now not in self._done:
            behind += job.fraction * self._weight(*self._now)
        return min(1.0, behind / self._whole())

    def _touch(self, on_event: Callable[[Comparison], None] | None) -> None:
        self.fraction = max(self.fraction, min(0.999, self._share()))
        self.change += 1
        if on_event is not None:
            on_event(self)

    def _end(self, state: State) -> None:
        self.ended, self._job, self.doing = time.monotonic(), None, ""
        if state == "done":
            self.fraction = 1.0
        self.state = state
        self.change += 1


class _Stopped(Exception):
    """A piece did not come to a result; ``error`` is empty where somebody wanted it so."""

    def __init__(self, error: str, log: str = "") -> None:
        super().__init__(error)
        self.error, self.log = error, log


def _words(kind: str) -> str:
    if kind == "speed":
        return "measuring speed and memory"
    return f"trying learning {kind}" if kind.startswith("rate") else f"training {kind}"


def _cell(result: Result, column: str) -> float | None:
    """A number out of the one row of a result's first table; None where it is not there."""
    table = result.tables[0]
    if column not in table.columns:
        return None
    value = table.rows[0][table.columns.index(column)]
    return None if value is None else float(value)
