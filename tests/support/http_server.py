"""A server in a thread of the test, and what a client needs to talk to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import openai
import uvicorn

from nemodiff_trt.runtime.engine import AsyncTriModeEngine, TriModeEngine
from nemodiff_trt.runtime.server.app import create_app
from nemodiff_trt.runtime.server.metrics import ServerMetrics
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.serve import open_socket
from nemodiff_trt.runtime.server.served_model import ServedModel

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.perf_counter() + seconds
    while not is_so():
        assert time.perf_counter() < end, "it never came to be"
        time.sleep(0.005)


class HttpServer:
    """Serves `engine` while the context is open."""

    def __init__(self, engine: TriModeEngine, options: ServerOptions) -> None:
        self._socket = open_socket("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.stopped = threading.Event()
        app = create_app(AsyncTriModeEngine(engine), ServedModel.of(engine, "key"), options, self.stopped.set)
        self.metrics: ServerMetrics = app.state.metrics
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=20)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. A body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def error(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and error object of a request that is refused."""
        status, _, told = self.request("POST", path, body, headers)
        return status, json.loads(told)["error"]

    def metric(self, line: str) -> float:
        """Value of a metric, named as the text has it; 0 of one that is not there."""
        _, _, text = self.request("GET", "/metrics")
        values = [float(found.rpartition(" ")[2]) for found in text.decode().splitlines() if found.rpartition(" ")[0] == line]
        return values[0] if values else 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()
