"""What is no page: built files, the icon, colours without JavaScript, and whether the site is well."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from carrel import __version__
from carrel.web.render import THEMES
from carrel.web.site import SiteDep

router = APIRouter()
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1f4e8c"/>'
    '<path d="M6 9c4-1.6 7.3-1.2 10 .9 2.7-2.1 6-2.5 10-.9v14c-4-1.6-7.3-1.2-10 .9-2.7-2.1-6-2.5-10-.9z" fill="none" '
    'stroke="#fffdf9" stroke-width="2.2" stroke-linejoin="round"/><path d="M16 10v13" stroke="#fffdf9" '
    'stroke-width="2.2"/></svg>'
)


@router.get("/static/{name:path}")
def static(name: str, request: Request, site: SiteDep) -> Response:
    """A file of the built front end."""
    return site.assets.answer(name, request)


@router.get("/favicon.svg")
def icon() -> Response:
    """An open book."""
    return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=86400"})


@router.get("/favicon.ico")
def old_icon() -> Response:
    """Browsers ask for it in any case."""
    return RedirectResponse("/favicon.svg", 308)


@router.get("/healthz")
def health(site: SiteDep) -> JSONResponse:
    """Whether the store answers; for those who watch the site."""
    with site.desk.store.begin() as papers:
        count = papers.count()
    return JSONResponse({"well": True, "version": __version__, "papers": count, "methods": len(site.desk.catalogue)})


@router.post("/theme")
def theme(theme: Annotated[str, Form()] = "system", back: Annotated[str, Form()] = "/") -> Response:
    """Keep the reader's choice of colours; with JavaScript the page does this by itself."""
    inside = back.startswith("/") and not back.startswith(("//", "/\\"))
    response = RedirectResponse(back if inside else "/", 303)
    response.set_cookie("theme", theme if theme in THEMES else "system", max_age=31_536_000, samesite="lax")
    return response
