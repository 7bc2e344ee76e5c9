"""Voices and consents: list, make, remove."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.server.errors import ApiError, api_error, documented
from chatterbox_vllm.server.schemas import ConsentBody, ConsentName, ConsentPage, Deleted, Voice, VoiceList
from chatterbox_vllm.server.service import Here, Service, while_connected
from chatterbox_vllm.server.voices import preview_of_clip
from chatterbox_vllm.voices.entries import About, NamedVoice
from chatterbox_vllm.voices.records import Consent
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS

router = APIRouter(tags=["voices"])

_PREVIEW: dict[int | str, dict[str, Any]] = {
    200: {"content": {"audio/flac": {}}, "description": "a short clip of the speaker"}
}
MOST_CLIP_BYTES = 10 << 20
Name = Annotated[str, Form(min_length=1, max_length=200)]


@router.get("/audio/voices", summary="List all voices", responses=documented(404))
async def list_voices(
    service: Here,
    model: Annotated[str | None, Query(max_length=200, description="that is to speak; any of them without")] = None,
) -> VoiceList:
    """Voices of the library, the model's own, and names that stand for one of them."""
    speaker = None if model is None else service.speaker.model_named(model)
    return VoiceList(voices=await asyncio.to_thread(service.voices.listed, speaker))


@router.post("/audio/voices", summary="Make a voice of a clip", responses=documented(404, 409, 429, 504))
async def create_voice(
    request: Request,
    service: Here,
    audio_sample: Annotated[UploadFile, File(description="the clip, at most 10 MiB; 5 to 15 s serve best")],
    name: Name,
    consent: Annotated[str, Form(min_length=1, max_length=200, description="the id of a consent")],
    type: Annotated[Literal["audio_sample"], Form()] = "audio_sample",
    languages: Annotated[str, Form(max_length=200, description="BCP 47 tags with commas between them")] = "",
    preview: Annotated[
        bool, Form(description="keep the clip's first 15 s, for people and for models of other kinds")
    ] = True,
    norm_loudness: Annotated[
        bool | None,
        Form(description="bring the clip to the loudness of the model's voices; true where the model does it"),
    ] = None,
    model: Annotated[str | None, Form(max_length=200, description="that enrols it; the first without")] = None,
) -> Voice:
    """Enrol the speaker of a clip. The voice is kept and, as its preview, the clip's first 15 s; no more of it.

    It serves all models of the kind of the one that enrols it, and by the kept clip those of other kinds.
    """
    speaker = service.speaker.model_named(model)
    about = About(languages=_languages(languages), consent=consent)
    if await asyncio.to_thread(service.consents.records.get, consent) is None:
        raise ApiError(404, f"there is no consent {consent[:80]!r}", "consent", "not_found")
    clip = await upload_of(audio_sample, "audio_sample")
    return await while_connected(request, _make(service, speaker, name, clip, about, preview, norm_loudness))


async def _make(
    service: Service,
    model: str,
    name: str,
    clip: bytes,
    about: About,
    preview: bool,
    norm_loudness: bool | None,
) -> Voice:
    async with service.pool.use(model) as engine:
        try:
            voice = await service.voices.enrol(engine.tts, clip, norm_loudness)
        except Exception as error:
            raise api_error(error, "audio_sample") from error
    if preview:
        about = replace(about, preview=await asyncio.to_thread(preview_of_clip, clip))
    kept: NamedVoice = await asyncio.to_thread(service.voices.add, name, voice, about)
    return Voice(id=kept.id, created_at=round(kept.saved.timestamp()), name=kept.name)


def _languages(given: str) -> tuple[str, ...]:
    return tuple(tag for word in given.split(",") if (tag := word.strip()))


@router.get(
    "/audio/voices/{voice:path}/preview",
    summary="Hear who a voice is",
    response_class=Response,
    responses=_PREVIEW | documented(404, 409),
)
async def preview_voice(voice: str, service: Here) -> Response:
    """The first seconds of the clip that a voice of the library was made of: FLAC, 24 kHz.

    There is none of the model's own voices, nor of voices that were added as files. Let them say something instead.
    """
    data = await asyncio.to_thread(service.voices.preview, voice)
    if data is None:
        raise ApiError(404, f"there is no preview of a voice {voice[:80]!r}", "voice_id", "not_found")
    return Response(data, media_type="audio/flac", headers={"cache-control": "private, no-cache"})


@router.delete("/audio/voices/{voice:path}", summary="Remove a voice", responses=documented(404))
async def delete_voice(voice: str, service: Here) -> Deleted:
    """Remove a voice of the library, by its id or its name."""
    found = await asyncio.to_thread(service.voices.delete, voice)
    if found is None:
        raise ApiError(404, f"there is no voice {voice[:80]!r} to remove", "voice_id", "not_found")
    return Deleted(id=found, deleted=True, object="audio.voice.deleted")


@router.post("/audio/voice_consents", summary="Keep a consent", responses=documented())
async def create_consent(
    service: Here,
    recording: Annotated[UploadFile, File(description="the speaker agreeing, at most 10 MiB")],
    name: Name,
    language: Annotated[str, Form(max_length=35, description="BCP 47 tag, such as en-US")],
) -> ConsentBody:
    """Keep the recording of a speaker who agrees to a voice being made."""
    data = await upload_of(recording, "recording")
    try:
        await asyncio.to_thread(decode_audio, data, MAX_REFERENCE_SECONDS)
    except Exception as error:
        raise api_error(error, "recording") from error
    return _consent(await asyncio.to_thread(service.consents.create, name, language, data))


@router.get("/audio/voice_consents", summary="List consents", responses=documented())
async def list_consents(
    service: Here,
    after: Annotated[str | None, Query(max_length=200, description="the id of the last one that is known")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ConsentPage:
    """Consents, the newest first."""
    found: list[Consent] = await asyncio.to_thread(service.consents.all)
    if after is not None:
        places = [i for i, consent in enumerate(found) if consent.id == after]
        if not places:
            raise ApiError(400, f"there is no consent {after[:80]!r} to go on from", "after", "not_found")
        found = found[places[0] + 1 :]
    page = [_consent(consent) for consent in found[:limit]]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return ConsentPage(data=page, first_id=first, last_id=last, has_more=len(found) > limit)


@router.get("/audio/voice_consents/{consent}", summary="Show a consent", responses=documented(404))
async def get_consent(consent: str, service: Here) -> ConsentBody:
    """One consent."""
    return _consent(await _known(service, consent))


@router.post("/audio/voice_consents/{consent}", summary="Rename a consent", responses=documented(404))
async def rename_consent(consent: str, body: ConsentName, service: Here) -> ConsentBody:
    """Give a consent another name."""
    known = await _known(service, consent)
    return _consent(await asyncio.to_thread(service.consents.rename, known, body.name))


@router.delete("/audio/voice_consents/{consent}", summary="Remove a consent", responses=documented(404))
async def delete_consent(consent: str, service: Here) -> Deleted:
    """Remove a consent and its recording. Voices that were made with it stay."""
    if not await asyncio.to_thread(service.consents.delete, consent):
        raise _no_consent(consent)
    return Deleted(id=consent, deleted=True, object="audio.voice_consent")


async def _known(service: Service, consent: str) -> Consent:
    found: Consent | None = await asyncio.to_thread(service.consents.records.get, consent)
    if found is None:
        raise _no_consent(consent)
    return found


def _no_consent(consent: str) -> ApiError:
    return ApiError(404, f"there is no consent {consent[:80]!r}", "consent_id", "not_found")


def _consent(consent: Any) -> ConsentBody:
    return ConsentBody(id=consent.id, created_at=consent.created_at, language=consent.language, name=consent.name)


async def upload_of(upload: UploadFile, field: str) -> bytes:
    """The bytes of a clip.

    Raises:
        ApiError: it is larger than any that is taken.
    """
    data = await upload.read(MOST_CLIP_BYTES + 1)
    if len(data) > MOST_CLIP_BYTES:
        raise ApiError(413, f"{field} has more than {MOST_CLIP_BYTES >> 20} MiB", field, "too_large")
    return data
