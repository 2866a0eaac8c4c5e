"""Importing a file: find out its format, put its records on the shelf in batches, report what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from carrel.papers.fold import Record
from carrel.papers.shelving import Counts
from carrel.papers.store import Store

from . import bibtex, daily, kaggle
from .report import Format, ImportProgress, ImportReport, Remark, Remarks
from .streams import Line, Lines, UnreadableFile

_BATCH = 2000  # records in one transaction
_LARGEST_BATCH = 64 << 20  # bytes of text; a small packed file can hold 2000 lines of 16 MB each
_HEAD = 1 << 20  # bytes looked at to find the format
_READERS: dict[Format, Callable[[Iterable[Line]], Iterator[Record | Remark]]] = {
    Format.DAILY: daily.read,
    Format.KAGGLE: kaggle.read,
    Format.BIBTEX: bibtex.read,
}
_WANTED = "wanted a daily listing or the Kaggle snapshot of arXiv (JSON lines) or BibTeX, plain or in gz, xz or zst"


def detect(path: Path) -> Format:
    """The format of a file, by what is in it; its name does not matter.

    Raises UnreadableFile (a ValueError): it cannot be opened, is empty, or is of no format we know.
    """
    head: list[bytes] = []
    size = 0
    lines = Lines(path)
    for line in lines:
        head.append(line.text)
        size += len(line.text)
        row = _object(line.text)
        if row is not None and daily.matches(row):
            return Format.DAILY
        if row is not None and kaggle.matches(row):
            return Format.KAGGLE
        if size > _HEAD:
            break
    if bibtex.matches(b"\n".join(head)):
        return Format.BIBTEX
    if lines.damage:
        raise UnreadableFile(f"{path} cannot be imported, nothing in it could be read: {lines.damage}")
    if not any(text.strip() for text in head):
        raise UnreadableFile(f"{path} is empty; {_WANTED}")
    raise UnreadableFile(f"{path} is of no known format; {_WANTED}")


def import_file(
    path: Path | str,
    store: Store,
    *,
    on_progress: Callable[[ImportProgress], None] | None = None,
    rejects: Path | None = None,
) -> ImportReport:
    """Bring the papers of a file onto the shelf.

    Every 2000 records, fewer where they are long, are one transaction: an import that is stopped, however, keeps what
    it had and is run again to finish. The end state depends only on which files were imported, not on order, repetition
    or interruption.

    Args:
        on_progress: called after each transaction.
        rejects: the folder for the file of rejected records, by default that of the store.
    Returns the report; ``broken`` is set if the file was cut off or damaged, and all before that point was imported.
    Raises UnreadableFile (a ValueError): nothing of it can be imported.
    Cost: memory for one batch.
    """
    path = Path(path)
    start = time.perf_counter()
    found = detect(path)
    lines = Lines(path)
    counts = Counts()
    read = 0
    with Remarks(rejects or store.folder, path) as remarks:
        items = _READERS[found](line for line in lines if line.too_long or line.text.strip())
        for batch in _batches(items, remarks, lines):
            if batch:
                with store.begin() as papers:
                    counts += papers.put_records(batch)
            read += len(batch)
            if on_progress is not None:
                seen = read + remarks.rejected
                on_progress(ImportProgress(path, lines.consumed, lines.size, seen, counts.new))
    return ImportReport(
        path=path,
        format=found,
        read=read + remarks.rejected,
        new=counts.new,
        updated=counts.updated,
        unchanged=read - counts.new - counts.updated,
        rejected=remarks.rejected,
        noted=remarks.noted,
        seconds=time.perf_counter() - start,
        rejects_file=remarks.written,
        broken=lines.damage,
    )


def _batches(items: Iterable[Record | Remark], remarks: Remarks, lines: Lines) -> Iterator[list[Record]]:
    """The records in batches, the last one maybe empty; remarks are written down on the way."""
    batch: list[Record] = []
    before = lines.unpacked
    for item in items:
        if isinstance(item, Remark):
            remarks.add(item)
            continue
        batch.append(item)
        if len(batch) == _BATCH or lines.unpacked - before > _LARGEST_BATCH:
            yield batch
            batch = []
            before = lines.unpacked
    yield batch


def _object(text: bytes) -> dict[str, object] | None:
    if not text.lstrip().startswith(b"{"):
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
