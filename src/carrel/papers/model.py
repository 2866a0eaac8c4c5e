"""What the rest of `papers` speaks of: a frozen `Paper`, as one or more sources described it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime


class PaperNotFound(LookupError):
    """No paper has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no paper {key!r} on this shelf")
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """One paper. Ingesters yield them, the store keeps them, everything else takes them.

    Attributes:
        key: ``"arxiv:2303.06349"``, ``"doi:10.1000/182"`` or ``"bibtex:<citation key>"``; unique, stable.
        source: what described it: ``"starter"``, ``"bibtex"``, ``"kaggle"``, ``"daily"``, …
        as_of: ISO date or time (UTC) at which the source's record was current, ``""`` if it says none.
            ISO strings sort as times do; the newest record wins, whatever the order of import.
        title, abstract: cleaned text with its TeX kept.
        authors: display names, "First Last", in order.
        categories: canonical arXiv codes, the primary one first; empty for other sources.
        version: latest version seen, from 1.
        submitted, updated: instants of the first and the latest version, UTC.
        announced: arXiv's day (America/New_York); ``announced_seq`` is the place within that day, from 0.
        announced_estimated: True where the day was computed from the schedule.
        year: of publication, where nothing more exact is known.
        remark: one or two sentences of ours, in place of an abstract on the starter shelf.
        withdrawn: the latest version withdraws the paper.
    """

    key: str
    source: str
    title: str
    as_of: str = ""
    abstract: str = ""
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    version: int | None = None
    submitted: datetime | None = None
    updated: datetime | None = None
    announced: date | None = None
    announced_seq: int = 0
    announced_estimated: bool = False
    year: int | None = None
    venue: str | None = None
    comment: str | None = None
    journal_ref: str | None = None
    doi: str | None = None
    license: str | None = None
    remark: str = ""
    withdrawn: bool = False

    @property
    def arxiv_id(self) -> str | None:
        """The id without prefix and version, for papers of arXiv."""
        return self.key.removeprefix("arxiv:") if self.key.startswith("arxiv:") else None
