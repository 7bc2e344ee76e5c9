"""Errors as OpenAI's API words them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from chatterbox_vllm.errors import (
    AbortedError,
    AudioError,
    ChatterboxError,
    CheckpointError,
    ConfigError,
    DeadlineError,
    OverloadedError,
)

logger = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's status for a client that has hung up; nobody receives it


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer whose status is 400 or higher."""

    error: ErrorDetail


@dataclass
class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        param: the field of the request that it is about.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @property
    def type(self) -> str:
        """The kind of error, by its status."""
        if self.status in (401, 403):
            return "authentication_error" if self.status == 401 else "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """For JSON."""
        detail = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": detail}

    def headers(self) -> dict[str, str]:
        """What goes with the body."""
        headers = {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
            headers["retry-after-ms"] = str(round(1000 * self.retry_after))
            headers["x-should-retry"] = "true"
        return headers


def api_error(error: Exception, param: str | None = None, retry_after: float = 2.0) -> ApiError:
    """The answer that an error of this package makes.

    Args:
        param: the field that it is about, where the error is of the request.
        retry_after: seconds, for errors that pass.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), code="rate_limit_exceeded", retry_after=retry_after)
    if isinstance(error, AudioError):
        return ApiError(400, str(error), param, "invalid_audio")
    if isinstance(error, ConfigError):
        return ApiError(400, str(error), param, "invalid_value")
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, AbortedError):
        return ApiError(503, f"the request was dropped: {error}", code="aborted", retry_after=retry_after)
    if isinstance(error, CheckpointError):
        return ApiError(409, str(error), param, "voice_unusable")
    if isinstance(error, ChatterboxError):
        return ApiError(500, str(error), code="generation_failed")
    return ApiError(500, "the server met an error of its own; its log tells more", code="internal_error")


def told_error(error: Exception, request: str) -> ApiError:
    """What a client is told of whatever ended a request; the log has what the answer does not tell.

    Args:
        request: its number.
    """
    found = api_error(error)
    if found.code == "internal_error":
        logger.error("%s failed", request, exc_info=error)
    return found


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`: those statuses, and the ones that any request may meet."""
    meanings = {
        400: "the request cannot be read, or a value is out of range",
        401: "no valid key",
        403: "this page or host may not call the server",
        404: "there is no such thing",
        408: "the request took too long to arrive",
        409: "the voice does not fit the model, or the name is taken",
        413: "the request is too large",
        415: "the content type is not one that is taken",
        429: "too many requests are on their way; see Retry-After",
        431: "the headers are too large",
        500: "the request failed",
        503: "the model is not there at this moment; see Retry-After",
        504: "the request took too long",
    }
    always = (400, 401, 403, 408, 413, 431, 500, 503)
    return {status: {"model": ErrorBody, "description": meanings[status]} for status in sorted({*always, *statuses})}
