"""`POST /v1/audio/speech` and `POST /v1/audio/speech/batch`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from chatterbox_vllm.audio.streams import STREAM_FORMATS
from chatterbox_vllm.server.asgi import note
from chatterbox_vllm.server.errors import ApiError, documented, told_error
from chatterbox_vllm.server.order import MOST_IGNORED, Order, ignored_fields, ignored_header
from chatterbox_vllm.server.schemas import BatchAnswer, BatchBody, BatchItem, BatchResult, Speaking, SpeechBody
from chatterbox_vllm.server.service import Here, Service, note_order, number_of, while_connected
from chatterbox_vllm.server.speaking import Told

router = APIRouter(tags=["speech"])

_SOUND: dict[str, Any] = {
    form.media_type: {"schema": {"type": "string", "format": "binary"}} for form in STREAM_FORMATS.values()
}
# No schema: programs do not agree whether it would be of the whole text or of each event.
_EVENTS: dict[str, Any] = {"text/event-stream": {}}
AUDIO: dict[int | str, dict[str, Any]] = {200: {"content": _SOUND, "description": "the audio"}}
_OK: dict[int | str, dict[str, Any]] = {
    200: {"content": _SOUND | _EVENTS, "description": "the audio, or events that hold it"}
}
_ANSWERS = _OK | documented(404, 409, 429, 504)


class AudioStream(StreamingResponse):
    """Audio that is sent while it is made; when the client goes, its making ends."""

    def __init__(self, first: bytes, parts: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]):
        self._first, self._parts = first, parts
        super().__init__(self._all(), media_type=media_type, headers={**headers, "cache-control": "no-store"})

    async def _all(self) -> AsyncIterator[bytes]:
        yield self._first
        async for part in self._parts:
            yield part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._parts):
            await super().__call__(scope, receive, send)


async def streamed(request: Request, service: Service, order: Order) -> Response:
    """Answer with audio as it comes. What fails before the first of it is an error like any other."""
    note_order(request, order)
    parts = service.speaker.stream(order, number_of(request))
    first = await while_connected(request, anext(parts))
    return AudioStream(first, parts, order.media_type, order.headers)


async def whole(request: Request, service: Service, order: Order) -> Response:
    """Answer with all audio at once and its length."""
    note_order(request, order)
    spoken = await while_connected(request, service.speaker.whole(order, number_of(request)))
    note(request.scope)["audio"] = round(spoken.seconds, 2)
    return Response(spoken.data, media_type=order.media_type, headers={**order.headers, **spoken.headers})


@router.post(
    "/audio/speech",
    summary="Speak a text",
    response_class=Response,
    responses=_ANSWERS,
)
async def speech(body: SpeechBody, request: Request, service: Here) -> Response:
    """Audio of a text.

    It is sent as it comes, in chunks, but for wav: its header tells the length, which is known in the end. Ask for
    `stream_format: "audio"` (or `stream: true`) to have wav as it comes as well, with a header that tells none.
    """
    if body.stream_format == "sse" and body.stream is False:
        raise ApiError(400, "stream_format 'sse' is a stream: leave stream=false out", "stream", "invalid_value")
    order = await service.speaker.order(body, body.input)
    if body.stream_format == "sse":
        return await _events(request, service, order)
    wanted = body.stream if body.stream is not None else body.stream_format == "audio" or order.format != "wav"
    return await (streamed if wanted else whole)(request, service, order)


async def _events(request: Request, service: Service, order: Order) -> Response:
    note_order(request, order)
    number, told = number_of(request), Told()
    parts = service.speaker.stream(order, number, told)
    first = await while_connected(request, anext(parts))
    return AudioStream(_delta(first), _deltas(parts, told, number), "text/event-stream", order.headers)


async def _deltas(parts: AsyncGenerator[bytes, None], told: Told, number: str) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield _delta(part)
    except Exception as error:  # the status has gone out
        yield _event({"type": "error", **told_error(error, number).body()})
        return
    yield _event({"type": "speech.audio.done", "usage": told.usage})


def _delta(data: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@router.post("/audio/speech/batch", summary="Speak several texts", responses=documented(404, 409, 429, 504))
async def batch(body: BatchBody, request: Request, response: Response, service: Here) -> BatchAnswer:
    """Audio of several texts, spoken together. What one of them fails of does not harm the others.

    Where they are many, some wait for the rest, so that half of the server's places is left for other requests.

    Fields of the batch stand for items that do not have them.
    """
    common = body.model_dump(exclude={"items"}, exclude_none=True)
    wishes = [_wish(common, item) for item in body.items]
    ignored = dict.fromkeys(name for wish in wishes for name in ignored_fields(wish))
    response.headers.update(ignored_header(islice(ignored, MOST_IGNORED)))
    number = number_of(request)
    note(request.scope)["items"] = len(body.items)
    places = asyncio.Semaphore(max(1, service.pool.most // 2))  # the rest are for others
    tasks = (
        _item(service, places, wish, item.input, index, number)
        for index, (wish, item) in enumerate(zip(wishes, body.items, strict=True))
    )
    results = await while_connected(request, asyncio.gather(*tasks))
    succeeded = sum(result.status == "success" for result in results)
    return BatchAnswer(
        id=number, results=results, total=len(results), succeeded=succeeded, failed=len(results) - succeeded
    )


def _wish(common: dict[str, Any], item: BatchItem) -> Speaking:
    own = item.model_dump(exclude={"input"}, exclude_none=True)
    if "voice" in own:  # in place of the batch's, whether that is a name or a clip
        common = {name: value for name, value in common.items() if name != "ref_audio"}
    return Speaking.model_validate(common | own)


async def _item(
    service: Service, places: asyncio.Semaphore, wish: Speaking, text: str, index: int, number: str
) -> BatchResult:
    try:
        async with places:
            order = await service.speaker.order(wish, text)
            spoken = await service.speaker.whole(order, f"{number}-{index}")
    except Exception as error:
        found = told_error(error, f"{number}-{index}")
        return BatchResult(index=index, status="error", error=found.body()["error"])
    return BatchResult(
        index=index,
        status="success",
        audio_data=base64.b64encode(spoken.data).decode(),
        media_type=order.media_type,
        seconds=round(spoken.seconds, 3),
        seed=spoken.result.seed,
    )
