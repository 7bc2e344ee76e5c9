"""What every model in memory has in common: its own voices, its engine in use, and its end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from typing_extensions import Self

from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.conversion import Request
from chatterbox_vllm.engine.engine import Engine
from chatterbox_vllm.engine.progress import with_progress
from chatterbox_vllm.engine.request import AudioChunk, SpeechResult
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.talker import Talker
from chatterbox_vllm.errors import BatchError, ConfigError
from chatterbox_vllm.families.voices import voice_of_model, voices_of
from chatterbox_vllm.voices.files import FileVoices, Sized

Speaker = TypeVar("Speaker", bound=Sized)
Talking = TypeVar("Talking", bound=Talker)


class LoadedModel(Generic[Speaker, Talking]):
    """A model in memory; close it with `shutdown` or a `with` block.

    Attributes:
        sr: sample rate of the audio, 24000 Hz.
        directory: of its files.
        device: where it computes.
    """

    sr = SAMPLE_RATE

    def __init__(self, directory: Path, device: torch.device, engine: Engine[Talking], files: FileVoices[Speaker]):
        self.directory, self.device = directory, device
        self._engine, self._files = engine, files

    @property
    def voices(self) -> list[str]:
        """The names of the voices that come with the model: "builtin", the one in use at first, and others."""
        return list(voices_of(self.directory))

    def builtin_voice(self, name: str) -> Speaker:
        """One of `voices`.

        Raises:
            ConfigError: the model has none of that name.
            CheckpointError: its file is damaged.
        """
        return self._files.voice(voice_of_model(self.directory, name))

    def stream(self, request: Request) -> Iterator[AudioChunk | SpeechResult]:
        """A request's audio in chunks while the rest is still being made; the last event is its result.

        Raises:
            ConfigError: the model is in use or was shut down.
            ChatterboxError: the request failed.
        """
        return self._engine.stream(request)

    def run(self, requests: Iterable[Request], on_step: Callable[[int], None] | None = None) -> Iterator[SpeechResult]:
        """Carry out requests of mixed voices and parameters; yield each result when it is ready, failures included.

        Args:
            requests: any iterable, read only as far ahead as keeps the engine busy.
            on_step: called after every step of the engine with the number of segments that T3 is speaking.

        Raises:
            ConfigError: the model was shut down, or an earlier run is neither exhausted nor closed.
        """
        return self._engine.run(requests, on_step)

    def _generate(
        self,
        request: Callable[[int], Request],
        count: int,
        several: bool,
        return_exceptions: bool,
        progress: bool | None,
        unit: str,
    ) -> Any:
        """The audio of requests, as the published `generate` gives it.

        Args:
            request: gives each by its place; a ConfigError is that one's alone.
            count: how many there are.
            several: whether a list was given, and is to be returned.
            return_exceptions, progress: as for `ChatterboxTTS.generate`.
            unit: what each is, for the bar and for errors.

        Raises:
            ChatterboxError: the only one failed.
            BatchError: some of several did.
        """
        results: list[Any] = [None] * count
        made: dict[int, Request] = {}
        for i in range(count):
            try:
                made[i] = request(i)
            except ConfigError as error:
                results[i] = error
        places = list(made)
        for result in with_progress(self.run(made.values()), len(made), self.sr, progress, unit):
            results[places[result.index]] = result.error if result.audio is None else result.audio.unsqueeze(0)
        if not several:
            if isinstance(results[0], Exception):
                raise results[0]
            return results[0]
        if not return_exceptions and any(isinstance(result, Exception) for result in results):
            raise BatchError(results, unit)
        return results

    @property
    def s3gen_stage(self) -> S3GenStage:
        """The stage that voices speech tokens, to look at and to measure."""
        return self._engine.voicing.stage

    def shutdown(self) -> None:
        """Stop the engine and free its memory. Nothing happens when called again.

        An `AsyncChatterbox` that is open on the model is closed first: its requests fail with `AbortedError`. An
        iterator of `run` that is not exhausted raises `ConfigError` when it is asked for more.
        """
        if self._engine.shutdown():
            self._files.enroller.release()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
