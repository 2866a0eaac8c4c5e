"""The site's factory: pages, built files, the guard before them and the answers to errors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from carrel import __version__
from carrel.desk import Desk
from carrel.web.assets import Assets
from carrel.web.errors import add_error_pages, refusal
from carrel.web.guard import Guard
from carrel.web.pages import atlas, compare, home, listing, method, paper, runs, search, small
from carrel.web.render import Renderer
from carrel.web.site import Site

_STATIC = Path(__file__).parent / "static"


def create_app(desk: Desk, *, hosts: Iterable[str] | None = None, static: Path = _STATIC) -> FastAPI:
    """The site over an open desk, which stays the caller's to close.

    Args:
        hosts: names (without port) that the site answers to; by default those of the loopback.
        static: the built front end.
    """
    app = FastAPI(title="Carrel", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    assets = Assets(static)
    site = Site(desk, assets, Renderer(assets, desk.catalogue))
    app.state.site = site
    # the order matters: /arxiv takes categories before it takes ids
    for room in (home, listing, paper, search, atlas, compare, method, runs, small):
        for route in room.router.routes:
            if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
                route.methods.add("HEAD")  # asks whether a page is there; the server leaves the body out
        app.include_router(room.router)
    add_error_pages(app)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=4)

    def refuse(request: Request, status: int, sentence: str) -> Response:
        return refusal(site, request, status, sentence)

    app.add_middleware(Guard, refuse=refuse, hosts=hosts)
    return app
