"""Where the search index lies on disk: one folder a generation, and the file CURRENT that names the one in use.

A generation is built aside and then put in the place of the last by replacing CURRENT, which is atomic; a process that
is killed at any moment leaves the old one in use. One process at a time may write; readers need no lock.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import tantivy

from .documents import fingerprint, register, schema

_LOOK = 0.1  # seconds between two tries to get the lock


class IndexBusy(ValueError):
    """Another process is writing to the search index."""


class Generations:
    """The generations in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._current = folder / "CURRENT"
        self._writing = Lock()

    def current(self) -> Path | None:
        """The generation in use; None if there is none, or it was made for another schema or version."""
        try:
            name = self._current.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        generation = self.folder / name
        fits = name.startswith(f"{fingerprint()}-") and os.sep not in name and (generation / "meta.json").is_file()
        return generation if fits else None

    def begin(self) -> Path:
        """An empty folder for the next generation."""
        generation = self.folder / f"{fingerprint()}-{time.time_ns():x}"
        generation.mkdir(parents=True)
        return generation

    def publish(self, generation: Path) -> None:
        """Put ``generation`` in use. All but it and the one before it are removed."""
        before = self.current()
        beside = self._current.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            file.write(generation.name)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._current)
        _sync(self.folder)
        self.sweep(keep={generation, before} if before else {generation})

    def sweep(self, keep: set[Path]) -> None:
        """Remove what killed or former builds left behind."""
        for other in self.folder.iterdir():
            if other.is_dir() and other not in keep:
                shutil.rmtree(other, ignore_errors=True)

    @contextmanager
    def writing(self, patience: float = 0.0) -> Iterator[None]:
        """The right to write. Threads of this process wait for each other, other processes for ``patience`` seconds.

        Raises IndexBusy: another process is still writing. The lock goes with its process, also when that is killed.
        """
        limit = time.monotonic() + patience
        with self._writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "LOCK").open("a+b") as file:
                while not _lock(file.fileno()):
                    if time.monotonic() >= limit:
                        where = f"the search index in {self.folder}"
                        raise IndexBusy(f"another process is writing to {where}; try again when it is done")
                    time.sleep(_LOOK)
                yield


def open_index(generation: Path, *, new: bool = False) -> tantivy.Index:
    """Open a generation with its analyzers. Nothing else opens an index: without them every query would fail."""
    index = tantivy.Index(schema(), str(generation)) if new else tantivy.Index.open(str(generation))
    register(index)
    index.config_reader("manual")
    return index


def _sync(folder: Path) -> None:
    """Let the folder's entries reach the disk, where the system knows how."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file unless another process has; the system unlocks it when the file is closed or its process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
