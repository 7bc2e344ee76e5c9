"""What SillyTavern's Chatterbox provider calls from the browser: an older server's addresses."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from chatterbox_vllm.server.errors import documented
from chatterbox_vllm.server.order import Order
from chatterbox_vllm.server.routes.speech import AUDIO, streamed, whole
from chatterbox_vllm.server.schemas import ShimBody, Speaking
from chatterbox_vllm.server.service import Here, Service

router = APIRouter(tags=["SillyTavern"])
_ANSWERS = AUDIO | documented(409, 429, 504)
# What the provider names where its user has chosen no voice.
_NO_VOICE = "S1"


@router.get("/get_predefined_voices", summary="List voices", responses=documented())
async def predefined_voices(service: Here) -> list[dict[str, str]]:
    """All voices, as the provider lists them."""
    voices = await asyncio.to_thread(service.voices.listed)
    return [
        {"display_name": v.name, "filename": v.id, "voice_id": v.id, "language": (v.languages or ["en"])[0]}
        for v in voices
    ]


@router.get("/get_reference_files", summary="List clips", responses=documented())
async def reference_files(service: Here) -> list[str]:
    """None: clips are not kept, and the voices made of them are among the others."""
    return []


@router.post("/tts", summary="Speak a text", response_class=Response, responses=_ANSWERS)
async def tts(body: ShimBody, request: Request, service: Here) -> Response:
    """Audio of a text, whole."""
    return await whole(request, service, await _order(service, body))


@router.get(
    "/tts-stream",
    summary="Speak a text as it comes",
    response_class=Response,
    responses=_ANSWERS,
)
async def tts_stream(query: Annotated[ShimBody, Query()], request: Request, service: Here) -> Response:
    """Audio of a text as it comes, for an audio element of a page to play."""
    return await streamed(request, service, await _order(service, query))


@router.head("/tts-stream", include_in_schema=False)
async def tts_stream_head() -> Response:
    """Speaks nothing: the text is not in a HEAD."""
    return Response(media_type="audio/wav")


async def _order(service: Service, body: ShimBody) -> Order:
    voice = body.reference_audio_filename if body.voice_mode == "clone" else body.predefined_voice_id
    seed = None if body.seed is None or body.seed < 0 else body.seed
    fields: dict[str, Any] = {
        "voice": None if voice == _NO_VOICE else voice,
        "response_format": body.output_format,
        "speed": body.speed_factor,
        "language": body.language,
        "seed": seed,
        "temperature": body.temperature,
        "exaggeration": body.exaggeration,
        "cfg_weight": body.cfg_weight,
    }
    return await service.speaker.order(Speaking(**fields), body.text)
