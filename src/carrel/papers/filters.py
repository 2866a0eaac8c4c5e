"""What filters of a query mean: categories, ids, years and days, as people write them."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from .categories import parse_expression
from .identifiers import BadIdentifier, parse_arxiv_id


@dataclass(frozen=True, slots=True)
class Within:
    """A filter by number: ``field`` ("year", or "date", "announced", "submitted" as day ordinals) from low to high.

    Both ends are included; None is an open end.
    """

    field: str
    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True)
class Among:
    """A filter by exact value: any of ``include`` and none of ``exclude`` in "cat", "id", "method" or "source"."""

    field: str
    include: frozenset[str]
    exclude: frozenset[str] = frozenset()


def _category(name: str, value: str) -> Among:
    expression = parse_expression(value)
    return Among(name, expression.include, expression.exclude)


def _identifier(name: str, value: str) -> Among:
    try:
        return Among(name, frozenset({parse_arxiv_id(value).id}))
    except BadIdentifier:
        return _exact(name, value)


def _exact(name: str, value: str) -> Among:
    return Among(name, frozenset({value.lower()}))


def _years(name: str, value: str) -> Within:
    low, high = _ends(value)
    for end in (low, high):
        if end and not re.fullmatch(r"[0-9]{4}", end):
            raise ValueError(f"wanted a year such as 2023 or a range such as 2020..2023, not {value!r}")
    return _ordered(name, int(low) if low else None, int(high) if high else None)


def _days(name: str, value: str) -> Within:
    low, high = _ends(value)
    first = _day(low, last=False).toordinal() if low else None
    return _ordered(name, first, _day(high, last=True).toordinal() if high else None)


def _ends(value: str) -> tuple[str, str]:
    low, range_sign, high = value.partition("..")
    if not low and not high:
        raise ValueError("a range wants at least one end" if range_sign else "wants a value")
    return (low, high) if range_sign else (low, low)


def _ordered(name: str, low: int | None, high: int | None) -> Within:
    if low is not None and high is not None and low > high:
        low, high = high, low
    return Within(name, low, high)


def _day(text: str, *, last: bool) -> date:
    """The first (or last) day of what is a day, a month or a year."""
    match = re.fullmatch(r"([0-9]{4})(?:-([0-9]{1,2})(?:-([0-9]{1,2}))?)?", text)
    try:
        if match is None:
            raise ValueError
        year = int(match[1])
        month = int(match[2]) if match[2] else 12 if last else 1
        day = int(match[3]) if match[3] else monthrange(year, month)[1] if last else 1
        return date(year, month, day)
    except ValueError:  # IllegalMonthError, too
        raise ValueError(f"wanted a day, month or year such as 2024-01-31, 2024-01 or 2024, not {text!r}") from None


FILTERS: dict[str, Callable[[str, str], Within | Among]] = {
    "cat": _category,
    "id": _identifier,
    "method": _exact,
    "source": _exact,
    "year": _years,
    "date": _days,
    "announced": _days,
    "submitted": _days,
}
