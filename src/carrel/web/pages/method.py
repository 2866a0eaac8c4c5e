"""A method's page: claim, finding, equation, figure, checks, form, code, papers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from carrel.atlas.catalogue import Card
from carrel.web.errors import BadRequest
from carrel.web.site import SiteDep

router = APIRouter()
_SEEDS = 3


@router.get("/methods/{slug}")
def method(slug: str, request: Request, site: SiteDep) -> Response:
    """One method."""
    card = site.desk.catalogue[slug]
    own = {f"arxiv:{paper.id}" for paper in card.papers}
    with site.desk.store.begin() as papers:
        speaking = [paper for paper in papers.speaking_of(slug, limit=12) if paper.key not in own]
        spoken = papers.speaking_counts().get(slug, 0)
    job = next((job for job in site.desk.runner.jobs() if job.slug == slug and not job.finished), None)
    return site.render.page(
        request,
        "method.html",
        section="atlas",
        bar=True,
        card=card,
        result=site.last_result(slug),
        job=job,
        speaking=speaking[:8],
        spoken=spoken,
        seeds=_SEEDS,
    )


@router.post("/methods/{slug}/run")
async def run(slug: str, request: Request, site: SiteDep) -> Response:
    """Start the experiment. An island gets the progress as a part of its page, a plain form the run's own page."""
    card = site.desk.catalogue[slug]
    given = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    options = {name: given.pop(name, "") for name in ("seeds", "quick", "fresh")}
    quick = bool(options["quick"])
    job = site.desk.runner.submit(
        slug,
        card.parse(_changed(card, given) if quick else given, quick=quick),
        seeds=_whole(options["seeds"] or str(_SEEDS)),
        quick=quick,
        fresh=bool(options["fresh"]),
    )
    if "x-part" in request.headers:
        response = site.render.page(request, "progress.html", 202, job=job)
        response.headers["X-Run"] = f"/runs/{job.id}"
        return response
    return RedirectResponse(f"/runs/{job.id}", 303)


def _changed(card: Card, given: dict[str, str]) -> dict[str, str]:
    """What the reader changed: the short form has its own numbers for the rest."""
    known = {parameter.name: parameter for parameter in card.parameters}
    return {
        name: value
        for name, value in given.items()
        if name not in known or known[name].parse(value) != known[name].default
    }


def _whole(text: str) -> int:
    number = text.strip()
    if not (number.isascii() and number.isdecimal() and len(number) < 4 and 1 <= int(number) <= 100):
        raise BadRequest(f"seeds must be a whole number between 1 and 100, got {text[:40]!r}.", "seeds")
    return int(number)
