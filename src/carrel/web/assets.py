"""The built front end: which file carries which name, and answering with it so that browsers keep it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import mimetypes
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_COMPRESSED = {".woff2", ".png", ".gz"}
_KEEP = "public, max-age=31536000, immutable"  # names carry a hash or a version, so a file never changes under its name


class Assets:
    """The files of one built front end; the set is read once, when the site starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}
        manifest, vendor = folder / "manifest.json", folder / "vendor.json"
        self.built = manifest.is_file() and vendor.is_file()
        if self.built:
            entries = json.loads(manifest.read_text(encoding="utf-8"))
            self._names = {entry["name"]: entry["file"] for entry in entries.values() if entry.get("isEntry")}
            self._names |= json.loads(vendor.read_text(encoding="utf-8"))
        files = (path for part in ("assets", "vendor") for path in (folder / part).rglob("*") if path.is_file())
        self._files = {path.relative_to(folder).as_posix(): path for path in files}
        plotly = _plotly()
        if plotly is not None:
            self._files["vendor/plotly.min.js"] = plotly
            self._names["plotly"] = f"vendor/plotly.min.js?v={importlib.metadata.version('plotly')}"

    def url(self, name: str) -> str:
        """The address of ``page``, ``plots``, ``styles``, ``htmx``, ``mathjax`` (a folder) or ``plotly``."""
        return f"/static/{self._names[name]}" if name in self._names else ""

    def answer(self, name: str, request: Request) -> Response:
        """The file as an answer: 304 if the browser has it, compressed if that helps and is wanted, 404 if unknown."""
        path = self._files.get(name)
        if path is None:
            return Response("There is no such file.\n", 404, media_type="text/plain")
        tag = _tag(path)
        headers = {"ETag": tag, "Cache-Control": _KEEP, "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if path.suffix == ".woff2":
            kind = "font/woff2"
        if path.suffix not in _COMPRESSED and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(_squeezed(path), headers={**headers, "Content-Encoding": "gzip"}, media_type=kind)
        return Response(path.read_bytes(), headers=headers, media_type=kind)


def _plotly() -> Path | None:
    # the Python package carries the script; the package itself is never imported here
    spec = importlib.util.find_spec("plotly")
    path = Path(spec.origin).parent / "package_data/plotly.min.js" if spec and spec.origin else None
    return path if path and path.is_file() else None


@lru_cache(maxsize=256)
def _tag(path: Path) -> str:
    return f'"{hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()}"'


@lru_cache(maxsize=64)
def _squeezed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 6, mtime=0)
