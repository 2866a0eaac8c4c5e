"""The comparisons of a desk: started in threads of their own, remembered for a while, ended with it."""

from __future__ import annotations

import threading
from pathlib import Path

from carrel.atlas.compare.comparison import Comparison
from carrel.atlas.compare.outcome import Outcome
from carrel.atlas.compare.plan import Plan
from carrel.atlas.runner import QueueFull, Runner

_MOST = 6  # that go on at the same time, taking turns
_KEPT = 40  # finished ones that are remembered
_RESULTS = Path(__file__).parent / "results"


class Comparisons:
    """Safe to use from several threads. The runner stays the caller's to close."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._lock = runner, threading.Lock()
        self._known: dict[str, Comparison] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start(self, plan: Plan, *, fresh: bool = False) -> Comparison:
        """Begin; the same plan that is going on already is that one. Raises QueueFull."""
        with self._lock:
            going = [one for one in self._known.values() if not one.finished]
            for one in going:
                if one.plan == plan and not fresh:
                    return one
            if len(going) >= _MOST:
                raise QueueFull(f"{_MOST} comparisons go on already; let one finish or cancel it")
            comparison = Comparison(plan, self._runner, fresh=fresh)
            self._known[comparison.id] = comparison
            thread = threading.Thread(target=comparison.run, daemon=True, name=f"carrel-compare-{comparison.id}")
            self._threads[comparison.id] = thread
            thread.start()
            over = [one.id for one in self._known.values() if one.finished]
            for old in over[:-_KEPT]:
                del self._known[old], self._threads[old]
        return comparison

    def get(self, id: str) -> Comparison:
        """Raises LookupError if there is none, or it is long past."""
        with self._lock:
            if id not in self._known:
                raise LookupError(f"there is no comparison {id!r}; it may have ended long ago")
            return self._known[id]

    def all(self) -> list[Comparison]:
        """Newest first."""
        with self._lock:
            return list(reversed(self._known.values()))

    def close(self) -> None:
        """Stop all of them and wait until they have ended."""
        for comparison in self.all():
            comparison.cancel()
        for thread in list(self._threads.values()):
            thread.join()


def committed(task: str, folder: Path | None = None) -> Outcome | None:
    """The outcome on this task that came with the package, or None."""
    try:
        return Outcome.from_json(((folder or _RESULTS) / f"{task}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
