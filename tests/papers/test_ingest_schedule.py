"""Announcement days worked by hand from arXiv's weekly schedule."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from carrel.papers.ingest.schedule import estimated_announcement


@pytest.mark.parametrize(
    ("submitted", "announced"),
    [
        # winter: 14:00 in New York is 19:00 UTC; 2024-01-08 is a Monday
        ("2024-01-08T18:59:59", "2024-01-09"),  # before Monday's deadline: Monday evening, Tuesday's feed
        ("2024-01-08T19:00:00", "2024-01-10"),  # at the deadline: waits a day
        ("2024-01-09T12:00:00", "2024-01-10"),
        ("2024-01-10T20:00:00", "2024-01-12"),
        ("2024-01-11T18:00:00", "2024-01-12"),  # before Thursday's deadline: Friday's feed
        ("2024-01-11T19:30:00", "2024-01-15"),  # Friday's mailing goes out on Sunday: Monday's feed
        ("2024-01-12T18:59:00", "2024-01-15"),
        ("2024-01-12T19:00:00", "2024-01-16"),  # the weekend waits for Monday's deadline
        ("2024-01-13T12:00:00", "2024-01-16"),
        ("2024-01-14T23:00:00", "2024-01-16"),
        ("2024-01-09T03:00:00", "2024-01-10"),  # in UTC Tuesday, in New York still Monday evening
        # summer: 14:00 in New York is 18:00 UTC
        ("2024-07-08T17:59:59", "2024-07-09"),
        ("2024-07-08T18:00:00", "2024-07-10"),
        # the clocks change on Sunday 2024-03-10: Friday before it still 19:00, Monday after it 18:00
        ("2024-03-08T18:30:00", "2024-03-11"),
        ("2024-03-11T18:30:00", "2024-03-13"),
        # and back on Sunday 2024-11-03
        ("2024-11-01T18:30:00", "2024-11-05"),
        ("2024-11-04T18:30:00", "2024-11-05"),
        # in 2006 summer began in April: 2006-03-13 is a Monday in winter time
        ("2006-03-13T18:30:00", "2006-03-14"),
    ],
)
def test_the_day_follows_from_the_schedule(submitted: str, announced: str) -> None:
    instant = datetime.fromisoformat(submitted).replace(tzinfo=UTC)
    assert estimated_announcement(instant) == date.fromisoformat(announced)


def test_an_instant_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="with a time zone"):
        estimated_announcement(datetime(2024, 1, 1))
