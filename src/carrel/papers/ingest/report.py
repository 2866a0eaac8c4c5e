"""What an import did: its counts, and the file of what could not be taken as it came."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from .streams import UnreadableFile

_SHOWN = 200  # characters of a rejected line


class Format(StrEnum):
    """What files can be imported."""

    DAILY = "daily"
    KAGGLE = "kaggle"
    BIBTEX = "bibtex"


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is: bytes of the file (as it is packed) and records."""

    path: Path
    bytes_read: int
    bytes_total: int
    read: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did. ``read`` is the sum of new, updated, unchanged and rejected.

    Attributes:
        read: records in the file.
        new: papers that were not on the shelf.
        updated: papers that changed, once for each batch that changed them.
        unchanged: records that changed nothing, because they were known, older, or told again what a neighbour told.
        rejected: records that could not be used; the rejects file says why.
        noted: records that were used, but of which the rejects file has a remark.
        broken: one sentence if the file was cut off or damaged; all before that point was imported.
    """

    path: Path
    format: Format
    read: int
    new: int
    updated: int
    unchanged: int
    rejected: int
    noted: int
    seconds: float
    rejects_file: Path | None
    broken: str | None

    def to_json(self) -> dict[str, Any]:
        """The same as values JSON can hold."""
        values = asdict(self)
        values["path"] = str(self.path)
        values["rejects_file"] = str(self.rejects_file) if self.rejects_file else None
        return values


class Rejected(Exception):
    """A record that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say about a record: why it was rejected, or what was odd though it was ``kept``."""

    line: int
    reason: str
    text: str
    kept: bool = False


class Remarks:
    """The rejects file: JSON lines with line, reason, text and kept; made with the first remark.

    Args:
        folder: where it goes, as ``<name of the imported file>.rejects.jsonl``; None keeps the counts alone.
    Raises UnreadableFile: it cannot be written.
    """

    def __init__(self, folder: Path | None, imported: Path) -> None:
        self.path = folder / f"{imported.name}.rejects.jsonl" if folder else None
        self.rejected = 0
        self.noted = 0
        self._file: BinaryIO | None = None

    def add(self, remark: Remark) -> None:
        """Count the remark and write it down."""
        if remark.kept:
            self.noted += 1
        else:
            self.rejected += 1
        if self.path is None:
            return
        row = {"line": remark.line, "reason": remark.reason, "text": remark.text[:_SHOWN], "kept": remark.kept}
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            self._file.write(orjson.dumps(row) + b"\n")
        except OSError as error:
            raise UnreadableFile(f"the rejects file {self.path} cannot be written: {error.strerror}") from error

    @property
    def written(self) -> Path | None:
        """The file, if there was anything to write."""
        return self.path if self.rejected or self.noted else None

    def __enter__(self) -> Remarks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        elif kind is None and self.path is not None:
            self.path.unlink(missing_ok=True)  # of an earlier import of a file of this name
