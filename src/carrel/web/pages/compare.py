"""Mixers side by side: the form, a comparison as it goes, its table and figures."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from carrel.atlas.compare.comparison import Comparison
from carrel.atlas.compare.contender import offers
from carrel.atlas.compare.outcome import Outcome
from carrel.atlas.compare.plan import SIZES, Plan
from carrel.atlas.compare.problems import PROBLEMS
from carrel.atlas.compare.running import committed
from carrel.atlas.parameter import BadParameter
from carrel.web.errors import NoSuchRun
from carrel.web.following import follow
from carrel.web.site import Site, SiteDep

router = APIRouter(prefix="/compare")
_FIRST = ("s4d", "mamba", "transformer")  # ticked where nothing was asked
_TASK = "selective-copying"


@router.get("")
def start_page(request: Request, site: SiteDep) -> Response:
    """The form, with the last comparison here, else the one that came with the package."""
    asked = request.query_params
    task = asked.get("task", _TASK) if asked.get("task", _TASK) in PROBLEMS else _TASK
    known = offers(site.desk.catalogue)
    ticked = [name for name in asked.getlist("mixers") if name in known]
    ticked = [*ticked, "transformer"] if ticked else [name for name in _FIRST if name in known]
    here = site.desk.comparisons.all()
    going = next((one for one in here if not one.finished), None)
    last = next((one.outcome for one in here if one.outcome is not None), None) or committed(task)
    return _page(request, site, going, last, {"mixers": ticked, "variants": "", "task": task})


@router.post("")
async def start(request: Request, site: SiteDep) -> Response:
    """Begin. An island gets the progress as a part of its page, a plain form the comparison's own page."""
    form = await request.form()
    given = {name: text.strip() for name, text in form.items() if isinstance(text, str)}
    mixers = [name for name in form.getlist("mixers") if isinstance(name, str)]
    variants = given.get("variants", "").split()
    try:
        plan = Plan.of([*mixers, *variants], given.get("task", _TASK), given, site.desk.catalogue)
    except BadParameter as error:
        if error.name == "mixers" and variants:
            error.name = "variants"
        raise
    comparison = site.desk.comparisons.start(plan, fresh=bool(given.get("fresh")))
    if "x-part" in request.headers:
        response = site.render.page(request, "compare-progress.html", 202, job=comparison)
        response.headers["X-Run"] = f"/compare/{comparison.id}"
        return response
    return RedirectResponse(f"/compare/{comparison.id}", 303)


@router.get("/{id}")
def comparison_page(id: str, request: Request, site: SiteDep) -> Response:
    """One comparison; for an island, the parts of the page that it changes."""
    comparison = _comparison(site, id)
    if request.headers.get("x-part") == "result":
        return site.render.page(request, "compare-result.html", job=comparison, outcome=comparison.outcome)
    plan = comparison.plan
    ticked = [side.label for side in plan.contenders if side.label == side.name]
    variants = " ".join(re.sub(r"\s", "", side.label) for side in plan.contenders if side.label != side.name)
    given = {"mixers": ticked, "variants": variants, **plan.to_json()}
    return _page(request, site, comparison, comparison.outcome, given)


@router.get("/{id}/events")
def events(id: str, site: SiteDep) -> Response:
    """Server-sent events, as of a run."""
    comparison = _comparison(site, id)
    stream = follow(comparison, f"/compare/{comparison.id}", site.closing)
    return StreamingResponse(stream, media_type="text/event-stream")


@router.post("/{id}/cancel")
def cancel(id: str, request: Request, site: SiteDep) -> Response:
    """Stop it; what was finished is kept for the next time."""
    comparison = _comparison(site, id)
    comparison.cancel()
    if "x-part" in request.headers:
        return Response(status_code=204)
    return RedirectResponse(f"/compare/{comparison.id}", 303)


def _page(
    request: Request, site: Site, job: Comparison | None, outcome: Outcome | None, given: dict[str, Any]
) -> Response:
    return site.render.page(
        request,
        "compare.html",
        section="compare",
        bar=True,
        job=job,
        outcome=outcome,
        given=given,
        offers=offers(site.desk.catalogue),
        problems=PROBLEMS,
        sizes=SIZES,
    )


def _comparison(site: Site, id: str) -> Comparison:
    try:
        return site.desk.comparisons.get(id)
    except LookupError as error:
        raise NoSuchRun(str(error)) from None
