"""Search, and how to search."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from carrel.papers.query import HELP, MOST_CHARACTERS
from carrel.web.errors import BadRequest
from carrel.web.pager import PER_PAGE, Pager
from carrel.web.render import address
from carrel.web.site import SiteDep

router = APIRouter()
_PAGES = 500  # as deep as the index can be paged through
SORTS = {"relevance": "best first", "newest": "newest first", "oldest": "oldest first"}


@router.get("/search")
def search(
    request: Request,
    site: SiteDep,
    q: str = "",
    sort: str = "relevance",
    page: Annotated[int, Query(ge=1, le=_PAGES)] = 1,
) -> Response:
    """What a query finds; a paper's id leads to the paper."""
    if sort not in SORTS:
        raise BadRequest(f"sort is {', '.join(SORTS)}, got {sort[:40]!r}.", "sort")
    if not q.strip():
        return site.render.page(request, "search.html", section="search", query="", found=None, sort=sort, sorts=SORTS)
    found = site.desk.browse.search(q, limit=PER_PAGE, offset=(page - 1) * PER_PAGE, sort=sort)
    if found.exact is not None and page == 1:
        return RedirectResponse(address(found.exact), 303)
    pager = Pager(min(found.total, _PAGES * PER_PAGE), page, PER_PAGE)
    if page > pager.pages:
        return RedirectResponse(f"/search?{urlencode({**request.query_params, 'page': pager.pages})}", 303)
    return site.render.page(
        request,
        "cards.html" if request.headers.get("hx-request") else "search.html",
        section="search",
        query=q[:MOST_CHARACTERS],
        found=found,
        sort=sort,
        sorts=SORTS,
        pager=pager,
        cards=site.render.cards(found.papers, found.methods, first=pager.start + 1, terms=found.terms),
        address="/search",
    )


@router.get("/search/help")
def search_help(request: Request, site: SiteDep) -> Response:
    """The query language."""
    return site.render.page(request, "search-help.html", section="search", queries=HELP, longest=MOST_CHARACTERS)
