"""A day's announcements in one or more categories; the same address takes a paper's id (see `paper`)."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from carrel.papers.browse import DayList
from carrel.papers.categories import parse_expression
from carrel.web.calendar import Month, month_of
from carrel.web.errors import BadRequest
from carrel.web.pager import PER_PAGE, Pager
from carrel.web.pages.paper import arxiv_paper
from carrel.web.site import Site, SiteDep

router = APIRouter()
_CATEGORIES = 16  # of the day, in the rail
_METHODS = 12


@router.get("/arxiv")
def archives_list() -> Response:
    """The front page lists the categories."""
    return RedirectResponse("/", 307)


@router.get("/arxiv/{what:path}")
def arxiv(
    what: str,
    request: Request,
    site: SiteDep,
    day: Annotated[str, Query(alias="date", max_length=20)] = "latest",
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    per: Annotated[int, Query(ge=1, le=500)] = PER_PAGE,
) -> Response:
    """A category-day, or a paper."""
    if any(letter.isdigit() for letter in what):  # no category has one, every id has
        return arxiv_paper(what, request, site)
    expression = parse_expression(what)
    if expression.text != what:
        return RedirectResponse(request.url.replace(path=f"/arxiv/{expression.text}").path + _asked(request), 308)
    listed = site.desk.browse.day(expression.text, _day(day))
    pager = Pager(len(listed.papers), page, per)
    shown = listed.papers[pager.start : pager.end]
    cards = site.render.cards(shown, listed.methods, first=pager.start + 1)
    context: dict[str, Any] = {"listed": listed, "cards": cards, "pager": pager, "address": f"/arxiv/{expression.text}"}
    if request.headers.get("hx-request"):
        return site.render.page(request, "cards.html", **context)
    spoken = Counter(slug for slugs in listed.methods.values() for slug in slugs if slug in site.desk.catalogue)
    return site.render.page(
        request,
        "listing.html",
        section="today",
        bar=True,
        month=_month(site, listed),
        met=[(site.desk.catalogue[slug], count) for slug, count in spoken.most_common(_METHODS)],
        categories=site.desk.browse.categories_on(listed.day)[:_CATEGORIES] if listed.day else [],
        **context,
    )


def _month(site: Site, listed: DayList) -> Month | None:
    if listed.day is None:
        return None
    days = site.desk.browse.month(listed.expression.text, listed.day.year, listed.day.month)
    return month_of(listed.day, days)


def _asked(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""


def _day(text: str) -> date | None:
    if text == "latest":
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"a day is written like 2026-06-18, got {text!r}.", "date") from None
