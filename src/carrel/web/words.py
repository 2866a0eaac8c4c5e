"""Dates, spans and counts as a reader says them; the templates' filters."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Protocol

# not strftime: the words must not change with the locale of the machine
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


class Underway(Protocol):
    """What a page tells of something that goes on: a run, a comparison."""

    @property
    def state(self) -> str: ...
    @property
    def finished(self) -> bool: ...
    @property
    def fraction(self) -> float: ...
    @property
    def position(self) -> int: ...
    @property
    def note(self) -> str: ...
    @property
    def eta_s(self) -> float | None: ...


def long_day(day: date) -> str:
    """``Thursday 18 June 2026``."""
    return f"{_DAYS[day.weekday()]} {day.day} {_MONTHS[day.month - 1]} {day.year}"


def short_day(day: date) -> str:
    """``18 Jun 2026``."""
    return f"{day.day} {_MONTHS[day.month - 1][:3]} {day.year}"


def month(day: date) -> str:
    """``June 2026``."""
    return f"{_MONTHS[day.month - 1]} {day.year}"


def weekday(day: date) -> str:
    """``Thu``."""
    return _DAYS[day.weekday()][:3]


def span(seconds: float | None) -> str:
    """``8 s``, ``2 min``, ``1 h 10 min``."""
    if seconds is None:
        return "a while"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ago(moment: str, now: datetime | None = None) -> str:
    """How long ago an ISO instant was: ``just now``, ``5 minutes ago``, ``on 18 Jun 2026``; empty if it is none."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return ""
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{counted(int(seconds // 60), 'minute')} ago"
    if seconds < 24 * 3600:
        return f"{counted(int(seconds // 3600), 'hour')} ago"
    return f"on {short_day(then.date())}"


def counted(number: int, noun: str, many: str | None = None) -> str:
    """``1 paper``, ``1,204 papers``."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def job_words(job: Underway) -> str:
    """Where a run is, in a line: ``seed 2 of 3 · about 15 s left``."""
    left = "" if job.eta_s is None else f"about {span(job.eta_s)} left"
    if job.state == "queued":
        place = "next in the queue" if job.position <= 1 else f"{job.position - 1} before it in the queue"
        return " · ".join(filter(None, (place, left)))
    if job.state == "running":
        return " · ".join(filter(None, (job.note or f"{job.fraction:.0%}", left)))
    return {"done": "done", "failed": "stopped with an error", "cancelled": "cancelled"}[job.state]
