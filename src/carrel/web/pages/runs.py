"""One run of an experiment: its page, its events while it goes on, its cancelling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from threading import Event

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from carrel.atlas.runner import Job
from carrel.web.errors import NoSuchRun
from carrel.web.site import Site, SiteDep
from carrel.web.words import job_words

router = APIRouter()
_LOOK = 0.2  # seconds between two looks at a job
_BEAT = 15.0  # seconds after which silence is broken, so that nothing between takes the stream for dead


@router.get("/runs/{run}")
def run_page(run: str, request: Request, site: SiteDep) -> Response:
    """The run's page; for an island, the parts of the method's page that the result changes."""
    job = _job(site, run)
    part = request.headers.get("x-part") == "result"
    template = "result.html" if part else "run.html"
    card = site.desk.catalogue[job.slug]
    return site.render.page(request, template, section="atlas", card=card, job=job, result=job.result)


@router.get("/runs/{run}/events")
def events(run: str, site: SiteDep) -> Response:
    """Server-sent events: ``now`` at every change, ``end`` with the address of the result."""
    return StreamingResponse(_follow(_job(site, run), site.closing), media_type="text/event-stream")


@router.post("/runs/{run}/cancel")
def cancel(run: str, request: Request, site: SiteDep) -> Response:
    """Stop a run; one that is over stays as it is."""
    job = _job(site, run)
    site.desk.runner.cancel(job.id)
    if "x-part" in request.headers:
        return Response(status_code=204)
    return RedirectResponse(f"/runs/{job.id}", 303)


async def _follow(job: Job, closing: Event) -> AsyncIterator[str]:
    said, silence = "", 0.0
    while not closing.is_set():
        over = job.finished
        now = json.dumps({"state": job.state, "fraction": round(job.fraction, 3), "text": job_words(job)})
        if now != said:
            yield f"event: now\ndata: {now}\n\n"
            said, silence = now, 0.0
        if over:
            yield f"event: end\ndata: /runs/{job.id}\n\n"
            return
        await asyncio.sleep(_LOOK)
        silence += _LOOK
        if silence >= _BEAT:
            yield ": still here\n\n"
            silence = 0.0


def _job(site: Site, run: str) -> Job:
    try:
        return site.desk.runner.job(run)
    except LookupError as error:
        raise NoSuchRun(str(error)) from None
