"""`/v1/realtime`: the part of OpenAI's realtime protocol that speaks text, over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from chatterbox_vllm.audio.streams import pcm16
from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.server.errors import ApiError, told_error
from chatterbox_vllm.server.schemas import Speaking
from chatterbox_vllm.server.service import Here, Service, note_order, number_of
from chatterbox_vllm.server.sockets import Inbox, is_open
from chatterbox_vllm.server.speaking import Told

router = APIRouter()
_FORMAT = {"type": "audio/pcm", "rate": SAMPLE_RATE}
_PCM = (None, "pcm", "pcm16", "audio/pcm")  # what clients call it


@router.websocket("/realtime")
async def realtime(socket: WebSocket, service: Here) -> None:
    """Takes `session.update`, `conversation.item.create`, `response.create` and `response.cancel`."""
    offered = socket.scope.get("subprotocols", ())
    await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
    session = _Session(socket, service, socket.query_params.get("model"))
    try:
        await session.send("session.created", session=session.described())
        async for event in Inbox(socket, service.options.max_seconds, session.fail):
            await session.take(event)
    except WebSocketDisconnect:
        pass
    finally:
        await session.cancel()


@dataclass
class _Session:
    """One connection: how it speaks, what was said to it, and the answer that is being spoken."""

    socket: WebSocket
    service: Service
    model: str | None
    wishes: dict[str, Any] = field(default_factory=dict)
    instructions: str = ""
    texts: list[str] = field(default_factory=list)
    answering: asyncio.Task[None] | None = None

    def described(self) -> dict[str, Any]:
        """The session as OpenAI describes one."""
        voice = self.wishes.get("voice") or self.service.options.default_voice or "default"
        output = {"format": _FORMAT, "voice": voice, "speed": self.wishes.get("speed", 1.0)}
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{number_of(self.socket)}",
            "model": self.model or self.service.model,
            "output_modalities": ["audio"],
            "instructions": self.instructions,
            "audio": {"output": output},
        }

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_json({"type": kind, "event_id": f"event_{secrets.token_hex(8)}", **fields})

    async def fail(self, error: ApiError, cause: object = None) -> None:
        """Tell of an error that ends nothing, and by what event it came."""
        event_id = cause if isinstance(cause, str) else None
        await self.send("error", error={**error.body()["error"], "event_id": event_id})

    async def take(self, event: dict[str, Any]) -> None:
        """Do what an event asks for."""
        kind = event.get("type")
        try:
            if kind == "session.update":
                self._update(_mapping(event, "session"))
                await self.send("session.updated", session=self.described())
            elif kind == "conversation.item.create":
                await self._remember(_mapping(event, "item"))
            elif kind == "response.create":
                await self._answer(event.get("response") or {})
            elif kind == "response.cancel":
                await self.cancel()
            else:
                raise ApiError(400, f"there is no event {kind!r} here: this server speaks text only", "type")
        except ValidationError as error:
            await self.fail(ApiError(400, str(error.errors()[0]["msg"])), event.get("event_id"))
        except Exception as error:
            if not is_open(self.socket):
                raise
            await self.fail(told_error(error, number_of(self.socket)), event.get("event_id"))

    def _update(self, session: dict[str, Any]) -> None:
        """Take down how to speak; nothing changes where something cannot be had."""
        output = _output(session)
        own = {name: session[name] for name in Speaking.model_fields if name in session and name != "instructions"}
        wishes = self.wishes | own | _voice_and_speed(output)
        wishes.pop("model", None)
        Speaking.model_validate(wishes)
        self.wishes = wishes
        if isinstance(session.get("instructions"), str):
            self.instructions = session["instructions"]

    async def _remember(self, item: dict[str, Any]) -> None:
        text = _text_of(item)
        if sum(map(len, self.texts)) + len(text) > self.service.options.max_text:
            raise ApiError(400, f"more than {self.service.options.max_text} characters wait to be spoken", "item")
        self.texts.append(text)
        shown = {"id": f"item_{secrets.token_hex(8)}", "object": "realtime.item", **item, "status": "completed"}
        await self.send("conversation.item.added", item=shown)
        await self.send("conversation.item.done", item=shown)

    async def _answer(self, response: dict[str, Any]) -> None:
        if not isinstance(response, dict):
            raise ApiError(400, "response must be an object", "response")
        if self.answering is not None and not self.answering.done():
            raise ApiError(409, "an answer is being spoken; cancel it first", code="response_active")
        given = response.get("input")
        said = " ".join(filter(None, map(_text_of, given))) if isinstance(given, list) else ""
        text = said or " ".join(self.texts) or str(response.get("instructions") or "")
        if not text.strip():
            raise ApiError(400, "there is no text to speak: create an item, or give input or instructions", "response")
        output = _output(response)
        wishes = self.wishes | _voice_and_speed(output)
        order = await self.service.speaker.order(
            Speaking.model_validate({**wishes, "model": self.model, "response_format": "pcm"}), text
        )
        note_order(self.socket, order)
        self.texts.clear()
        self.answering = asyncio.create_task(self._speak(order, text))

    async def cancel(self) -> None:
        """End the answer that is being spoken."""
        if self.answering is not None:
            self.answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.answering
            self.answering = None

    async def _speak(self, order: Any, text: str) -> None:
        number = secrets.token_hex(8)
        names = {"response_id": f"resp_{number}", "item_id": f"item_{number}", "output_index": 0, "content_index": 0}
        answer: dict[str, Any] = {"id": f"resp_{number}", "object": "realtime.response", "output": []}
        told, request = Told(), f"{number_of(self.socket)}-{number}"
        status, details = "completed", None
        try:
            await self.send("response.created", response={**answer, "status": "in_progress"})
            async with contextlib.aclosing(self.service.speaker.waves(order, request, told)) as waves:
                async for wave in waves:
                    audio = base64.b64encode(pcm16(wave)).decode()
                    await self.send("response.output_audio.delta", delta=audio, **names)
            await self.send("response.output_audio.done", **names)
            await self.send("response.output_audio_transcript.done", transcript=text, **names)
        except asyncio.CancelledError:
            status, details = "cancelled", {"type": "cancelled", "reason": "client_cancelled"}
        except Exception as error:
            if not is_open(self.socket):
                return
            status, details = "failed", {"type": "failed", "error": told_error(error, request).body()["error"]}
        done = {**answer, "status": status, "status_details": details, "usage": told.usage}
        with contextlib.suppress(WebSocketDisconnect, ConnectionError, RuntimeError):
            await self.send("response.done", response=done)


def _mapping(event: dict[str, Any], name: str) -> dict[str, Any]:
    value = event.get(name)
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} must be an object", name, "invalid_value")
    return value


def _output(session: dict[str, Any]) -> dict[str, Any]:
    """Voice, speed and format, of the protocol's newer and older form.

    Raises:
        ApiError: the format is another than ours.
    """
    audio = session.get("audio")
    output = audio.get("output") if isinstance(audio, dict) else None
    older = {"voice": session.get("voice"), "speed": session.get("speed"), "format": session.get("output_audio_format")}
    found = {**older, **(output if isinstance(output, dict) else {})}
    form = found["format"]
    asked = (form.get("type"), form.get("rate")) if isinstance(form, dict) else (form, None)
    elsewhere = session.get("response_format"), session.get("sample_rate")  # as the speech endpoint calls them
    if any(kind not in _PCM or rate not in (None, SAMPLE_RATE) for kind, rate in (asked, elsewhere)):
        raise ApiError(400, "audio goes out as audio/pcm of 24000 Hz only", "audio.output.format", "invalid_value")
    return {name: value for name, value in found.items() if value is not None}


def _voice_and_speed(output: dict[str, Any]) -> dict[str, Any]:
    return {name: output[name] for name in ("voice", "speed") if name in output}


def _text_of(item: Any) -> str:
    """The text of an item of the conversation."""
    content = item.get("content") if isinstance(item, dict) else None
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    text = " ".join(text for text in texts if isinstance(text, str))
    if not text.strip():
        raise ApiError(400, "the item holds no text", "item.content", "invalid_value")
    return text
