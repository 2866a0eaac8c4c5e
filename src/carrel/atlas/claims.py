"""``make claims``: run the experiments over three seeds; keep the full results, or only look with ``--quick``.

    python -m carrel.atlas.claims [--quick] [--jobs N] [SLUG…]

One experiment at a time, unless ``--jobs`` says how many: for the quick form, whose times nobody reads.

Exit status 1 if an experiment does not finish or a check of one does not hold.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.committed import write_committed
from carrel.atlas.job import Job
from carrel.atlas.report import VERDICTS
from carrel.atlas.runner import Runner


def run_claims(
    slugs: Sequence[str] = (), *, quick: bool = False, jobs: int = 1, catalogue: Catalogue | None = None
) -> list[str]:
    """Run these methods (all by default), one line each; returns what did not hold, empty if all is well.

    The full form writes the committed result of every method whose checks hold.
    """
    catalogue = catalogue or load_catalogue()
    wrong: list[str] = []
    idle: queue.SimpleQueue[Runner] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        for _ in range(jobs):
            idle.put(stack.enter_context(Runner(catalogue, cache=Path(scratch))))

        def finish(slug: str) -> Job:
            runner = idle.get()
            try:
                return runner.wait(runner.submit(slug, quick=quick, fresh=True))
            finally:
                idle.put(runner)

        with ThreadPoolExecutor(jobs) as pool:
            for job in pool.map(finish, slugs or tuple(catalogue)):
                line, faults = _line(job)
                print(line, flush=True)
                wrong += faults
                if job.result is not None and not faults and not quick:
                    write_committed(job.result, catalogue.results)
    return wrong


def _line(job: Job) -> tuple[str, list[str]]:
    result = job.result
    if result is None:
        return f"✗ {job.slug}: {job.error or job.state}\n{job.log}".rstrip(), [f"{job.slug} did not finish"]
    failed = [
        f"{job.slug}: {check.name} is {check.worst:.4g}, wanted {check.bound}"
        for check in result.checks
        if not check.passed
    ]
    mark = "✗" if failed else "✓"
    head = f"{mark} {job.slug}: {VERDICTS[result.verdict]} ({result.seconds:.0f} s). {result.finding}"
    return "\n".join([head, *(f"    {fault}" for fault in failed)]), failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m carrel.atlas.claims", description=__doc__.split("\n")[0])
    parser.add_argument("slugs", nargs="*", metavar="SLUG", help="by default all")
    parser.add_argument("--quick", action="store_true", help="the short form; writes nothing")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    options = parser.parse_args()
    try:
        faults = run_claims(options.slugs, quick=options.quick, jobs=max(1, options.jobs))
    except (ValueError, LookupError) as error:
        sys.exit(str(error))
    sys.exit(1 if faults else 0)
