"""Run a server until it is told to stop: a socket, a drain, an exit that says what happened."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from nemodiff_trt.errors import EngineStoppedError, InvalidInputError
from nemodiff_trt.runtime.engine import AsyncTriModeEngine, TriModeEngine
from nemodiff_trt.runtime.server.app import LOG_NAME, create_app
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.served_model import ServedModel

_BACKLOG = 2048
# Longer than balancers keep idle connections, so that it is they who close them.
_KEEP_ALIVE_S = 75


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 takes a free one. After a signal to stop, open requests have `drain_s` seconds to finish."""

    host: str
    port: int
    drain_s: int


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidInputError: the address is taken, unknown or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise InvalidInputError("host", f"{host}:{port}", f"an address of this machine ({error})") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        opened.close()
        raise InvalidInputError("port", port, f"a free port of {host} ({getattr(error, 'strerror', error)})") from error
    return opened


def url_of(opened: socket.socket) -> str:
    """Where a socket can be reached."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if opened.family == socket.AF_INET6 else f"http://{host}:{port}"


def serve(
    engine: TriModeEngine, model: ServedModel, options: ServerOptions, address: Address, on_ready: Callable[[str], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT. A second signal stops at once.

    Args:
        engine: belongs to the server from now on.
        model: what it runs.
        options: of the server.
        address: where to listen.
        on_ready: called with the address once connections are taken.

    Raises:
        InvalidInputError: the address cannot be had.
        EngineStoppedError: the engine stopped by itself. A supervisor has to start the server again.
    """
    opened = open_socket(address.host, address.port)
    logging.getLogger(LOG_NAME).setLevel(logging.INFO)
    has_failed = False

    def stop() -> None:
        nonlocal has_failed
        has_failed = server.should_exit = True

    app = create_app(AsyncTriModeEngine(engine), model, options, stop)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=address.drain_s,
        )
    )
    # The server raises the signal again once it has stopped, and a stop that was asked for is no failure.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        on_ready(url_of(opened))
        server.run(sockets=[opened])
    finally:
        signal.signal(signal.SIGTERM, before)
    if has_failed:
        raise EngineStoppedError("the engine stopped; the log above says why")
