"""`POST /v1/audio/conversions`: a recording said in another voice."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import Response

from chatterbox_vllm.audio.tempo import FASTEST, SLOWEST
from chatterbox_vllm.server.asgi import note
from chatterbox_vllm.server.errors import documented
from chatterbox_vllm.server.routes.speech import AUDIO, streamed, whole
from chatterbox_vllm.server.routes.voices import upload_of
from chatterbox_vllm.server.schemas import Converting, Format
from chatterbox_vllm.server.service import Here

router = APIRouter(tags=["speech"])
_FIELDS = frozenset({*Converting.model_fields, "file", "audio_sample", "stream"})


@router.post(
    "/audio/conversions",
    summary="Say a recording in another voice",
    response_class=Response,
    responses=AUDIO | documented(404, 409, 429, 504),
)
async def convert(
    request: Request,
    service: Here,
    file: Annotated[UploadFile, File(description="the recording, of any audio format")],
    voice: Annotated[str | None, Form(max_length=200, description="a voice's name or id; the default without")] = None,
    audio_sample: Annotated[
        UploadFile | None, File(description="a clip of the voice in place of a name, at most 10 MiB")
    ] = None,
    model: Annotated[str | None, Form(max_length=200, description="whose S3Gen converts; the first without")] = None,
    response_format: Annotated[Format, Form()] = "mp3",
    speed: Annotated[float, Form(ge=SLOWEST, le=FASTEST)] = 1.0,
    seed: Annotated[int | None, Form(ge=0, le=2**63 - 1)] = None,
    diffusion_steps: Annotated[int | None, Form(ge=1, le=100)] = None,
    stream: Annotated[bool | None, Form(description="send audio as it comes; true but for wav, as for speech")] = None,
) -> Response:
    """Audio of what the recording says, as it was spoken, in the voice that is named or that a clip brings.

    It is sent as it comes, in chunks, but for wav: its header tells the length. The recording may last 10 minutes where
    the server sets no other limit.
    """
    body = Converting(
        model=model,
        voice=voice,
        response_format=response_format,
        speed=speed,
        seed=seed,
        diffusion_steps=diffusion_steps,
    )
    recording = await file.read()  # the request's own limit bounds it
    clip = None if audio_sample is None else await upload_of(audio_sample, "audio_sample")
    unknown = [name for name in dict.fromkeys(await request.form()) if name not in _FIELDS]
    order = service.speaker.conversion(body, recording, clip, unknown)
    note(request.scope)["bytes_in"] = len(recording)
    wanted = order.format != "wav" if stream is None else stream
    return await (streamed if wanted else whole)(request, service, order)
