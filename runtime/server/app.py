"""The application: routes of the OpenAI API, metrics, health and the chat page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nemodiff_trt.errors import EngineStoppedError, NemodiffError
from nemodiff_trt.runtime.engine import AsyncTriModeEngine
from nemodiff_trt.runtime.server import request_bodies
from nemodiff_trt.runtime.server.errors import STATUS_CLIENT_LEFT, ApiError, ClientLeftError, to_api_error
from nemodiff_trt.runtime.server.front import Front
from nemodiff_trt.runtime.server.handler import Handler
from nemodiff_trt.runtime.server.metrics import CONTENT_TYPE, ServerMetrics
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.page_files import PageFile, read_page_files
from nemodiff_trt.runtime.server.served_model import ServedModel

LOG_NAME = "nemodiff.server"
_HEALTH_POLL_S = 0.5
_TEXT = {"schema": {"type": "string"}}
_PLAIN: dict[str, Any] = {"description": "Text.", "content": {"text/plain": _TEXT}}
_ANSWER: dict[str, Any] = {"description": "The answer, as events with `stream`.", "content": {"text/event-stream": _TEXT}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body cannot be used; `error.param` names the field."},
    401: {"description": "No valid API key."},
    404: {"description": "There is no such model."},
    408: {"description": "The body took too long."},
    413: {"description": "The body is too long."},
    415: {"description": "The body is not application/json."},
    421: {"description": "This machine is not called that."},
    429: {"description": "Too many requests wait; try again later."},
    503: {"description": "The engine has stopped."},
}


def create_app(
    engine: AsyncTriModeEngine,
    model: ServedModel,
    options: ServerOptions,
    on_engine_stopped: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Make an application; it holds all of its state.

    Args:
        engine: belongs to the application, which closes it at its own end.
        model: what the engine runs.
        options: of the server.
        on_engine_stopped: called once if the engine stops by itself, because nothing can be answered then.
    """
    log, metrics = logging.getLogger(LOG_NAME), ServerMetrics()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(engine, on_engine_stopped))
        yield
        watch.cancel()
        await engine.close()

    # The pages of API documentation that the framework offers load scripts from elsewhere.
    app = FastAPI(title="nemodiff serve", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = metrics
    _add_error_handlers(app)
    pages = read_page_files()
    open_paths = frozenset({"/health", *(page.path for page in pages)})
    app.add_middleware(Front, options=options, open_paths=open_paths, metrics=metrics, log=log)
    _add_answer_routes(app, Handler(engine, model, options, metrics, log))
    _add_fact_routes(app, engine, model, options, metrics)
    for page in pages:
        app.add_route(page.path, _serve(page), methods=["GET"], include_in_schema=False)
    return app


def _add_answer_routes(app: FastAPI, handler: Handler) -> None:
    @app.post("/v1/chat/completions", responses={200: _ANSWER, **_ERRORS}, openapi_extra=_body_schema(request_bodies.ChatBody))
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        return await handler.chat(request)

    @app.post("/v1/completions", responses={200: _ANSWER, **_ERRORS}, openapi_extra=_body_schema(request_bodies.CompletionBody))
    async def completion(request: Request) -> Response:
        """Go on with a text, or with token ids."""
        return await handler.completion(request)


def _add_fact_routes(
    app: FastAPI, engine: AsyncTriModeEngine, model: ServedModel, options: ServerOptions, metrics: ServerMetrics
) -> None:
    @app.get("/v1/models", responses=_errors(401, 421))
    async def models() -> JSONResponse:
        """The one model."""
        return JSONResponse({"object": "list", "data": [model.describe(options.model_name)]})

    @app.get("/v1/models/{name:path}", responses=_errors(401, 404, 421))
    async def model_by_name(name: str) -> JSONResponse:
        """Facts of the model."""
        if name != options.model_name:
            raise ApiError(404, f"model: got {name!r}, allowed: {options.model_name}", param="model", code="model_not_found")
        return JSONResponse(model.describe(options.model_name))

    @app.get("/metrics", response_class=PlainTextResponse, responses={200: _PLAIN, **_errors(401, 421)})
    async def metrics_text() -> Response:
        """Counts and times for Prometheus."""
        try:
            stats: dict[str, Any] | None = await engine.stats()
        except EngineStoppedError:
            stats = None
        # Prometheus compares the whole content type.
        return Response(metrics.render(stats), headers={"content-type": CONTENT_TYPE})

    @app.get("/health", response_class=PlainTextResponse, responses={200: _PLAIN, **_errors(421, 503)})
    async def health() -> Response:
        """Whether requests can be answered."""
        if engine.is_alive:
            return PlainTextResponse("ok\n")
        return PlainTextResponse("the engine has stopped\n", status_code=503)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_api(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.to_response()

    @app.exception_handler(NemodiffError)
    async def of_engine(_: Request, error: Exception) -> Response:
        assert isinstance(error, NemodiffError)
        return to_api_error(error, {}).to_response()

    @app.exception_handler(ClientLeftError)
    async def of_client(_: Request, __: Exception) -> Response:
        return Response(status_code=STATUS_CLIENT_LEFT)

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, message).to_dict(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def of_anything(_: Request, __: Exception) -> Response:
        # The framework goes on to raise it, for the log.
        return ApiError(500, "the server failed; its log says more").to_response()


def _body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Description of a body that is not read by the framework. References to definitions are resolved: they have no place."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    text = json.dumps(schema)
    for name, definition in definitions.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": json.loads(text)}}}}


def _serve(page: PageFile) -> Callable[[Request], Any]:
    async def endpoint(_: Request) -> Response:
        return page.to_response()

    return endpoint


async def _watch(engine: AsyncTriModeEngine, on_engine_stopped: Callable[[], None]) -> None:
    while engine.is_alive:
        await asyncio.sleep(_HEALTH_POLL_S)
    on_engine_stopped()
