"""The results that are part of the repository, so that a fresh install has every figure."""

from __future__ import annotations

from pathlib import Path

from carrel.atlas.cache import write_whole
from carrel.atlas.result import Result


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
