"""Something that goes on, told to a page as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from threading import Event

from carrel.web.words import Underway, job_words

_LOOK = 0.2  # seconds between two looks
_BEAT = 15.0  # seconds after which silence is broken, so that nothing between takes the stream for dead


async def follow(what: Underway, address: str, closing: Event) -> AsyncIterator[str]:
    """``now`` at every change, ``end`` with the address of the result once it is over; stops when the site closes."""
    said, silence = "", 0.0
    while not closing.is_set():
        over = what.finished
        now = json.dumps({"state": what.state, "fraction": round(what.fraction, 3), "text": job_words(what)})
        if now != said:
            yield f"event: now\ndata: {now}\n\n"
            said, silence = now, 0.0
        if over:
            yield f"event: end\ndata: {address}\n\n"
            return
        await asyncio.sleep(_LOOK)
        silence += _LOOK
        if silence >= _BEAT:
            yield ": still here\n\n"
            silence = 0.0
