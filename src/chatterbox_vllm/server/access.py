"""The outermost layer: every request has a number, a log line, a place in the metrics, and an answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatterbox_vllm.server.asgi import REQUEST_ID, note, refuse
from chatterbox_vllm.server.errors import CLIENT_GONE, ApiError, told_error
from chatterbox_vllm.server.limits import Stalled
from chatterbox_vllm.server.metrics import Metrics

logger = logging.getLogger(__name__)
# Probes come every few seconds, and the page in many files.
_QUIET = ("/health", "/metrics", "/page")
_ENDING = ApiError(503, "the server is ending; ask again when it has been started", code="ending", retry_after=5.0)


class Access:
    """Gives requests their numbers, answers what failed, and tells log and metrics of each."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        number = f"req_{secrets.token_hex(12)}"
        # The server's own state is one for a connection, which brings several requests.
        scope["state"] = {**scope.get("state", {}), "request_id": number, "note": {}}
        answer = _Answer(send, number)
        with self._metrics.request():
            try:
                await self.app(scope, receive, answer)
            except Stalled as error:
                answer.status = CLIENT_GONE
                note(scope)["end"] = str(error)
            except asyncio.CancelledError:  # the server ends, and has waited for its requests as long as it does
                if answer.started:
                    raise
                await refuse(scope, receive, answer, _ENDING)
            except Exception as error:
                found = told_error(error, number)
                answer.failed = True
                if answer.started:
                    raise
                await refuse(scope, receive, answer, found)
            finally:
                seconds = time.monotonic() - started
                self._metrics.answered(_route(scope), answer.status, seconds)
                self._log(scope, answer, seconds)

    def _log(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        quiet = answer.status < 400 and any(
            scope["path"] == path or scope["path"].startswith(f"{path}/") for path in _QUIET
        )
        level = logging.DEBUG if quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        # Without the query: it may hold text.
        facts: dict[str, Any] = {
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": answer.status,
            "seconds": round(seconds, 3),
            "bytes": answer.bytes,
            "request": answer.number,
            **note(scope),
        }
        if answer.failed and answer.started:
            facts["end"] = "failed after it had begun"
        logger.log(level, "request", extra={"facts": facts})


class _Answer:
    """`send`, which looks at what goes out."""

    def __init__(self, send: Send, number: str):
        self._send = send
        self.number = number
        self.status = CLIENT_GONE  # until there is another
        self.bytes = 0
        self.started = self.failed = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.started, self.status = True, message["status"]
            numbered = (REQUEST_ID.encode(), self.number.encode())
            message = {**message, "headers": [*message.get("headers", ()), numbered]}
        elif kind == "websocket.accept":
            self.started, self.status = True, 101
            numbered = (REQUEST_ID.encode(), self.number.encode())
            message = {**message, "headers": [*message.get("headers", ()), numbered]}
        elif kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
        elif kind == "websocket.send":
            self.bytes += len(message.get("bytes") or message.get("text") or "")
        elif kind == "websocket.close" and not self.started:
            self.started, self.status = True, 403
        await self._send(message)


def _route(scope: Scope) -> str:
    """The pattern of a path, so that metrics have few names."""
    return getattr(scope.get("route"), "path", None) or "none"
