"""A worker process seen from outside: started, spoken to, measured, killed, and asked why it died."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from carrel.atlas.cache import code_version, cores

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_SIGNALS = {
    "SIGKILL": "was killed by the system, most likely because memory ran out",
    "SIGSEGV": "crashed with a segmentation fault",
    "SIGABRT": "aborted",
    "SIGTERM": "was told to stop",
}


class WorkerDied(Exception):
    """The process ended without an answer; the message says why, as far as can be known."""


class WorkerProcess:
    """One ``python -m carrel.atlas.worker``, in a session of its own so that Ctrl-C reaches only us."""

    def __init__(self) -> None:
        self._codes: dict[Path, str] = {}  # folders it has loaded experiments from, and the version of the code then
        self._asked: tuple[float, float | None] = (-1.0, None)
        self._tail: deque[str] = deque(maxlen=60)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "carrel.atlas.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=read, daemon=True, name=f"carrel-worker-{read.__name__.strip('_')}")
            for read in (self._read_events, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> str:
        """The last lines it wrote to standard error or standard output."""
        return "".join(self._tail)

    def will_load(self, experiments: Path) -> None:
        """Note that it is about to run code of this folder, and of the library with it."""
        self._codes.setdefault(experiments, code_version(experiments))

    def is_current(self) -> bool:
        """Whether all code that it may have loaded is still the same on disk."""
        return all(code_version(folder) == code for folder, code in self._codes.items())

    def send(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order, allow_nan=False).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDied(self.reason()) from None

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next event, or None when none came in time or ``wake`` was called. Raises WorkerDied."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if event is None:
            raise WorkerDied(self.reason())
        return event or None

    def wake(self) -> None:
        """Have ``receive`` return at once."""
        self._events.put({})

    def reason(self) -> str:
        """Why it ended, in words that follow "the worker"."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its output and hangs"
        self._readers[1].join(timeout=1)
        if status < 0:
            name = signal.Signals(-status).name if -status in signal.Signals._value2member_map_ else f"signal {-status}"
            return _SIGNALS.get(name, f"was ended by {name}")
        said = next((line.strip() for line in reversed(self._tail) if line.strip()), "")
        return f"ended with status {status}" + (f": {said[:200]}" if said else "")

    def resident_mb(self) -> float | None:
        """Memory it holds, in MB, or None where that cannot be learned."""
        try:
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
            return None
        except OSError:
            pass
        now = time.monotonic()
        if now - self._asked[0] < 1:  # starting ps is not free
            return self._asked[1]
        self._asked = (now, self._ask_ps())
        return self._asked[1]

    def _ask_ps(self) -> float | None:
        try:
            answer = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, timeout=5)
            return int(answer.stdout) / 1024
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def kill(self) -> None:
        """End it and whatever it started, now."""
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    # Each reader closes its own pipe, at its end: a process that left the group may hold the other end for long.

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                if line.endswith(b"\n"):  # else it died in the middle of it
                    self._events.put(json.loads(line))
        self._events.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            while line := pipe.readline(4096):
                self._tail.append(line.decode(errors="replace"))


def _environment() -> dict[str, str]:
    """Ours, with one thread per processor we may use, unless the user has said otherwise."""
    environment = dict(os.environ)
    for name in _THREADS:
        environment.setdefault(name, str(cores()))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
