"""A server over real HTTP whose engine is a double: tones as long as the text, at once or when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.checkpoint.config import EnrolmentConfig
from chatterbox_vllm.engine.budgets import Limits
from chatterbox_vllm.engine.conversion import ConversionRequest, Request
from chatterbox_vllm.engine.request import SpeechResult
from chatterbox_vllm.errors import CheckpointError, ConfigError, GenerationError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.server.app import make_app
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.pool import ServedModel
from chatterbox_vllm.server.run import Server, bind
from chatterbox_vllm.serving.async_engine import EngineStats
from chatterbox_vllm.voices.reference import check_reference
from chatterbox_vllm.voices.voice import Voice
from tests.fakes import a_voice

RATE = 24_000
SECONDS_PER_CHARACTER = 0.02
CHUNK = 4_800  # samples


class FakeTTS:
    """The part of `ChatterboxTTS` that a server uses."""

    sr = RATE
    device = torch.device("cpu")
    settings: dict[str, Any] = {"tier": None}
    voices = ["builtin", "anna", "bert"]
    voice_kind = None
    languages = {"en": "English"}
    defaults = {"exaggeration": 0.5, "cfg_weight": 0.5, "temperature": 0.8, "diffusion_steps": 10}

    def __init__(self) -> None:
        self.conds: Voice | None = a_voice()
        self.named = {name: a_voice() for name in self.voices}
        self.shut_down = False

    def builtin_voice(self, name: str) -> Voice:
        return self.named[name]

    def enrol(self, path: Path) -> Voice:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such voice file")
        return self.named.setdefault(path.stem, a_voice())

    def enrol_clip(self, clip: bytes, norm_loudness: bool | None = None) -> Voice:
        EnrolmentConfig().loudness_of(norm_loudness)
        check_reference(*decode_audio(clip, 600.0))
        return self.named.setdefault("clip", a_voice())

    def count_text_tokens(self, text: str, language: str | None = None, prepared_text: bool = False) -> int:
        return len(text)

    def check_language(self, language: str) -> str:
        return ENGLISH.language(language)

    def get_quantization_info(self) -> dict[str, Any]:
        return {"t3": {"method": None, "total_bytes": 10}, "s3gen": None, "voice_encoder": None}

    def shutdown(self) -> None:
        self.shut_down = True


class FakeEngine:
    """The part of `AsyncChatterbox` that a server uses. A text "mute" is refused, "fail" fails, "die" ends it all.

    Attributes:
        gate: all chunks but the first wait until it is set.
        requests: what was asked for.
        dropped: how many callers left before the end.
    """

    def __init__(self) -> None:
        self.tts = FakeTTS()
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[Request] = []
        self.running = self.done = self.dropped = 0
        self.closed = False
        self.pause = 0.0
        self.limits = Limits()

    def wave(self, request: Request) -> torch.Tensor:
        seconds = len(request.text) * SECONDS_PER_CHARACTER
        if isinstance(request, ConversionRequest):
            wave, rate = decode_audio(request.audio, request.longest)
            seconds = len(wave) / rate
        times = torch.arange(round(seconds * RATE)) / RATE
        return 0.3 * torch.sin(2 * torch.pi * 220 * times)

    async def generate(
        self, request: Request, request_id: str | None = None, *, stream: bool = False
    ) -> AsyncGenerator[Any, None]:
        assert stream
        self.requests.append(request)
        self.running += 1
        try:
            wave = self.wave(request)
            for start in range(0, len(wave), CHUNK):
                await self._turn(request.text, late=start > 0)
                yield SimpleNamespace(audio=wave[start : start + CHUNK], start=start)
            yield self._result(request, request_id, wave, None)
            self.done += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.dropped += 1
            raise
        finally:
            self.running -= 1

    async def speak(self, request: Request, request_id: str | None = None) -> SpeechResult:
        wave = self.wave(request)
        async for event in self.generate(request, request_id, stream=True):
            if isinstance(event, SpeechResult):
                return self._result(request, request_id, wave, wave)
        raise AssertionError("no result")

    def _result(
        self, request: Request, name: str | None, wave: torch.Tensor, audio: torch.Tensor | None
    ) -> SpeechResult:
        seed = request.parameters.seed or 0
        tokens = tuple([5] * round(len(wave) / 960))
        return SpeechResult(0, name or "", 0, seed, audio, len(wave), None, tokens, "stop", 1)

    async def _turn(self, text: str, late: bool) -> None:
        while late and not self.gate.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(self.pause)
        if text == "mute":
            raise ConfigError("the text holds nothing that can be spoken")
        if text == "fail" or (late and text.startswith("fail late")):
            raise GenerationError("the engine could not speak it")
        if text == "die":
            self.failure = ZeroDivisionError("engine")
        if self.failure is not None:
            raise GenerationError("the engine failed")

    def stats(self) -> EngineStats:
        return EngineStats(0, self.running, 0, self.running, self.done, 0, 0.0, 0.0, 0, 1.0)

    def close(self) -> None:
        self.closed = True


@dataclass
class Running:
    """A server that runs in a thread.

    Attributes:
        engines: all that were started, the newest last.
    """

    url: str
    server: Server
    engines: list[Any]
    port: int
    voices: Path
    thread: threading.Thread = field(repr=False)

    @property
    def engine(self) -> Any:
        return self.engines[-1]


@contextlib.contextmanager
def running(
    voices: Path,
    start: Callable[[], Any] = FakeEngine,
    model: str = "fake",
    others: Mapping[str, Callable[[], Any]] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Run a server within. Options are those of `ServerOptions`.

    Args:
        start, model: the first model's.
        others: the other models, by their names; each takes a GiB.
        facts: other fields of `ServedModel` than those of the double, by the model's name.
    """
    engines: list[Any] = []

    def recorded(start: Callable[[], Any]) -> Any:
        engines.append(start())
        return engines[-1]

    host = options.pop("host", "127.0.0.1")
    # What is checked is the host that was asked for; a test listens on this machine only.
    chosen = ServerOptions(host=host, port=0, voices_directory=voices, **options)
    servers: list[Server] = []
    starts = {model: start, **(others or {})}
    told = {
        "voices": tuple(FakeTTS.voices),
        "bytes": 1 << 30,
        "languages": FakeTTS.languages,
        "parameters": FakeTTS.defaults,
    }
    served = [
        ServedModel(name, partial(recorded, own), **{**told, **(facts or {}).get(name, {})})
        for name, own in starts.items()
    ]
    app = make_app(served, chosen, recorded(start), lambda: servers[0].give_up())
    servers.append(Server(app, chosen))
    socket = bind("127.0.0.1", 0)
    port = socket.getsockname()[1]
    thread = threading.Thread(target=servers[0].run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not servers[0].started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield Running(f"http://127.0.0.1:{port}", servers[0], engines, port, voices, thread)
    finally:
        servers[0].should_exit = True
        thread.join(30)
        socket.close()
        assert not thread.is_alive(), "the server does not end"


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def a_clip() -> bytes:
    """Something like a voice: a tone that glides, in syllables."""
    times = np.arange(3 * RATE) / RATE
    phase = 2 * np.pi * (140 * times + 20 * np.sin(2 * np.pi * 0.7 * times))
    wave = sum(np.sin(k * phase) / k for k in range(1, 9)) * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * times))
    return encode_audio(0.2 * wave.astype(np.float32), RATE, ".wav")


def seconds_of(data: bytes) -> float:
    """How long an answer's audio is, in whatever form."""
    wave, rate = decode_audio(data)
    return len(wave) / rate
