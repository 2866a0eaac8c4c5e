"""One search on one state of the index: what is tried, in which order, and what the reader is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import tantivy

from .documents import schema
from .identifiers import BadIdentifier, parse_arxiv_id
from .matching import MOST_FUZZY, Match, ranked
from .query import parse

Sort = Literal["relevance", "newest", "oldest"]

_FEW, _HARDLY_ANY = 10, 3  # hits below which some of the words, or similar spellings, are tried
_LONGEST_PAGE = 1_000
_FURTHEST = 10_000  # hits that can be paged through: the engine reserves memory for all before the page
_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/\S+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        keys: of the papers on this page, best first.
        total: of papers found.
        notices: sentences for the reader: what was not understood, what else was tried.
        terms: for `highlight.mark`.
        exact: the key of the paper whose id the query is, if it is here.
    """

    keys: list[str]
    total: int
    notices: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    exact: str | None = None


def find(searcher: tantivy.Searcher, text: str, *, limit: int, offset: int, sort: Sort) -> Found:
    """What `search.Index.search` promises, on the state of the index that ``searcher`` sees."""
    return _Search(searcher, max(0, min(limit, _LONGEST_PAGE)), max(0, offset), sort).find(text)


class _Search:
    """One search: its page, its order and what the reader is told."""

    def __init__(self, searcher: tantivy.Searcher, limit: int, offset: int, sort: Sort) -> None:
        self._searcher, self._limit, self._offset, self._sort = searcher, limit, offset, sort
        self._notices: list[str] = []

    def find(self, text: str) -> Found:
        identifier = _identifier(text)
        if identifier is not None:
            found = self._by_id(*identifier)
            if found is not None:
                return found
        query = parse(text)
        self._notices += query.notices
        if query.node is None:
            return Found([], 0, [*self._notices, "Type some words, a name or an arXiv id."])
        match = Match(query.node, self._searcher)
        if not match.has_words:
            keys, total = self._hits(match.strict(), by_day=True)
            return Found(keys, total, self._notices)
        by_day = self._sort != "relevance"
        wanted = [match.strict()]
        keys, total = self._hits(wanted[0], by_day=by_day)
        if total < _HARDLY_ANY and (similar := match.similar()) is not None:
            wanted.append(similar)
            keys, total = self._hits(ranked(wanted), by_day=by_day)
            self._notices.append(f"Similar spellings of {_listed(match.misspelt)} were searched as well.")
            if match.more_misspelt:
                self._notices.append(f"No more than {MOST_FUZZY} words of a query are taken for misspelt ones.")
        if total < _FEW and not by_day and match.has_choice:
            have_all = total
            keys, total = self._hits(ranked([*wanted, match.loose()]), by_day=False)
            if total > have_all:
                some = "No paper has all of these; here are papers with some of them."
                few = "Few papers have all of these; papers with some of them follow."
                self._notices.append(few if have_all else some)
        return Found(keys, total, self._notices, list(match.terms))

    def _by_id(self, identifier: str, shown: str) -> Found | None:
        hits = self._searcher.search(tantivy.Query.term_query(schema(), "id", identifier), 1).hits
        if hits:
            key = self._key(hits[0][1])
            return Found([key][self._offset : self._offset + self._limit], 1, exact=key)
        self._notices.append(f"{shown} is not on this shelf.")
        return None

    def _hits(self, query: tantivy.Query, *, by_day: bool) -> tuple[list[str], int]:
        limit = min(self._limit, _FURTHEST - self._offset)
        if limit <= 0:
            if self._limit:
                self._notices.append(f"Only the first {_FURTHEST} papers can be paged through.")
            return [], _total(self._searcher.search(query, 1))
        if by_day:
            order = tantivy.Order.Asc if self._sort == "oldest" else tantivy.Order.Desc
            result = self._searcher.search(query, limit, offset=self._offset, order_by_field="day", order=order)
        else:
            result = self._searcher.search(query, limit, offset=self._offset)
        return [self._key(address) for _, address in result.hits], _total(result)

    def _key(self, address: tantivy.DocAddress) -> str:
        return str(self._searcher.doc(address).get_first("pid"))


def _total(result: Any) -> int:
    return int(result.count)


def _identifier(text: str) -> tuple[str, str] | None:
    """(the id as indexed, the id as shown) if the whole query is one."""
    try:
        identifier = parse_arxiv_id(text)
        return identifier.id, f"arXiv:{identifier.id}"
    except BadIdentifier:
        doi = _DOI.fullmatch(text.strip()[:400].encode(errors="ignore").decode())  # half a character fits no index
        return (doi[1].lower(), doi[1]) if doi else None


def _listed(words: list[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)
