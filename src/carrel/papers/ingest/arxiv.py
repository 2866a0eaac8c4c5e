"""What the arXiv formats share: from loose JSON values to the fields of a paper, or the reason why not."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import Any

import orjson

from carrel.papers.categories import canonical, taxonomy
from carrel.papers.identifiers import ArxivId, BadIdentifier, parse_arxiv_id
from carrel.papers.text import clean, split_authors

from .report import Rejected
from .streams import Line

_CODE = re.compile(r"[a-z][a-z-]+(?:\.[A-Za-z][A-Za-z-]*)?", re.ASCII)
_WITHDRAWN = re.compile(
    r"\W*(?:(?:this|the|our)\s+)?(?:\w+\s+)?(?:paper|article|submission|manuscript|preprint|work|version)\s+"
    r"(?:(?:has|have)\s+been|is|was|being)\s+(?:\w+\s+)?withdrawn\b|\W*withdrawn\b",
    re.IGNORECASE,
)


_YEARS = range(1900, 2200)  # a few papers of the eighties are on arXiv; what lies outside is a fault of the file


def is_sensible(day: date) -> bool:
    """Whether a paper can have been sent or announced on this day."""
    return day.year in _YEARS


def json_object(line: Line) -> dict[str, Any]:
    """The object that a line holds. Raises Rejected."""
    if line.too_long:
        raise Rejected("the line is longer than 16 MB")
    try:
        value = orjson.loads(line.text)
    except orjson.JSONDecodeError as error:
        raise Rejected(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Rejected(f"wanted a JSON object, not {_KINDS.get(type(value), 'null')}")
    return value


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}


def identifier(row: dict[str, Any]) -> ArxivId:
    """The arXiv id of a row, repaired where it can be. Raises Rejected."""
    value = row.get("id")
    if isinstance(value, float):
        raise Rejected(f"the id {value} is a number, which lost the zeros at its end; wanted text")
    if not isinstance(value, str) or not value.strip():
        raise Rejected("it has no id")
    try:
        return parse_arxiv_id(value)
    except BadIdentifier as error:
        raise Rejected(str(error)) from None


def title(row: dict[str, Any]) -> str:
    """The title as it stands. Raises Rejected where there is none."""
    value = row.get("title")
    if not isinstance(value, str) or not value.strip():
        raise Rejected("it has no title")
    return value


def text(value: Any) -> str | None:
    """A cleaned one-line text, or None where there is none."""
    if not isinstance(value, str):
        return None
    return clean(value, one_line=True) or None


def abstract(value: Any) -> str:
    """A cleaned text of paragraphs."""
    return clean(value) if isinstance(value, str) else ""


def authors(value: Any) -> tuple[str, ...]:
    """Display names, from a list of them or one string."""
    if isinstance(value, str):
        return split_authors(value)
    if not isinstance(value, list):
        return ()
    return tuple(name for part in value if isinstance(part, str) and (name := clean(part, one_line=True)))


@lru_cache(maxsize=4096)
def _category(code: str) -> tuple[str | None, str | None]:
    """A code's canonical form, and what is odd about it."""
    shown = repr(code if len(code) <= 40 else code[:40] + "…")
    if not _CODE.fullmatch(code):
        return None, f"{shown} is no category and was left out"
    name = canonical(code)
    return name, None if name in taxonomy() else f"{shown} is a category that is not known here; it was kept"


def categories(value: Any) -> tuple[tuple[str, ...], str | None]:
    """Canonical codes, the primary one first, and what is odd about any of them.

    A code that is spelled like one but unknown is kept: arXiv founds categories, and no paper should wait for us.
    """
    codes = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    read = [_category(code.strip()) if isinstance(code, str) else (None, "a category is text") for code in codes]
    odd = [remark for _, remark in read if remark]
    return tuple(dict.fromkeys(name for name, _ in read if name)), "; ".join(odd) or None


def withdrawn(comment: str | None) -> bool:
    """Whether a comment says that the paper was withdrawn."""
    return comment is not None and _WITHDRAWN.match(comment) is not None
