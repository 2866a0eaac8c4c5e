"""What every request passes and every answer carries: who may ask, from where, and what a page may load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# MathJax' fonts and plotly set styles; plotly's pictures are blobs. Scripts come from us alone, none stands in a page.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LONGEST_BODY = 64 * 1024  # bytes: forms of a few numbers; files come in by the command line
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
_SAFE = {"GET", "HEAD", "OPTIONS"}

Refuse = Callable[[Request, int, str], Response]


class Guard:
    """ASGI middleware. ``refuse(request, status, sentence)`` makes the page that says why a request was not taken."""

    def __init__(self, app: ASGIApp, refuse: Refuse, hosts: Iterable[str] | None = None) -> None:
        self._app, self._refuse = app, refuse
        self._hosts = {host.lower() for host in (LOOPBACK if hosts is None else hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                _dress(MutableHeaders(scope=message))
            await send(message)

        objection = self._objection(scope["method"], Headers(scope=scope))
        if objection:
            await self._refuse(Request(scope), *objection)(scope, receive, dressed)
        else:
            await self._app(scope, receive, dressed)

    def _objection(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence, or None for a request that may go on."""
        host = headers.get("host", "").lower()
        name = _HOST.fullmatch(host)
        if name is None or name[1] not in self._hosts:
            # a name that somebody else's DNS points at this machine must not open the desk
            return 400, f"This desk does not answer to the name {host[:80] or '(none)'}; open it as 127.0.0.1."
        if method in _SAFE:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") or (origin is not None and _name(origin) != host):
            return 403, "This request came from another site, so nothing was done; use the form on the desk itself."
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "A form must say how long it is; nothing was done."
        if int(length) > LONGEST_BODY:
            return 413, f"A form holds at most {LONGEST_BODY:,} bytes, this one has {int(length):,}; nothing was done."
        return None


def _name(origin: str) -> str:
    """Host and port of an origin; empty, which no host is, for ``null`` and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _dress(headers: MutableHeaders) -> None:
    headers["Content-Security-Policy"] = CONTENT_POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers.setdefault("Cache-Control", "no-cache")
