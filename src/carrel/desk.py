"""The desk joins the two halves: the shelf of papers and the atlas of methods. No torch, no HTTP.

Everything a person can do, the command line and the site do through one `Desk`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.compare.running import Comparisons
from carrel.atlas.runner import Runner
from carrel.folder import data_folder, runs_folder
from carrel.papers.browse import Browse
from carrel.papers.ingest import ImportReport, import_file
from carrel.papers.ingest.starter import starter_papers
from carrel.papers.search import Index, IndexBusy, open_index
from carrel.papers.store import Store, open_store

_PATIENCE = 600.0  # seconds that an import waits for another process that writes the index


@dataclass
class Desk:
    """One open desk; use it as a context manager or call `close`."""

    data: Path
    store: Store
    index: Index
    catalogue: Catalogue
    runner: Runner
    browse: Browse = field(init=False)
    comparisons: Comparisons = field(init=False)

    def __post_init__(self) -> None:
        self.browse = Browse(self.store, self.index)
        self.comparisons = Comparisons(self.runner)

    def refill(self) -> int:
        """Put the starter shelf in and bring links and index up to date; returns how many papers were new.

        Where another process is writing the index, what is new here is searched a little later (see `freshen`).
        """
        with self.store.begin() as papers:
            papers.relink(self.catalogue.aliases())
            counts = papers.put(starter_papers())
        self.freshen()
        return counts.new

    def freshen(self) -> None:
        """Have the index take up what changed, and made anew if it is gone; leaves it alone while another writes it."""
        with suppress(IndexBusy):
            self.index.update(self.store)

    def import_files(
        self,
        paths: Iterable[Path],
        *,
        rejects: Path | None = None,
        on_progress: Callable[..., None] | None = None,
    ) -> list[ImportReport]:
        """Import files one after the other, each into store and index.

        Raises UnreadableFile: nothing of a file can be imported; IndexBusy: another process writes the index for long.
        """
        reports = []
        for path in paths:
            reports.append(import_file(path, self.store, on_progress=on_progress, rejects=rejects or self.data))
            self.index.update(self.store, patience=_PATIENCE)
        return reports

    def close(self) -> None:
        self.comparisons.close()
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
    return Desk(folder, store, open_index(folder / "index"), catalogue, Runner(catalogue, cache=runs_folder(folder)))
