"""Start the site: take the port, fill the shelf, say the address."""

from __future__ import annotations

import errno
import logging
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import uvicorn
from fastapi import FastAPI

from carrel.desk import Desk, open_desk
from carrel.web.app import create_app

_HOST = "127.0.0.1"
_log = logging.getLogger("carrel.web")


class PortInUse(ValueError):
    """Another program listens there."""


def take_port(port: int) -> socket.socket:
    """A listening socket on this machine's loopback; raises PortInUse with what to do."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortInUse(f"port {port} is taken or not allowed; choose another with --port, or --port 0") from error
        raise
    return listener


def serve(data: Path | None = None, *, port: int = 8477, open_browser: bool = False) -> None:
    """Serve until interrupted. The port is taken first, so that a second start says so at once."""
    listener = take_port(port)
    port = listener.getsockname()[1]
    address = f"http://{_HOST}:{port}/"
    with listener, open_desk(data) as desk:
        print("filling the shelf; new methods or a new index take a moment …", flush=True)
        new = desk.refill()
        if new:
            print(f"put {new} papers of the starter shelf in place")
        print(f"Carrel is open at {address}   (data in {desk.data}; Ctrl+C closes)", flush=True)
        if open_browser:
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with index_kept(desk), suppress(KeyboardInterrupt):  # the way to close it
            _run(desk, listener)


@contextmanager
def index_kept(desk: Desk, every: float = 5.0) -> Iterator[None]:
    """Inside the block, a thread sees to the search index every so many seconds.

    So a running site makes an index again that was deleted or damaged, and takes up what an import, killed before its
    end, left to be taken up.
    """
    over = Event()

    def keep() -> None:
        said = ""
        while not over.wait(every):
            try:
                desk.freshen()
                said = ""
            except Exception as error:  # a full disk, say: the site goes on, and so does the trying
                if str(error) != said and not over.is_set():
                    said = str(error)
                    _log.warning("the search index could not be brought up to date: %s", said)

    thread = Thread(target=keep, daemon=True, name="carrel-index")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2)  # a large index in the making is left as it is, and made another time


class _Server(uvicorn.Server):
    """Tells the site that it closes; uvicorn alone would wait for those who follow a run, then cut them off."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
        self._closing: Event = app.state.site.closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)


def _run(desk: Desk, listener: socket.socket) -> None:
    _Server(create_app(desk)).run(sockets=[listener])
