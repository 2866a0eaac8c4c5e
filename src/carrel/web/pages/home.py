"""The front page: the newest day, papers whose methods can be run, and the methods themselves."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from carrel.web.site import SiteDep

router = APIRouter()
_TILES = 6
_RUNS = 5


@router.get("/")
def home(request: Request, site: SiteDep) -> Response:
    """What is new on this desk."""
    desk = site.desk
    shelf = desk.browse.home()
    newest = max((followed.day for followed in shelf.followed), default=None)
    with desk.store.begin() as papers:
        spoken = papers.speaking_counts()
    liked = sorted(desk.catalogue.values(), key=lambda card: (-spoken.get(card.slug, 0), card.title))
    return site.render.page(
        request,
        "home.html",
        section="today",
        home=shelf,
        newest=newest,
        categories=desk.browse.categories_on(newest)[:12] if newest else [],
        cards=liked[:_TILES],
        results={card.slug: site.last_result(card.slug) for card in liked[:_TILES]},
        spoken=spoken,
        runs=[job for job in desk.runner.jobs() if job.state != "cancelled" and job.slug in desk.catalogue][:_RUNS],
        comparisons=[one for one in desk.comparisons.all() if one.state != "cancelled"][:_RUNS],
    )
