"""The atlas: every method as a tile, by family, with the state of its claim."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Request, Response

from carrel.web.site import SiteDep

router = APIRouter()


@router.get("/methods")
def atlas(request: Request, site: SiteDep) -> Response:
    """All methods."""
    catalogue = site.desk.catalogue
    results = {slug: site.last_result(slug) for slug in catalogue}
    with site.desk.store.begin() as papers:
        spoken = papers.speaking_counts()
    return site.render.page(
        request,
        "atlas.html",
        section="atlas",
        groups=catalogue.groups(),
        results=results,
        spoken=spoken,
        states=Counter(result.verdict for result in results.values() if result),
    )
