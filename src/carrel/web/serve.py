"""Start the site: take the port, fill the shelf, say the address."""

from __future__ import annotations

import errno
import socket
import webbrowser
from pathlib import Path
from threading import Thread

import uvicorn

from carrel.desk import Desk, open_desk
from carrel.web.app import create_app

_HOST = "127.0.0.1"


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
        new = desk.refill()
        if new:
            print(f"put {new} papers of the starter shelf in place")
        print(f"Carrel is open at {address}   (data in {desk.data}; Ctrl+C closes)", flush=True)
        if open_browser:
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        _run(desk, listener)


def _run(desk: Desk, listener: socket.socket) -> None:
    config = uvicorn.Config(create_app(desk), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
