"""JSON messages of a WebSocket, one after the other, with limits on silence and on nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pydantic_core import from_json
from starlette.websockets import WebSocket, WebSocketState

from chatterbox_vllm.server.errors import ApiError

_MOST_NONSENSE = 20  # messages that are no JSON object
_POLICY, _GOING = 1008, 1001  # status of closing, by RFC 6455


def is_open(socket: WebSocket) -> bool:
    """Whether somebody is there to be told anything."""
    return socket.client_state is socket.application_state is WebSocketState.CONNECTED


class Inbox:
    """The JSON objects that a client sends. It ends when the client goes, says nothing for long, or sends nonsense.

    Args:
        seconds: of silence, after which the connection is closed; None waits.
        complain: told of messages that cannot be read.
    """

    def __init__(self, socket: WebSocket, seconds: float | None, complain: Callable[[ApiError], Awaitable[None]]):
        self._socket, self.seconds, self._complain = socket, seconds, complain

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        nonsense = 0
        while True:
            try:
                async with asyncio.timeout(self.seconds):
                    message = await self._socket.receive()
            except TimeoutError:
                await self._socket.close(_GOING, f"nothing came for {self.seconds:g} s")
                return
            if message["type"] == "websocket.disconnect":
                return
            try:
                # Unlike `json.loads` it takes no halves of surrogate pairs, which no answer could repeat.
                text = message.get("text")
                if text is None:
                    raise ValueError("this is not text")
                event = from_json(text, allow_inf_nan=False)
                if not isinstance(event, dict):
                    raise ValueError("this is none")
            except ValueError as error:
                nonsense += 1
                if nonsense > _MOST_NONSENSE:
                    await self._socket.close(_POLICY, "these messages cannot be read")
                    return
                await self._complain(ApiError(400, f"messages are JSON objects: {error}", code="invalid_json"))
                continue
            yield event
