"""Runs experiments for the command line and the site: one at a time, in a separate process, within limits.

Nothing here loads torch. Jobs wait in a queue that everyone can see; a thread takes them one by one to a worker process
that is started with the first job and kept warm. A job that is cancelled, too slow or too large takes its worker along;
the next job gets a new one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from carrel.atlas.cache import ResultCache
from carrel.atlas.catalogue import Catalogue
from carrel.atlas.job import Job as Job
from carrel.atlas.job import State
from carrel.atlas.process import WorkerDied, WorkerProcess
from carrel.atlas.report import Report, ReportError
from carrel.atlas.work import Work

_LOOK = 0.1  # seconds between two looks at clock and memory
_KEPT = 200  # finished jobs that are remembered
_FULL = 50  # jobs that may wait


class QueueFull(RuntimeError):
    """More jobs wait than anyone will wait for."""


class Runner:
    """A queue of experiments and the worker that runs them. Safe to use from several threads.

    Args:
        catalogue: whose methods may be run.
        cache: folder for results; an identical request is answered from it unless ``fresh``.
        time_limit_s: wall seconds one job may take, all seeds together.
        memory_limit_mb: MB the worker may hold.
        idle_s: seconds without a job after which the worker is let go, and its memory with it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        cache: Path,
        time_limit_s: float = 1800.0,
        memory_limit_mb: float = 8192.0,
        idle_s: float = 900.0,
    ) -> None:
        self.catalogue = catalogue
        self.cache = ResultCache(cache)
        self.time_limit_s, self.memory_limit_mb, self._idle_s = time_limit_s, memory_limit_mb, idle_s
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
        self._worker: WorkerProcess | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        slug: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        seeds: int = 3,
        quick: bool = False,
        fresh: bool = False,
    ) -> Job:
        """Ask for the experiment of a method. Returns and raises what ``enqueue`` does, and what ``Work.of`` raises."""
        return self.enqueue(Work.of(self.catalogue, slug, parameters or {}, seeds, quick), fresh=fresh)

    def enqueue(self, work: Work, *, fresh: bool = False) -> Job:
        """Ask for a run. Returns at once, with a finished job if the result is kept or a waiting one if asked before.

        Raises QueueFull.
        """
        job = Job(secrets.token_hex(6), work, work.key)
        kept = None if fresh else self.cache.get(work.slug, job.key)
        with self._changed:
            if self._closed:
                raise RuntimeError("the runner is closed")
            if kept is not None:
                job.cached, job.result = True, kept
                self._jobs[job.id] = job
                self._end(job, "done")
                return job
            for other in (*self._queue, *([self._running] if self._running else [])):
                if other.key == job.key and not fresh and not other.stop:
                    return other
            if len(self._queue) >= _FULL:
                raise QueueFull(f"{_FULL} experiments are waiting already; let some finish or cancel them")
            self._jobs[job.id] = job
            self._queue.append(job)
            self._count_places()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="carrel-runner")
                self._thread.start()
            self._changed.notify_all()
        return job

    def jobs(self) -> list[Job]:
        """The running job, those waiting in order, then the finished ones, newest first."""
        with self._changed:
            ended = [job for job in self._jobs.values() if job.finished]
            return [*([self._running] if self._running else []), *self._queue, *reversed(ended)]

    def job(self, id: str) -> Job:
        """Raises LookupError if there is no such job, or it is long past."""
        with self._changed:
            if id not in self._jobs:
                raise LookupError(f"there is no run {id!r}; it may have ended long ago")
            return self._jobs[id]

    def cancel(self, id: str) -> bool:
        """End a job: a waiting one leaves the queue, a running one is killed. False if it was over already."""
        job = self.job(id)
        with self._changed:
            if job.finished:
                return False
            job.stop = "cancelled"
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled")
                self._count_places()
            elif (worker := self._worker) is not None:  # read once: the other thread may drop it meanwhile
                worker.wake()
        return True

    def wait(self, job: Job, on_event: Callable[[Job], None] | None = None, timeout: float | None = None) -> Job:
        """Wait until a job is over; ``on_event(job)`` is called at every change, the last one included.

        Raises TimeoutError; the job goes on.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        seen = -1
        while True:
            with self._changed:
                while job.change == seen and not job.finished:
                    left = None if limit is None else limit - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"{job.slug} was still {job.state} after {timeout:g} s")
                    self._changed.wait(left)
                seen, over = job.change, job.finished
            if on_event is not None:
                on_event(job)
            if over:
                return job

    def close(self) -> None:
        """Cancel everything and end the worker. May be called twice."""
        with self._changed:
            self._closed = True
            for job in list(self._queue):
                self._end(job, "cancelled")
            self._queue.clear()
            if self._running is not None:
                self._running.stop = "cancelled"
            if (worker := self._worker) is not None:
                worker.wake()
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._drop_worker()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed, self._idle_s)
                if self._closed:
                    return
                if self._queue:
                    job = self._running = self._queue.popleft()
                    job.position, job.state, job.started = 0, "running", time.monotonic()
                    job.note = "starting" if self._worker is None else ""
                    self._count_places()
                    self._touch(job)
                else:
                    job = None
            if job is None:
                self._drop_worker()
                continue
            try:
                self._run(job)
            except Exception as error:  # a fault of ours must not leave the queue standing
                self._fail(job, f"{job.slug} could not be run: {type(error).__name__}: {error}")
                self._drop_worker()

    def _run(self, job: Job) -> None:
        reports: list[Report] = []
        try:
            worker = self._warm_worker(job.work)
            worker.send(job.work.order())
            while True:
                event = worker.receive(_LOOK)
                stop = job.stop or self._beyond_limits(job, worker)
                if stop:
                    self._drop_worker()
                    self._finish(job, "cancelled") if job.stop else self._fail(job, f"{job.slug} {stop}", worker.tail)
                    return
                if event is None or event["event"] == "ready":
                    continue
                if event["event"] == "progress":
                    self._tell(job, event["fraction"], event["note"])
                elif event["event"] == "report":
                    reports.append(Report.from_json(event["report"]))
                elif event["event"] == "failed":
                    where = f" with seed {job.seeds[len(reports)]}" if len(reports) < len(job.seeds) else ""
                    self._fail(job, f"{job.slug} failed{where}: {event['error']}", event["log"] + worker.tail)
                    return
                else:
                    break
        except WorkerDied as error:
            tail = self._worker.tail if self._worker else ""
            self._drop_worker()
            self._fail(job, f"{job.slug} did not finish: the worker {error}", tail)
            return
        try:
            result = job.work.result(reports, time.monotonic() - job.started)
            self.cache.put(job.key, result)
        except ReportError as error:
            self._fail(job, str(error))
            return
        except OSError as error:
            job.log = f"the result could not be kept: {error}"
        job.result = result
        self._finish(job, "done")

    def _warm_worker(self, work: Work) -> WorkerProcess:
        """The worker at hand, or a new one if there is none or code that it has loaded has changed since."""
        if self._worker is not None and not (self._worker.alive and self._worker.is_current()):
            self._drop_worker()
        if self._worker is None:
            self._worker = WorkerProcess()
        self._worker.will_load(work.experiment.parent)
        return self._worker

    def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _beyond_limits(self, job: Job, worker: WorkerProcess) -> str:
        if job.elapsed_s > self.time_limit_s:
            return f"was stopped at the time limit of {self.time_limit_s:g} s"
        if (held := worker.resident_mb() or 0.0) > self.memory_limit_mb:
            return f"was stopped at {held:.0f} MB of memory, above the limit of {self.memory_limit_mb:g} MB"
        return ""

    def _tell(self, job: Job, fraction: float, note: str) -> None:
        with self._changed:
            job.fraction, job.note = max(job.fraction, fraction), note
            self._count_places()
            self._touch(job)

    def _fail(self, job: Job, error: str, log: str = "") -> None:
        job.error, job.log = error, log
        self._finish(job, "failed")

    def _finish(self, job: Job, state: State) -> None:
        with self._changed:
            self._running = None
            self._end(job, state)
            self._count_places()

    def _end(self, job: Job, state: State) -> None:
        """Under the lock: the last change of a job."""
        job.state, job.position, job.ended = state, 0, time.monotonic()
        if state == "done":
            job.fraction, job.note = 1.0, ""
        ended = [other.id for other in self._jobs.values() if other.finished]
        for old in ended[:-_KEPT]:
            del self._jobs[old]
        self._touch(job)

    def _count_places(self) -> None:
        """Under the lock: every waiting job's place and what is before it."""
        before = self._running.eta_s if self._running else 0.0
        for place, job in enumerate(self._queue, 1):
            if job.position != place:
                job.position = place
                self._touch(job)
            job.wait_s = before
            before = None if before is None or job.estimate_s is None else before + job.estimate_s

    def _touch(self, job: Job) -> None:
        job.change += 1
        self._changed.notify_all()
