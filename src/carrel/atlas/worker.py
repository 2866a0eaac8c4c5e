"""The process in which experiments run: ``python -m carrel.atlas.worker``, JSON lines on its standard streams.

In:  ``{"slug", "experiment", "seeds", "parameters"}``, one line per job.
Out: ``{"event": "ready"}`` once, then per job ``progress`` (fraction, note), ``report`` per seed, and ``done`` or
``failed`` (error, log). The process ends when its input does, in the middle of an experiment too.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from carrel.atlas.report import Report, listening

_PACKAGE = Path(__file__).parents[1]
_RATE = 20  # progress lines per second
_Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Serve jobs until standard input ends."""
    orders, say = _streams()
    faulthandler.enable()  # a crash in a kernel leaves its stack on stderr
    _step_back()
    say({"event": "ready"})
    while (order := orders.get()) is not None:
        try:
            _serve(order, say)
        except (Exception, SystemExit) as error:
            say({"event": "failed", "error": _sentence(error), "log": traceback.format_exc()})


def _streams() -> tuple[queue.Queue[Any], _Say]:
    """Take the protocol away from file descriptors 0 and 1, so that nothing an experiment prints can get into it."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    orders: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        for line in source:
            orders.put(json.loads(line))
        os._exit(0)  # nobody is left to hear the result

    threading.Thread(target=read, daemon=True).start()

    def say(event: dict[str, Any]) -> None:
        sink.write(json.dumps(event, allow_nan=False).encode() + b"\n")

    return orders, say


def _step_back() -> None:
    """Leave the processor and the memory to the site first: lower priority, and first to go when memory runs out."""
    if hasattr(os, "nice"):
        os.nice(5)
    with suppress(OSError):  # another system, or not allowed; only a courtesy
        Path("/proc/self/oom_score_adj").write_text("700")


def _serve(order: dict[str, Any], say: _Say) -> None:
    experiment = _load(Path(order["experiment"]))
    seeds = order["seeds"]
    teller = _Teller(len(seeds), say)
    for index, seed in enumerate(seeds):
        tell = teller.about(index)
        tell(0.0, "")
        _start_from(seed)
        with listening(tell):
            report = experiment.run(seed=seed, **order["parameters"])
        if not isinstance(report, Report):
            raise TypeError(f"the experiment returned {type(report).__name__}, a Report is wanted")
        if report.slug != order["slug"]:
            raise ValueError(f"the report is named {report.slug!r}, the experiment {order['slug']!r}")
        say({"event": "report", "report": report.to_json()})
    say({"event": "done"})


def _load(path: Path) -> ModuleType:
    """Our own experiments by their module name, those of another folder by their file."""
    if path.is_relative_to(_PACKAGE) and path.is_file():
        return importlib.import_module(".".join(("carrel", *path.relative_to(_PACKAGE).with_suffix("").parts)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no experiment {path.name} in {path.parent}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _start_from(seed: int) -> None:
    """Make a warm process as good as a new one: global generators and defaults must not carry over."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)


class _Teller:
    """Passes progress on, at most ``_RATE`` times a second once a first burst is spent; a rare word is never lost."""

    def __init__(self, seeds: int, say: _Say) -> None:
        self._seeds, self._say = seeds, say
        self._left, self._last = float(_RATE), time.monotonic()

    def about(self, index: int) -> Callable[[float, str], None]:
        """The listener for one seed."""

        def tell(fraction: float, note: str) -> None:
            now = time.monotonic()
            self._left = min(_RATE, self._left + (now - self._last) * _RATE)
            self._last = now
            if self._left < 1:
                return
            self._left -= 1
            which = f"seed {index + 1} of {self._seeds}" if self._seeds > 1 else ""
            words = ", ".join(part for part in (which, note) if part)
            self._say({"event": "progress", "fraction": (index + fraction) / self._seeds, "note": words})

        return tell


def _sentence(error: BaseException) -> str:
    """An error as one line: its message, with its type where the message alone would puzzle."""
    message = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f'{error.name} is not installed; the experiments need the extra "lab": install carrel[lab]'
    if not message:
        return type(error).__name__
    text = message if type(error) is ValueError else f"{type(error).__name__}: {message}"
    return text if len(text) <= 400 else text[:399] + "…"


if __name__ == "__main__":
    main()
