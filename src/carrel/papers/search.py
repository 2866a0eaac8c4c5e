"""Search over the papers of a store: an index beside it that can be deleted at any time and is then made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import tantivy

from .documents import document
from .finding import Found as Found
from .finding import Sort, find
from .generations import Generations
from .generations import IndexBusy as IndexBusy
from .generations import open_index as _open_generation

if TYPE_CHECKING:
    from .store import Papers, Store

Progress = Callable[[int, int], None]

_HEAP = 60_000_000  # bytes that the writer may fill before it writes a segment
_BATCH = 4_000  # papers read from the store at once and committed together
_log = logging.getLogger(__name__)


class IndexDamaged(ValueError):
    """An index just made does not hold what was put in."""


def open_index(folder: str | Path) -> Index:
    """Open the index in ``folder``, which need not exist; `Index.update` fills it from the store."""
    return Index(Path(folder))


class Index:
    """The search index of one store. Any number of threads may search; writing is one at a time."""

    def __init__(self, folder: Path) -> None:
        self._generations = Generations(folder)
        self._lock = RLock()
        self._engine: tantivy.Index | None = None
        self._searcher: tantivy.Searcher | None = None
        self._seen: tuple[Path, int, int] | None = None
        self._damaged = False
        self._counted = False

    def update(self, store: Store, *, patience: float = 0.0) -> int:
        """Take up what changed in the store since the last time; makes the index anew if it is missing or damaged.

        Killed at any moment, the next call ends in the same state: a change is forgotten by the store only after it is
        committed here, and taking it up twice changes nothing.

        Args:
            patience: seconds to wait for another process that is writing.
        Returns how many papers were written.
        Raises IndexBusy (a ValueError): another process is still writing.
        """
        with self._generations.writing(patience):
            if not self._usable():
                return self._rebuild(store, None)
            written = self._drain(store)
            if not self._counted:
                with store.begin() as papers:
                    waiting, here = papers.outbox(1), papers.count()
                if not waiting and here != self.count():
                    _log.info("the search index holds %d papers, the store %d: made anew", self.count(), here)
                    return self._rebuild(store, None)
                self._counted = True
            return written

    def rebuild(self, store: Store, on_progress: Progress | None = None) -> int:
        """Make the index anew beside the old one, which serves until the new one is complete.

        Args:
            on_progress: called with (papers done, papers in all).
        Returns how many papers were written.
        Raises IndexBusy: another process is writing; IndexDamaged: the new index does not hold every paper.
        """
        with self._generations.writing():
            return self._rebuild(store, on_progress)

    def search(self, text: str, *, limit: int = 20, offset: int = 0, sort: Sort = "relevance") -> Found:
        """The papers that ``text`` asks for, in the language of `query`.

        Never raises for any text. Where fewer than ten papers have all the words, those with some of them follow; where
        fewer than three have, words that hardly occur are also taken for misspelt ones.

        Args:
            limit, offset: the page; at most 10 000 hits deep.
        Cost: about 1 ms for a shelf of 20 000 papers, a few more where a second pass is needed.
        """
        try:
            searcher = self._fresh()
            if searcher is None:
                return Found([], 0, ["The search index is not ready yet."])
            return find(searcher, text, limit=limit, offset=offset, sort=sort)
        except BaseException as failure:
            # The engine panics on damaged files, which is no Exception. Anything of our own is a bug and goes up.
            if not _is_the_engines(failure):
                raise
            _log.warning("the search index is damaged: %.200s", failure)
            self._damaged = True
            return Found([], 0, ["The search index is damaged and will be made again."])

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._engine = self._searcher = None
            self._seen = None

    def _fresh(self) -> tantivy.Searcher | None:
        """A searcher on the newest commit of the generation in use."""
        with self._lock:
            generation = self._generations.current()
            if generation is None:
                self._engine = self._searcher = self._seen = None
                return None
            stat = (generation / "meta.json").stat()
            seen = (generation, stat.st_ino, stat.st_mtime_ns)
            if seen != self._seen:
                if self._engine is None or self._seen is None or self._seen[0] != generation:
                    self._engine = _open_generation(generation)
                self._engine.reload()
                self._searcher = self._engine.searcher()
                self._seen = seen
            return self._searcher

    def _usable(self) -> bool:
        if self._damaged:
            return False
        try:
            return self._fresh() is not None
        except BaseException as failure:
            if not _is_the_engines(failure):
                raise
            _log.warning("the search index cannot be opened: %.200s", failure)
            return False

    def count(self) -> int:
        """How many papers the index holds; 0 where there is none."""
        searcher = self._fresh()
        return searcher.num_docs if searcher else 0

    def _drain(self, store: Store) -> int:
        generation = self._generations.current()
        assert generation is not None
        written = 0
        writer: tantivy.IndexWriter | None = None
        while True:
            with store.begin() as papers:
                waiting = papers.outbox(_BATCH)
                if not waiting:
                    break
                keys = list(dict.fromkeys(key for _, key in waiting))
                if writer is None:
                    writer = _writer(_open_generation(generation))
                for key in keys:
                    writer.delete_documents_by_term("pid", key)
                written += _add(writer, papers, keys)
            writer.commit()
            with store.begin() as papers:
                papers.outbox_done(waiting[-1][0])
        if writer is not None:
            writer.wait_merging_threads()
        return written

    def _rebuild(self, store: Store, on_progress: Progress | None) -> int:
        generation = self._generations.begin()
        writer = _writer(_open_generation(generation, new=True))
        written = 0
        with store.begin() as papers:
            waiting = papers.outbox(1_000_000)  # what is read below is at least as new
            total = papers.count()
            for keys in _pieces(papers.all_keys()):
                written += _add(writer, papers, keys)
                if on_progress is not None:
                    on_progress(written, max(total, written))
        writer.commit()
        writer.wait_merging_threads()
        check = _open_generation(generation)
        if check.searcher().num_docs != written:
            raise IndexDamaged(f"the new search index holds {check.searcher().num_docs} of {written} papers")
        self._generations.publish(generation)
        if waiting:
            with store.begin() as papers:
                papers.outbox_done(waiting[-1][0])
        self._damaged, self._counted = False, True
        return written


def _writer(engine: tantivy.Index) -> tantivy.IndexWriter:
    try:
        return engine.writer(_HEAP, 1)
    except ValueError as failure:
        if "LockBusy" in str(failure):
            raise IndexBusy("another process is writing to the search index; try again when it is done") from None
        raise


def _add(writer: tantivy.IndexWriter, papers: Papers, keys: list[str]) -> int:
    methods = papers.methods_of(keys)
    found = papers.get_many(keys)
    for paper in found:
        writer.add_document(document(paper, methods.get(paper.key, ())))
    return len(found)


def _pieces(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while piece := list(islice(rest, _BATCH)):
        yield piece


def _is_the_engines(failure: BaseException) -> bool:
    """Whether the engine failed on its files: a panic, or an error that it raises as ValueError or OSError."""
    return type(failure).__name__ == "PanicException" or isinstance(failure, ValueError | OSError)
