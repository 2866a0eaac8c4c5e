"""arXiv's mailing schedule: from the instant of submission to the day of the announcement, where no feed told it."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

_EASTERN = ZoneInfo("America/New_York")
_DEADLINE = time(14)
# Weekday of the deadline (Monday is 0) -> days until the feed: the mailing goes out at 20:00, and its feed carries the
# date of the next midnight. Friday's mailing goes out on Sunday.
_UNTIL_FEED = (1, 1, 1, 1, 3)


def estimated_announcement(submitted: datetime) -> date:
    """The day whose list shows a paper submitted at this instant, by the weekly schedule.

    What arrives before 14:00 US Eastern, Monday to Friday, is on the next weekday's list; what arrives later or at a
    weekend waits for the next deadline. Holidays and moderation, which delay, are not known here.

    Args:
        submitted: an aware instant.
    Raises ValueError: an instant without a time zone.
    """
    if submitted.tzinfo is None:
        raise ValueError(f"submitted must be an instant with a time zone, not {submitted.isoformat()}")
    local = submitted.astimezone(_EASTERN)
    deadline = local.date()
    if local.time() >= _DEADLINE:
        deadline += timedelta(1)
    if deadline.weekday() > 4:
        deadline += timedelta(7 - deadline.weekday())
    return deadline + timedelta(_UNTIL_FEED[deadline.weekday()])
