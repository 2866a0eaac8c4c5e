"""The results that are part of the repository, so that a fresh install has every figure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from carrel.atlas.cache import write_whole
from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.report import Result
from carrel.atlas.runner import Runner


def write_committed(result: Result, folder: Path) -> Path:
    """Write ``<slug>.json`` for the repository. Refuses a quick result and one with a failed check (ValueError)."""
    if result.quick:
        raise ValueError(f"{result.slug}: a quick result is not committed; run the full form")
    failed = [check.name for check in result.checks if not check.passed]
    if failed:
        raise ValueError(f"{result.slug}: checks do not hold: {', '.join(failed)}")
    path = folder / f"{result.slug}.json"
    write_whole(path, result.text())
    return path


def refresh(slugs: Iterable[str] = (), *, cache: Path, catalogue: Catalogue | None = None) -> list[Path]:
    """Run methods anew (all by default, three seeds, full form) and write their committed results.

    Raises RuntimeError if one does not finish, ValueError if a check of one does not hold; those before it are written.
    """
    catalogue = catalogue or load_catalogue()
    written = []
    with Runner(catalogue, cache=cache) as runner:
        for slug in tuple(slugs) or tuple(catalogue):
            job = runner.wait(runner.submit(slug, fresh=True))
            if job.result is None:
                raise RuntimeError(f"{job.error or slug + ' was ' + job.state}\n{job.log}".rstrip())
            written.append(write_committed(job.result, catalogue.results))
    return written
