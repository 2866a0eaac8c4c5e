"""``make claims``: run the experiments over three seeds; keep the full results, or only look with ``--quick``.

    python -m carrel.atlas.claims [--quick] [SLUG…]

Exit status 1 if an experiment does not finish or a check of one does not hold.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.committed import write_committed
from carrel.atlas.job import Job
from carrel.atlas.report import VERDICTS
from carrel.atlas.runner import Runner


def run_claims(slugs: Sequence[str] = (), *, quick: bool = False, catalogue: Catalogue | None = None) -> list[str]:
    """Run these methods (all by default), one line each; returns what did not hold, empty if all is well.

    The full form writes the committed result of every method whose checks hold.
    """
    catalogue = catalogue or load_catalogue()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, Runner(catalogue, cache=Path(scratch)) as runner:
        for slug in slugs or tuple(catalogue):
            job = runner.wait(runner.submit(slug, quick=quick, fresh=True))
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
    words = sys.argv[1:]
    unknown = [word for word in words if word.startswith("-") and word != "--quick"]
    if unknown:
        sys.exit(f"no option {unknown[0]}; there is --quick")
    try:
        faults = run_claims([word for word in words if word != "--quick"], quick="--quick" in words)
    except (ValueError, LookupError) as error:
        sys.exit(str(error))
    sys.exit(1 if faults else 0)
