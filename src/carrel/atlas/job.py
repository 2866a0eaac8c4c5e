"""One request to run an experiment, as everybody who waits for it sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from carrel.atlas.result import Result
from carrel.atlas.work import Work

State: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(eq=False, slots=True)
class Job:
    """Written by the runner alone; read by anyone. ``change`` grows by one with every change."""

    id: str
    work: Work
    key: str
    state: State = "queued"
    fraction: float = 0.0
    note: str = ""
    position: int = 0  # in the queue, from 1; 0 once it runs
    wait_s: float | None = None  # what the jobs before it will take
    result: Result | None = None
    error: str = ""
    log: str = ""  # traceback and last output, for those who want to know
    cached: bool = False
    change: int = 0
    started: float = 0.0  # monotonic seconds
    ended: float = 0.0
    stop: str = field(default="", repr=False)  # set to ask the runner to end it

    @property
    def slug(self) -> str:
        return self.work.slug

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.work.parameters

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.work.seeds

    @property
    def quick(self) -> bool:
        return self.work.quick

    @property
    def estimate_s(self) -> float | None:
        return self.work.estimate_s

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def elapsed_s(self) -> float:
        if not self.started:
            return 0.0
        return (self.ended or time.monotonic()) - self.started

    @property
    def eta_s(self) -> float | None:
        """Seconds until it is done, or None while that is anybody's guess.

        What the card says counts at first; what the run itself shows counts more and more over its first tenth.
        """
        if self.finished:
            return 0.0
        if self.state == "queued":
            known = self.estimate_s is not None and self.wait_s is not None
            return (self.wait_s or 0.0) + (self.estimate_s or 0.0) if known else None
        seen = self.elapsed_s / self.fraction if self.fraction > 0.01 else None
        if seen is None and self.estimate_s is None:
            return None
        trust = min(1.0, self.fraction * 10) if self.estimate_s is not None else 1.0
        total = trust * (seen or 0.0) + (1 - trust) * (self.estimate_s or 0.0)
        return max(1.0, total - self.elapsed_s)

    def to_json(self) -> dict[str, Any]:
        """Everything a page or a script shows of a job; the result itself apart."""
        eta = self.eta_s
        return {
            "id": self.id,
            "slug": self.slug,
            "parameters": dict(self.parameters),
            "seeds": list(self.seeds),
            "quick": self.quick,
            "state": self.state,
            "fraction": round(self.fraction, 4),
            "note": self.note,
            "position": self.position,
            "eta_s": None if eta is None else round(eta, 1),
            "elapsed_s": round(self.elapsed_s, 1),
            "error": self.error,
            "cached": self.cached,
        }
