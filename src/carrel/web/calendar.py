"""A month of announcement days for the rail."""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Cell:
    """One square: its day, how many papers, and how many compared with the fullest day of the month (0 to 3)."""

    day: date
    count: int = 0
    level: int = 0


@dataclass(frozen=True)
class Month:
    """The weeks of a month, Monday first; squares outside it are None."""

    first: date
    weeks: tuple[tuple[Cell | None, ...], ...]


def month_of(day: date, days: Iterable[tuple[date, int]]) -> Month:
    """The month that ``day`` lies in, filled from ``days`` (days outside it are left out)."""
    counts = {one: count for one, count in days if (one.year, one.month) == (day.year, day.month)}
    most = max(counts.values(), default=1)

    def cell(number: int) -> Cell | None:
        if not number:
            return None
        one = day.replace(day=number)
        count = counts.get(one, 0)
        return Cell(one, count, -(-3 * count // most))

    # by numbers, not dates: the last week of December 9999 has days that no date can name
    weeks = calendar.Calendar(calendar.MONDAY).monthdayscalendar(day.year, day.month)
    return Month(day.replace(day=1), tuple(tuple(map(cell, week)) for week in weeks))
