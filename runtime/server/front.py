"""What happens to every request before and after its own handler: an id, the API key, a line in the log, counts."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemodiff_trt.runtime.server.errors import STATUS_CLIENT_LEFT, ApiError
from nemodiff_trt.runtime.server.metrics import ServerMetrics
from nemodiff_trt.runtime.server.options import ServerOptions

REQUEST_ID_HEADER = "x-request-id"
_PORT = re.compile(r":\d*$")
# An id of the client's own goes into the log and back to it, so it may hold nothing odd.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Front:
    """Middleware around the whole application.

    `scope["state"]` gets the `request_id`; handlers may add `note`, what the log shall say, and `client_left`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServerOptions,
        open_paths: frozenset[str],
        metrics: ServerMetrics,
        log: logging.Logger,
    ) -> None:
        """Paths other than `open_paths` need a key, if the server has any."""
        self._app = app
        self._keys = tuple(key.encode() for key in options.api_keys)
        self._hosts = frozenset(options.allowed_hosts)
        self._open_paths = open_paths
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, begin_s, status = Headers(scope=scope), time.perf_counter(), 500
        given_id = headers.get(REQUEST_ID_HEADER, "")
        state = scope["state"] = dict(scope.get("state") or {})
        state["request_id"] = given_id if _CLIENT_ID.fullmatch(given_id) else f"req-{secrets.token_hex(12)}"

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = state["request_id"]
            await send(message)

        self._metrics.num_open += 1
        try:
            error = self._refusal(scope["path"], headers)
            await (self._app if error is None else error.to_response())(scope, receive, send_with_id)
        finally:
            self._metrics.num_open -= 1
            status = STATUS_CLIENT_LEFT if state.get("client_left") else status
            self._finish(scope, status, begin_s)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        # A page of somebody else reaches this machine under its own name, once that name leads here.
        host = _PORT.sub("", headers.get("host", ""))
        if self._hosts and host.lower() not in self._hosts:
            return ApiError(421, f"host: got {host[:80]!r}, allowed: {', '.join(sorted(self._hosts))}", code="unknown_host")
        if path in self._open_paths or self._is_known(headers.get("authorization", "")):
            return None
        return ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def _is_known(self, authorization: str) -> bool:
        if not self._keys:
            return True
        # Headers are decoded as Latin-1, whatever they hold.
        kind, _, given = authorization.partition(" ")
        # All of them are compared, so that the time tells nothing of which one was close.
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self._keys]
        return kind.lower() == "bearer" and any(matches)

    def _finish(self, scope: Scope, status: int, begin_s: float) -> None:
        # Of a route; anything may be asked for, and metrics must not grow with it.
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.add_request(path, status)
        ms = (time.perf_counter() - begin_s) * 1e3
        note = scope["state"].get("note", "")
        known = path if path != "other" else repr(scope["path"][:80])
        self._log.info("%s %s %s %d %.1f ms %s", scope["state"]["request_id"], scope["method"], known, status, ms, note)
