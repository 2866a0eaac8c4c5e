"""One paper: what is known of it, its abstract, and the methods that can be run."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from carrel.papers.identifiers import parse_arxiv_id
from carrel.web.site import Site, SiteDep

router = APIRouter()


def arxiv_paper(text: str, request: Request, site: Site) -> Response:
    """The paper with this arXiv id; another spelling of the id leads to the right address."""
    found = parse_arxiv_id(text)
    asked = f"{found.id}v{found.version}" if found.version else found.id
    if asked != text:
        return RedirectResponse(f"/arxiv/{quote(asked)}", 308)
    return _page(found.key, request, site, version=found.version)


@router.get("/paper/{key:path}")
def paper(key: str, request: Request, site: SiteDep) -> Response:
    """A paper by its key, for those that are not on arXiv."""
    if key.startswith("arxiv:"):
        return RedirectResponse(f"/arxiv/{quote(key.removeprefix('arxiv:'))}", 308)
    return _page(key, request, site)


def _page(key: str, request: Request, site: Site, version: int | None = None) -> Response:
    view = site.desk.browse.paper(key)
    cards = [site.desk.catalogue[slug] for slug in view.methods if slug in site.desk.catalogue]
    return site.render.page(
        request,
        "paper.html",
        section="today",
        paper=view.paper,
        version=version,
        cards=cards,
        results={card.slug: site.last_result(card.slug) for card in cards},
    )
