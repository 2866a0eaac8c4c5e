"""What pages and commands show of the shelf: days, papers, finds. No HTTP, no SQL."""

from __future__ import annotations

import calendar
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from .categories import CategoryExpression, parse_expression
from .identifiers import BadIdentifier, parse_arxiv_id
from .model import Paper, PaperNotFound
from .store import Papers, Store

if TYPE_CHECKING:
    from .search import Index

FOLLOWED = ("cs.LG", "cs.CL", "cs.CV", "cs.AI", "stat.ML")  # until readers choose their own
_HOME_PAPERS = 10


@dataclass(frozen=True, slots=True)
class DayList:
    """One day of one category expression.

    Attributes:
        day: None where no day of the expression is on the shelf.
        papers: in the order of the announcement.
        methods: slugs by the key of the paper; papers that speak of none are left out.
        previous, next: the nearest days that have papers for this expression.
        new, cross: papers whose primary category is asked for, and those that are cross-listed.
    """

    expression: CategoryExpression
    day: date | None
    papers: tuple[Paper, ...]
    methods: Mapping[str, tuple[str, ...]]
    previous: date | None
    next: date | None
    new: int
    cross: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """The newest day of a category that is followed."""

    expression: CategoryExpression
    day: date
    count: int


@dataclass(frozen=True, slots=True)
class Home:
    """The front page.

    Attributes:
        count: papers on the shelf.
        followed: the newest day of each followed category that has one.
        recent: the newest papers of all.
        speaking: the newest papers that speak of a method of the atlas.
        methods: slugs by key, of both lists.
    """

    count: int
    followed: tuple[Shelf, ...]
    recent: tuple[Paper, ...]
    speaking: tuple[Paper, ...]
    methods: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class PaperView:
    """One paper and the methods it speaks of."""

    paper: Paper
    methods: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as values JSON can hold."""
        return paper_json(self.paper) | {"methods": list(self.methods)}


@dataclass(frozen=True, slots=True)
class SearchView:
    """What a query found.

    Attributes:
        papers: one page of finds.
        total: how many there are on all pages.
        notices: sentences for the reader, such as what of the query was not understood.
        terms: the words to mark.
        exact: the key of the paper whose id was asked for, if it is on the shelf.
    """

    query: str
    papers: tuple[Paper, ...]
    methods: Mapping[str, tuple[str, ...]]
    total: int
    notices: tuple[str, ...]
    terms: tuple[str, ...]
    exact: str | None

    def to_json(self) -> dict[str, Any]:
        """The same as values JSON can hold."""
        return {
            "query": self.query,
            "total": self.total,
            "notices": list(self.notices),
            "exact": self.exact,
            "papers": [PaperView(p, self.methods.get(p.key, ())).to_json() for p in self.papers],
        }


class Browse:
    """The reading half of the desk.

    Args:
        store: the papers.
        index: finds their keys.
        followed: the categories on the front page.
    """

    def __init__(self, store: Store, index: Index, *, followed: Sequence[str] = FOLLOWED) -> None:
        self.store = store
        self.index = index
        self.followed = tuple(parse_expression(text) for text in followed)

    def day(self, expression_text: str, day: date | None = None) -> DayList:
        """A day's list, by default the newest.

        Raises UnknownCategory, BadExpression (both ValueErrors): the expression names or asks nothing that exists.
        """
        expression = parse_expression(expression_text)
        with self.store.begin() as papers:
            if day is None:
                day = papers.latest_day(expression)
            if day is None:
                return DayList(expression, None, (), {}, None, None, 0, 0)
            listed = papers.on(day, expression)
            new = sum(p.categories[0] in expression.include for p in listed)
            return DayList(
                expression=expression,
                day=day,
                papers=tuple(listed),
                methods=papers.methods_of(p.key for p in listed),
                previous=papers.neighbour(day, expression, later=False),
                next=papers.neighbour(day, expression, later=True),
                new=new,
                cross=len(listed) - new,
            )

    def month(self, expression_text: str | None, year: int, month: int) -> list[tuple[date, int]]:
        """The days of a month that have papers, and how many, oldest first, for a calendar."""
        last = calendar.monthrange(year, month)[1]
        with self.store.begin() as papers:
            found = papers.days(expression_text, since=date(year, month, 1), until=date(year, month, last))
        return found[::-1]

    def categories_on(self, day: date) -> list[tuple[str, int]]:
        """The categories that have papers on a day, and how many, the fullest first."""
        with self.store.begin() as papers:
            return papers.categories_on(day)

    def home(self) -> Home:
        """The front page."""
        with self.store.begin() as papers:
            recent = papers.recent(_HOME_PAPERS)
            speaking = papers.speaking(limit=_HOME_PAPERS)
            return Home(
                count=papers.count(),
                followed=tuple(shelf for shelf in (_shelf(papers, e) for e in self.followed) if shelf is not None),
                recent=tuple(recent),
                speaking=tuple(speaking),
                methods=papers.methods_of(p.key for p in (*recent, *speaking)),
            )

    def paper(self, key: str) -> PaperView:
        """One paper, by its key or any spelling of its arXiv id. Raises PaperNotFound."""
        with self.store.begin() as papers:
            try:
                paper = papers.get(key)
            except PaperNotFound:
                paper = papers.get(_arxiv_key(key))
            return PaperView(paper, papers.methods_of([paper.key]).get(paper.key, ()))

    def search(self, text: str, *, limit: int = 20, offset: int = 0, sort: str = "relevance") -> SearchView:
        """What the words find; any text is a query, and what of it was not understood is told in the notices.

        Args:
            limit, offset: which finds to show.
            sort: "relevance", "newest" or "oldest".
        Raises ValueError: another sort.
        """
        if sort not in ("relevance", "newest", "oldest"):
            raise ValueError(f"sort is 'relevance', 'newest' or 'oldest', not {sort!r}")
        found = self.index.search(text, limit=limit, offset=offset, sort=sort)  # type: ignore[arg-type]
        with self.store.begin() as papers:
            shown = papers.get_many(found.keys)
            exact = found.exact if found.exact and papers.get_many([found.exact]) else None
            notices = list(found.notices)
            if found.exact and exact is None:
                notices.append(f"{found.exact.removeprefix('arxiv:')} is the id of a paper that is not on this shelf.")
            return SearchView(
                query=text,
                papers=tuple(shown),
                methods=papers.methods_of(p.key for p in shown),
                total=found.total,
                notices=tuple(notices),
                terms=tuple(found.terms),
                exact=exact,
            )


def paper_json(paper: Paper) -> dict[str, Any]:
    """A paper as values JSON can hold; empty fields are left out."""
    values = {name: value for name, value in asdict(paper).items() if value not in (None, "", (), False)}
    for name in ("submitted", "updated", "announced"):
        if name in values:
            values[name] = values[name].isoformat()
    if paper.announced is None:
        values.pop("announced_seq", None)
    return values


def _shelf(papers: Papers, expression: CategoryExpression) -> Shelf | None:
    newest = papers.days(expression, limit=1)
    return Shelf(expression, *newest[0]) if newest else None


def _arxiv_key(text: str) -> str:
    try:
        return parse_arxiv_id(text).key
    except BadIdentifier:
        raise PaperNotFound(text) from None
