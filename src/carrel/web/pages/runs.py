"""One run of an experiment: its page, its events while it goes on, its cancelling."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from carrel.atlas.runner import Job
from carrel.web.errors import NoSuchRun
from carrel.web.following import follow
from carrel.web.site import Site, SiteDep

router = APIRouter()


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
    job = _job(site, run)
    return StreamingResponse(follow(job, f"/runs/{job.id}", site.closing), media_type="text/event-stream")


@router.post("/runs/{run}/cancel")
def cancel(run: str, request: Request, site: SiteDep) -> Response:
    """Stop a run; one that is over stays as it is."""
    job = _job(site, run)
    site.desk.runner.cancel(job.id)
    if "x-part" in request.headers:
        return Response(status_code=204)
    return RedirectResponse(f"/runs/{job.id}", 303)


def _job(site: Site, run: str) -> Job:
    try:
        job = site.desk.runner.job(run)
    except LookupError as error:
        raise NoSuchRun(str(error)) from None
    if job.slug not in site.desk.catalogue:  # a piece of a comparison, which has a page of its own
        raise NoSuchRun(f"there is no run {run!r} of a method")
    return job
