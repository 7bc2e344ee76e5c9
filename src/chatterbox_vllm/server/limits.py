"""How much one request may bring, and how long it may take: slow clients do not hold what others need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatterbox_vllm.server.asgi import headers_of, refuse
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.options import ServerOptions


class Stalled(ConnectionError):
    """A client has not taken its answer for too long; its connection was cut."""


class Limits:
    """Counts a body while it arrives, and times both directions. Of WebSockets it times what is sent only."""

    def __init__(self, app: ASGIApp, options: ServerOptions):
        self.app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        sending = _Sending(send, self._options.stall_seconds, scope.get("state", {}).get("abort"))
        if scope["type"] == "websocket":
            await self.app(scope, receive, sending)
            return
        try:
            reading = _Reading(receive, scope, self._options)
            async with asyncio.timeout(self._options.max_seconds):
                await self.app(scope, reading, sending)
        except TimeoutError:
            await _end(scope, receive, sending, ApiError(504, _too_long(self._options), code="timeout"))
        except ApiError as error:  # of reading, past the application's own handlers
            await _end(scope, receive, sending, error)


async def _end(scope: Scope, receive: Receive, sending: _Sending, error: ApiError) -> None:
    if sending.started:
        sending.cut()
        raise Stalled(error.message)
    await refuse(scope, receive, sending, error)


def _too_long(options: ServerOptions) -> str:
    return f"the request took more than {options.max_seconds:g} s; send a shorter text"


class _Reading:
    """`receive` of a request, which refuses what is too large or too slow."""

    def __init__(self, receive: Receive, scope: Scope, options: ServerOptions):
        self._receive, self._options = receive, options
        self._bytes, self._whole = 0, False
        declared = headers_of(scope).get("content-length", "")
        if declared.isdigit() and int(declared) > options.max_body:
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._whole:  # all that can still come is that the client hangs up
            return await self._receive()
        try:
            async with asyncio.timeout(self._options.stall_seconds):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408, f"nothing of the request came for {self._options.stall_seconds:g} s", code="request_timeout"
            ) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._bytes > self._options.max_body:
                raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request has more than {self._options.max_body} bytes, the most that is taken", code="too_large"
        )


class _Sending:
    """`send` of a request, which cuts the connection of a client that takes nothing."""

    def __init__(self, send: Send, seconds: float, abort: Callable[[], None] | None):
        self._send, self._seconds, self._abort = send, seconds, abort
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = self.started or message["type"] != "http.response.body"
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            self.cut()
            raise Stalled(f"the client took nothing for {self._seconds:g} s") from None

    def cut(self) -> None:
        """Drop the connection with what it has not taken."""
        if self._abort is not None:
            self._abort()
