"""Errors as the OpenAI API tells them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from nemodiff_trt.errors import BusyError, EngineStoppedError, InvalidInputError, NemodiffError

# An error repeats what was given, which may be a whole body.
MAX_MESSAGE_LENGTH = 500
# Nginx's word for a client that left before it was answered. Nobody sees it but the log and the metrics.
STATUS_CLIENT_LEFT = 499
RETRY_AFTER_S = 1
# Of statuses that the frameworks below raise as well; the rest are invalid requests.
_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that gets an error in place of an answer."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def to_dict(self) -> dict[str, Any]:
        """The body, also of an error in a stream."""
        message = self.message
        if len(message) > MAX_MESSAGE_LENGTH:
            half = MAX_MESSAGE_LENGTH // 2
            message = f"{message[:half]} ... {message[-half:]}"
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> JSONResponse:
        headers = {}
        if self.status in (429, 503):
            headers["retry-after"] = str(RETRY_AFTER_S)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):
            # The rest of the body is not read.
            headers["connection"] = "close"
        return JSONResponse(self.to_dict(), self.status, headers)


class ClientLeftError(Exception):
    """The client closed its connection."""


def invalid(param: str, value: object, allowed: str) -> ApiError:
    """A field of the body that cannot be used."""
    return ApiError(400, str(InvalidInputError(param, value, allowed)), param=param, code="invalid_value")


def to_api_error(error: NemodiffError, names: Mapping[str, str]) -> ApiError:
    """What to tell a client of an error of the engine; `names` has the names of options in the body of the request."""
    if isinstance(error, InvalidInputError):
        return invalid(names.get(error.field, error.field), error.value, error.allowed)
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="busy")
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), code="engine_stopped")
    return ApiError(500, str(error))
