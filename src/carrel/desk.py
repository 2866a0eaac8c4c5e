"""The desk joins the two halves: the shelf of papers and the atlas of methods. No torch, no HTTP.

Everything a person can do, the command line and the site do through one `Desk`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from platformdirs import user_data_path

from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.runner import Runner
from carrel.papers.browse import Browse
from carrel.papers.ingest import ImportReport, import_file
from carrel.papers.ingest.starter import starter_papers
from carrel.papers.search import Index, open_index
from carrel.papers.store import Store, open_store


class DataFolderError(ValueError):
    """The data folder cannot be used; the message says which and why."""


def data_folder(wanted: Path | None = None) -> Path:
    """The folder that holds everything of this desk: ``wanted``, else ``CARREL_DATA``, else the platform's place.

    It is made if it is not there. Raises DataFolderError where it cannot be made or written.
    """
    folder = wanted or (Path(os.environ["CARREL_DATA"]) if os.environ.get("CARREL_DATA") else user_data_path("carrel"))
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataFolderError(
            f"the data folder {folder} cannot be written ({reason}); name another with --data or CARREL_DATA"
        ) from error
    return folder


def open_runner(data: Path, catalogue: Catalogue) -> Runner:
    """The runner of experiments alone, for commands that need no papers."""
    return Runner(catalogue, cache=data / "runs")


@dataclass
class Desk:
    """One open desk; use it as a context manager or call `close`."""

    data: Path
    store: Store
    index: Index
    catalogue: Catalogue
    runner: Runner
    browse: Browse = field(init=False)

    def __post_init__(self) -> None:
        self.browse = Browse(self.store, self.index)

    def refill(self) -> int:
        """Put the starter shelf in and bring links and index up to date; returns how many papers were new."""
        with self.store.begin() as papers:
            papers.relink(self.catalogue.aliases())
            counts = papers.put(starter_papers())
        self.index.update(self.store)
        return counts.new

    def import_files(
        self,
        paths: Iterable[Path],
        *,
        rejects: Path | None = None,
        on_progress: Callable[..., None] | None = None,
    ) -> list[ImportReport]:
        """Import files one after the other, each into store and index."""
        reports = []
        for path in paths:
            reports.append(import_file(path, self.store, on_progress=on_progress, rejects=rejects or self.data))
            self.index.update(self.store)
        return reports

    def close(self) -> None:
        self.runner.close()
        self.index.close()
        self.store.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_desk(data: Path | None = None) -> Desk:
    """Open the desk whose data lies in ``data`` (see `data_folder`), making it if it is new.

    Raises DataFolderError where the folder cannot be written.
    """
    folder = data_folder(data)
    catalogue = load_catalogue()
    store = open_store(folder / "carrel.sqlite3", aliases=catalogue.aliases())
    return Desk(folder, store, open_index(folder / "index"), catalogue, open_runner(folder, catalogue))
