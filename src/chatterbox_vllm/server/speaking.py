"""From a request's fields to audio, whole or as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from chatterbox_vllm.audio.encode import OPUS_RATES
from chatterbox_vllm.audio.tempo import Tempo
from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.conversion import ConversionRequest, Request
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest, SpeechResult, draw_seed
from chatterbox_vllm.errors import AudioError, CheckpointError, ConfigError, GenerationError
from chatterbox_vllm.server.errors import ApiError, api_error
from chatterbox_vllm.server.metrics import Metrics
from chatterbox_vllm.server.names import MODEL, OPENAI_MODELS, REALTIME_MODELS
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.order import Order, header_words, ignored_fields
from chatterbox_vllm.server.outgoing import Outgoing, Pace, encoded, in_thread
from chatterbox_vllm.server.pool import ModelPool
from chatterbox_vllm.server.schemas import Converting, Speaking, VoiceId
from chatterbox_vllm.server.voices import VoiceBook, VoiceWish

if TYPE_CHECKING:
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox

_TOLD_FROM_TEXT = "auto"  # a language that other servers take
_PARAMETERS = tuple(field.name for field in fields(SpeechParameters))
_DEFAULT_FORMAT = "mp3"
_SAMPLES_PER_TOKEN = 960  # at 24 kHz


class Speaker:
    """Speaks orders with the pool's engines."""

    def __init__(self, pool: ModelPool, voices: VoiceBook, metrics: Metrics, options: ServerOptions):
        self.pool, self.voices, self.metrics, self.options = pool, voices, metrics, options
        self.names = tuple(dict.fromkeys((*pool.models, MODEL, *OPENAI_MODELS, *REALTIME_MODELS)))

    def model_named(self, name: str | None) -> str:
        """The model that a request's `model` means: one of ours by its name, the first by any other that clients send.

        Raises:
            ApiError: there is no such name.
        """
        if name is not None and name not in self.names:
            known = ", ".join((*self.pool.models, MODEL))
            raise ApiError(404, f"there is no model {name[:80]!r}; use {known}", "model", "model_not_found")
        return name if name in self.pool.models else self.pool.default

    async def order(self, body: Speaking, text: str, default_format: str = _DEFAULT_FORMAT) -> Order:
        """Check what a request asks for. It costs nothing but where a clip has to be fetched.

        Raises:
            ApiError, ConfigError: it cannot be spoken.
        """
        if len(text) > self.options.max_text:
            raise ApiError(
                400,
                f"input has {len(text)} characters, at most {self.options.max_text} are taken; send it in parts",
                "input",
                "string_above_max_length",
            )
        model = self.model_named(body.model)
        language = None if (body.language or _TOLD_FROM_TEXT).lower() == _TOLD_FROM_TEXT else body.language
        if (engine := self.pool.keepers[model].engine) is not None:  # else it is checked when there is one
            language = _checked_language(engine, language)
        given = {name: getattr(body, name) for name in _PARAMETERS}
        if given["seed"] is None:
            given["seed"] = draw_seed()
        form, rate = body.response_format or default_format, body.sample_rate or SAMPLE_RATE
        if form == "opus" and rate not in OPUS_RATES:
            known = ", ".join(map(str, OPUS_RATES))
            raise ApiError(400, f"opus has no rate of {rate} Hz; it has {known}", "sample_rate", "invalid_value")
        name = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
        clip = None if body.ref_audio is None else await self.voices.clip(body.ref_audio)
        return Order(
            model=model,
            text=text,
            wish=VoiceWish(name or None, clip, body.norm_loudness),
            parameters=SpeechParameters(**given),
            format=form,
            speed=1.0 if body.speed is None else body.speed,
            clean_text=bool(body.clean_text),
            language=language,
            prepared_text=bool(body.prepared_text),
            ignored=ignored_fields(body),
            sample_rate=rate,
        )

    def conversion(self, body: Converting, recording: bytes, clip: bytes | None, unknown: Iterable[str] = ()) -> Order:
        """An order for a recording to be said in another voice.

        Args:
            clip: of the voice, in place of its name.
            unknown: names of fields that mean nothing here.

        Raises:
            ApiError, ConfigError: it cannot be had.
        """
        return Order(
            model=self.model_named(body.model),
            text="",
            wish=VoiceWish(body.voice or None if clip is None else None, clip),
            parameters=SpeechParameters(
                seed=draw_seed() if body.seed is None else body.seed, diffusion_steps=body.diffusion_steps
            ),
            format=body.response_format,
            speed=body.speed,
            clean_text=False,
            language=None,
            prepared_text=False,
            ignored=header_words([*unknown, *(["voice"] if clip is not None and body.voice else [])]),
            recording=recording,
        )

    async def whole(self, order: Order, number: str) -> Spoken:
        """All of an order's audio.

        Raises:
            ApiError, ChatterboxError
        """
        started = time.monotonic()
        async with self._engine(order) as engine:
            request = await self._request(engine, order)
            result = await engine.speak(request, number)
            if result.error is not None:
                raise result.error
            rate = engine.tts.sr
        if result.audio is None:
            raise GenerationError("the engine gave no audio")
        data, samples = await asyncio.to_thread(encoded, order, result.audio.numpy(), rate)
        seconds = time.monotonic() - started
        self.metrics.first_audio(seconds, streamed=False)
        self.metrics.spoken(result.samples / rate, seconds)
        return Spoken(data, samples / rate, result)

    @contextlib.asynccontextmanager
    async def _engine(self, order: Order) -> AsyncIterator[AsyncChatterbox]:
        """The engine of an order's model; what fails within becomes the answer that it makes."""
        try:
            async with self.pool.use(order.model) as engine:
                try:
                    yield engine
                except GenerationError as error:
                    if engine.failure is None:
                        raise
                    raise ApiError(
                        503, f"{error}; the model is being loaded", code="engine_failed", retry_after=5.0
                    ) from error
        except Exception as error:
            param = "file" if order.recording is not None and isinstance(error, AudioError) else None
            if isinstance(error, CheckpointError):  # of the model's own files; a voice's has become an `ApiError`
                found = ApiError(500, str(error), code="model_incomplete")
            else:
                found = api_error(error, param, self.pool.keepers[order.model].retry_after)
            if found.code == "internal_error":
                raise  # for the log to tell
            self.metrics.failed(found.code)
            raise found from error

    async def _request(self, engine: AsyncChatterbox, order: Order) -> Request:
        try:
            voice = await self.voices.voice(order.model, engine.tts, order.wish)
        except (AudioError, CheckpointError) as error:
            clip = "ref_audio" if order.recording is None else "audio_sample"
            raise api_error(error, "voice" if order.wish.clip is None else clip) from error
        if order.recording is not None:
            return ConversionRequest(
                order.recording,
                voice,
                order.parameters,
                deadline=self.options.max_seconds,
                longest=self.options.max_recording_seconds,
            )
        return SpeechRequest(
            order.text,
            voice,
            order.parameters,
            deadline=self.options.max_seconds,
            clean_text=order.clean_text,
            language=_checked_language(engine, order.language),
            prepared_text=order.prepared_text,
        )

    async def waves(self, order: Order, number: str, told: Told | None = None) -> AsyncGenerator[np.ndarray, None]:
        """An order's audio as it comes, float32 [samples] each at its speed. Closing the iterator drops the order.

        Args:
            told: is told what is known in the end; the text's tokens are counted for it alone.

        Raises:
            ApiError, ChatterboxError
        """
        async with self._engine(order) as engine:
            pace = Pace(engine.tts.sr)
            request = await self._request(engine, order)
            if told is not None:
                told.input_tokens = await asyncio.to_thread(_text_tokens, engine, order)
            tempo = Tempo(order.speed, engine.tts.sr)
            async with contextlib.aclosing(engine.generate(request, number, stream=True)) as events:
                async for event in events:
                    if isinstance(event, SpeechResult):
                        if told is not None:
                            told.result = event
                        continue
                    wave = tempo.feed(event.audio.numpy())
                    if len(wave):
                        if not pace.samples:
                            self.metrics.first_audio(pace.elapsed, streamed=True)
                        pace.add(len(wave))
                        yield wave
            wave = tempo.finish()
            if len(wave):
                pace.add(len(wave))
                yield wave
            if told is not None:
                told.samples = pace.samples
            self.metrics.spoken(pace.samples / engine.tts.sr, pace.elapsed, pace.underruns)

    async def stream(self, order: Order, number: str, told: Told | None = None) -> AsyncGenerator[bytes, None]:
        """`waves` in the order's format; each part can be played when it has arrived."""
        sending = None
        async with contextlib.aclosing(self.waves(order, number, told)) as waves:
            async for wave in waves:
                if sending is None:
                    sending = Outgoing(order)
                data = await in_thread(order, sending.feed, wave)
                if data:
                    yield data
        if sending is None:
            raise GenerationError("the engine gave no audio")
        data = await in_thread(order, sending.finish)
        if data:
            yield data


@dataclass(frozen=True)
class Spoken:
    """A whole answer.

    Attributes:
        seconds: of audio, at its speed.
    """

    data: bytes
    seconds: float
    result: SpeechResult

    @property
    def headers(self) -> dict[str, str]:
        """What is known in the end."""
        return {
            "x-chatterbox-duration": f"{self.seconds:.3f}",
            "x-chatterbox-finish-reason": self.result.finish_reason or "stop",
        }


@dataclass
class Told:
    """What a stream tells in the end."""

    input_tokens: int = 0
    samples: int = 0
    result: SpeechResult | None = None

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts: text tokens and speech tokens."""
        spoken = len(self.result.speech_tokens) if self.result is not None else 0
        output = spoken or round(self.samples / _SAMPLES_PER_TOKEN)
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": output,
            "total_tokens": self.input_tokens + output,
        }


def _text_tokens(engine: AsyncChatterbox, order: Order) -> int:
    if order.recording is not None:
        return 0
    return engine.tts.count_text_tokens(order.text, order.language, order.prepared_text)


def _checked_language(engine: AsyncChatterbox, language: str | None) -> str | None:
    """The code of a language that was given.

    Raises:
        ApiError: the model does not speak it.
    """
    try:
        return None if language is None else engine.tts.check_language(language)
    except ConfigError as error:
        raise ApiError(400, str(error), "language", "language_not_supported") from error
