"""Where what went wrong below becomes a status and a page: what was wrong, what was kept, what to do."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from carrel.atlas.catalogue import BadParameter, CardError, UnknownMethod
from carrel.atlas.runner import QueueFull
from carrel.papers.categories import BadExpression
from carrel.papers.identifiers import BadIdentifier
from carrel.papers.model import PaperNotFound
from carrel.papers.store import StoreError
from carrel.web.site import Site, site_of

_log = logging.getLogger("carrel.web")


class NoSuchRun(LookupError):
    """No run has this id."""


class BadRequest(ValueError):
    """Something in the address or the form cannot be used; the message says what was wanted, ``name`` which field."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Trouble:
    """How one kind of error is told. The error's own sentence says what was wrong."""

    status: int
    title: str
    kept: str
    do: str
    links: tuple[tuple[str, str], ...] = (("/", "To the front page"),)


_SEARCH, _ATLAS = ("/search", "Search the shelf"), ("/methods", "To the atlas")
_TROUBLES: dict[type[Exception], Trouble] = {
    PaperNotFound: Trouble(
        404,
        "This paper is not on the shelf",
        "Nothing was changed.",
        "Bring it in with carrel import and a file that holds it, or search for its title.",
        (_SEARCH,),
    ),
    BadIdentifier: Trouble(
        404,
        "This is neither a category nor a paper's id",
        "Nothing was changed.",
        "An id looks like 2303.06349 or math/0611800, a category like cs.LG, several like cs.LG+cs.CL-cs.CV.",
        (_SEARCH,),
    ),
    BadExpression: Trouble(
        404,
        "There is no such category",
        "Nothing was changed.",
        "Join categories with +, take one away with -; an archive such as cs or math means all it holds.",
    ),
    UnknownMethod: Trouble(
        404, "There is no such method", "Nothing was changed.", "The atlas lists all that can be run.", (_ATLAS,)
    ),
    NoSuchRun: Trouble(
        404,
        "There is no such run",
        "Results are kept: running the same numbers again gives them at once.",
        "Go to the method and run it.",
        (_ATLAS,),
    ),
    BadParameter: Trouble(
        422, "This number cannot be used", "Nothing was run.", "Go back, change the number and run again.", (_ATLAS,)
    ),
    BadRequest: Trouble(
        422, "This cannot be used", "Nothing was run and nothing was changed.", "Go back, change it and try again."
    ),
    QueueFull: Trouble(
        503,
        "The queue is full",
        "What waits goes on.",
        "Let some finish or cancel one, then run again.",
        (_ATLAS,),
    ),
    CardError: Trouble(
        500, "A card is not right", "Papers and results are untouched.", "Mend the file at that line and start again."
    ),
    StoreError: Trouble(
        503, "The papers cannot be read", "Nothing was changed.", "carrel doctor looks at the data folder."
    ),
}
_REFUSED = {
    400: ("This address is not taken", "Nothing was changed.", "Open the desk at the address it printed."),
    403: ("This was not taken", "Nothing was changed.", "Open the page on the desk and press its button there."),
}


def add_error_pages(app: FastAPI) -> None:
    """Have every error of the desk answered by its page."""
    for kind in _TROUBLES:
        app.add_exception_handler(kind, _domain)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unforeseen)


def refusal(site: Site, request: Request, status: int, sentence: str) -> Response:
    """The page of the guard's refusals."""
    title, kept, do = _REFUSED.get(status, ("This was not taken", "Nothing was changed.", "Go back and try again."))
    return _told(site, request, Trouble(status, title, kept, do), sentence)


def _domain(request: Request, error: Exception) -> Response:
    kind = next(kind for kind in type(error).__mro__ if kind in _TROUBLES)
    trouble = _TROUBLES[kind]
    if trouble.status >= 500:
        _log.error("%s", error)
    return _told(site_of(request), request, trouble, str(error), field=getattr(error, "name", ""))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        sentence = f"There is no page {request.url.path[:200]}."
        trouble = Trouble(404, "Nothing is here", "Nothing was changed.", "Search, or start from the front page.")
    elif error.status_code == 405:
        sentence = f"This page does not take {request.method} requests."
        trouble = Trouble(405, "That does not work here", "Nothing was changed.", "Open the page instead.")
    else:
        sentence = f"The request could not be read: {error.detail}"
        trouble = Trouble(error.status_code, "This cannot be used", "Nothing was changed.", "Go back and try again.")
    response = _told(site_of(request), request, trouble, sentence)
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1]) if first.get("loc") else "something"
    sentence = f"{name}: {str(first.get('msg', 'cannot be used')).lower()}, got {str(first.get('input', ''))[:80]!r}."
    return _told(site_of(request), request, _TROUBLES[BadRequest], sentence)


def _unforeseen(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    trouble = Trouble(
        500, "The desk made a mistake", "Your papers and results are untouched.", "The terminal shows the details."
    )
    return _told(site_of(request), request, trouble, "Something went wrong that should not have.")


def _told(site: Site, request: Request, trouble: Trouble, sentence: str, field: str = "") -> Response:
    if not sentence.startswith("arXiv"):
        sentence = sentence[:1].upper() + sentence[1:]
    if "x-part" in request.headers:  # an island asked: it shows the sentence where the reader is
        return PlainTextResponse(f"{sentence} {trouble.kept}", trouble.status, {"X-Field": field} if field else None)
    return site.render.page(request, "error.html", trouble.status, trouble=trouble, sentence=sentence)
