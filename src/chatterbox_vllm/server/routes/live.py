"""`/v1/audio/speech/stream`: a WebSocket that takes text in pieces, as a language model writes it.

The client sends `{"type": "session.config", …}` with fields of the speech endpoint (optional), `{"type": "input.text",
"text": …}` any number of times, `{"type": "input.flush"}` to have all of it spoken, and `{"type": "input.done"}`.
`{"type": "cancel"}` drops what is not spoken yet, at any time. For each stretch of whole sentences the server sends
`audio.start`, binary messages of audio, and `audio.done`; in the end `session.done`. Where a key is needed, a browser's
page, which cannot set headers, offers two subprotocols: any name, and `openai-insecure-api-key.KEY`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from chatterbox_vllm.server.errors import ApiError, told_error
from chatterbox_vllm.server.gate import KEY_PROTOCOL
from chatterbox_vllm.server.order import Order
from chatterbox_vllm.server.schemas import Speaking
from chatterbox_vllm.server.service import Here, Service, note_order, number_of
from chatterbox_vllm.server.sockets import Inbox, is_open
from chatterbox_vllm.text.arriving import ArrivingText

router = APIRouter()


@router.websocket("/audio/speech/stream")
async def live(socket: WebSocket, service: Here) -> None:
    """Speak text that arrives in pieces."""
    offered = socket.scope.get("subprotocols", ())
    # Browsers hang up where none of those that they offer is chosen. A key is not repeated.
    await socket.accept(subprotocol=next((name for name in offered if not name.startswith(KEY_PROTOCOL)), None))
    session = _Session(socket, service)
    # Both until the end: a client may cancel or leave while the last of its text is spoken.
    tasks = [asyncio.create_task(session.speak_all()), asyncio.create_task(session.hear_all())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, ConnectionError, RuntimeError):
                await task


@dataclass
class _Session:
    """One connection: what has arrived, what waits to be spoken."""

    socket: WebSocket
    service: Service
    wishes: Speaking = field(default_factory=Speaking)
    text: ArrivingText = field(default_factory=ArrivingText)
    waiting: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    unspoken: int = 0  # characters in `waiting`
    speech: asyncio.Task[None] | None = None
    ended: bool = False  # all text has come

    async def fail(self, error: ApiError) -> None:
        """Tell of an error that ends nothing."""
        await self.socket.send_json({"type": "error", **error.body()})

    async def hear_all(self) -> None:
        """Do what the client asks for, until it goes."""
        inbox = Inbox(self.socket, self.service.options.max_seconds, self.fail)
        async for event in inbox:
            await self._take(event)
            if self.ended:
                inbox.seconds = None  # it has nothing more to say

    async def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        try:
            if self.ended and kind != "cancel":
                raise ApiError(
                    400, "after input.done only cancel is taken; open another connection", "type", "invalid_value"
                )
            if kind == "session.config":
                wishes = Speaking.model_validate({name: value for name, value in event.items() if name != "type"})
                order = await self._order(wishes, "")  # refused now rather than later
                self.wishes, self.text.language = wishes, order.language
            elif kind == "input.text":
                self._hear(event.get("text"))
            elif kind in ("input.flush", "input.done"):
                self._put(self.text.rest())
                if kind == "input.done":
                    self.ended = True
                    self.waiting.put_nowait(None)
            elif kind == "cancel":
                self._drop()
            else:
                raise ApiError(400, f"there is no message {kind!r}", "type", "invalid_value")
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            await self.fail(ApiError(400, f"{place}: {problem['msg']}", place, "invalid_value"))
        except Exception as error:
            if not is_open(self.socket):
                raise
            await self.fail(told_error(error, number_of(self.socket)))

    async def _order(self, wishes: Speaking, text: str) -> Order:
        return await self.service.speaker.order(wishes, text, default_format="pcm")

    def _hear(self, text: Any) -> None:
        if not isinstance(text, str):
            raise ApiError(400, "text must be a string", "text", "invalid_value")
        if self.unspoken + len(self.text) + len(text) > self.service.options.max_text:
            raise ApiError(
                429, f"more than {self.service.options.max_text} characters wait to be spoken", "text", "too_much_text"
            )
        self._put(self.text.add(text))

    def _put(self, ready: str) -> None:
        if ready:
            self.unspoken += len(ready)
            self.waiting.put_nowait(ready)

    def _drop(self) -> None:
        """Forget what is not spoken yet, and end what is being spoken."""
        self.text.rest()
        while not self.waiting.empty():
            self.unspoken -= len(self.waiting.get_nowait() or "")
        if self.ended:
            self.waiting.put_nowait(None)
        if self.speech is not None:
            self.speech.cancel()

    async def speak_all(self) -> None:
        """Speak what comes into `waiting`, in order, and hang up at its end."""
        count = 0
        while (text := await self.waiting.get()) is not None:
            self.speech = asyncio.create_task(self._speak(text, count))
            try:
                await asyncio.wait({self.speech})
            finally:
                self.speech.cancel()
            if not self.speech.cancelled() and (error := self.speech.exception()) is not None:
                raise error
            self.unspoken -= len(text)
            count += 1
        await self.socket.send_json({"type": "session.done", "total_sentences": count})
        await self.socket.close()

    async def _speak(self, text: str, index: int) -> None:
        sent, failed, number = 0, False, f"{number_of(self.socket)}-{index}"
        try:
            order = await self._order(self.wishes, text)
            note_order(self.socket, order)
            start = {"sentence_index": index, "sentence_text": text, "format": order.format}
            start["sample_rate"] = order.sample_rate
            await self.socket.send_json({"type": "audio.start", **start})
            parts = self.service.speaker.stream(order, number)
            async with contextlib.aclosing(parts):
                async for part in parts:
                    sent += len(part)
                    await self.socket.send_bytes(part)
        except Exception as error:
            if not is_open(self.socket):
                raise
            failed = True
            await self.fail(told_error(error, number))
        except asyncio.CancelledError:
            failed = True
        done = {"type": "audio.done", "sentence_index": index, "total_bytes": sent, "error": failed}
        with contextlib.suppress(WebSocketDisconnect, ConnectionError, RuntimeError):
            await self.socket.send_json(done)
