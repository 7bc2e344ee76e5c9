"""Voice conversion: recordings of any length to another voice, from Python and beside texts in one engine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_vllm import (
    AbortedError,
    AudioChunk,
    AudioError,
    BatchError,
    ChatterboxVC,
    CheckpointError,
    ConfigError,
    ConversionRequest,
    DeadlineError,
    SpeechParameters,
    SpeechRequest,
    Voice,
)
from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.conversion import ConversionStream
from chatterbox_vllm.engine.source import Source, quiet_ends
from chatterbox_vllm.engine.to_speak import SpokenChunk
from chatterbox_vllm.families.babble import BABBLE_CONFIG
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.voices.hearing import Hearing
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from tests.made_up_clips import babble

RATE, SAMPLES_PER_TOKEN = 24_000, 960


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 2, 3 and 65 s, and two clips of voices."""
    directory = tmp_path_factory.mktemp("clips")
    for name, seconds, rate in (("two", 2, RATE), ("three", 3, 44_100), ("long", 65, RATE), ("voice", 6, RATE)):
        soundfile.write(directory / f"{name}.wav", babble(seconds, rate, seed=len(name)), rate)
    soundfile.write(directory / "other.flac", babble(5, 16_000, seed=9), 16_000)
    return directory


@pytest.fixture(scope="module")
def vc(babbler: Path, clips: Path) -> Iterator[ChatterboxVC]:
    with ChatterboxVC.from_local(babbler, "cpu", watermark=False) as made:
        made.set_target_voice(clips / "voice.wav")
        yield made


def test_alone_and_in_a_batch(vc: ChatterboxVC, clips: Path) -> None:
    alone = [vc.generate(clips / f"{name}.wav", seed=4 + i) for i, name in enumerate(("two", "three"))]
    assert [wave.shape for wave in alone] == [(1, 50 * SAMPLES_PER_TOKEN), (1, 75 * SAMPLES_PER_TOKEN)]
    together = vc.generate([clips / "two.wav", (clips / "three.wav").read_bytes()], seed=4)
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], vc.generate(clips / "two.wav", seed=5))
    assert not torch.equal(alone[0], vc.generate(clips / "two.wav", seed=4, diffusion_steps=3))


def test_the_target_stays_the_voice_in_use(vc: ChatterboxVC, clips: Path) -> None:
    before = vc.target
    try:
        said = vc.generate(clips / "two.wav", clips / "other.flac", seed=1)
        assert torch.equal(said, vc.generate(clips / "two.wav", seed=1))
        vc.target = before
        assert not torch.equal(said, vc.generate(clips / "two.wav", seed=1))
    finally:
        vc.target = before


def test_a_long_recording_is_rendered_in_bounded_windows(
    vc: ChatterboxVC, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[int] = []
    run = vc.s3gen_stage.run

    def counted(utterances: Any, *arguments: Any) -> Any:
        windows.extend(own.window for own in utterances)
        return run(utterances, *arguments)

    monkeypatch.setattr(vc.s3gen_stage, "run", counted)
    whole = vc.generate(clips / "long.wav", seed=2, diffusion_steps=2)[0]
    assert len(whole) == 65 * RATE
    assert len(windows) > 5 and max(windows) <= 25 + 600 + 3
    events = list(vc.generate_stream(clips / "long.wav", seed=2, diffusion_steps=2))
    result, chunks = events[-1], events[:-1]
    assert torch.equal(torch.cat([chunk.audio for chunk in chunks]), whole)
    assert result.samples == len(whole) and result.audio is None and len(result.speech_tokens) == 65 * 25
    assert [chunk.start for chunk in chunks] == [0, *np.cumsum([len(chunk.audio) for chunk in chunks])[:-1]]


def test_a_chunk_ends_where_it_is_quiet() -> None:
    generator = np.random.default_rng(1)
    levels = generator.random(3000) + 0.5
    quiet = [21, 60, 150, 300, 700, 1150, 1600, 2050, 2500]
    levels[[place - 1 for place in quiet]] = levels[quiet] = 0
    ends = quiet_ends(levels)
    assert ends[:4] == tuple(quiet[:4]) and ends[-1] == 3000
    sizes = np.diff([0, *ends])
    assert sizes.max() <= 600 and sizes[0] <= 30
    for count in range(1, 700, 13):
        ends = quiet_ends(np.ones(count))
        assert ends[-1] == count and min(np.diff([0, *ends])) > 0


def test_who_waits_longest_for_the_next_chunk(vc: ChatterboxVC, clips: Path) -> None:
    """A listener goes first; what nobody listens to has its turn as well, however much else there is to voice."""
    request, source = ConversionRequest(clips / "two.wav", vc.speaker), Source((1,) * 100, (50, 100))
    (piece,) = vc._engine.scheduler.preparation.sources.script(request).pieces
    due = {}
    for heard in (True, False):
        stream = ConversionStream(request, source, seed=1, lookahead=3, heard=heard)
        chunk = stream.next_chunk(0, piece, samples_out=0)
        assert stream.next_chunk(0, piece, 0) is None  # one at a time
        state = vc.s3gen_stage.model.start_stream(vc.speaker.prompt, 1)
        stream.spoken(0, piece, 1, SpokenChunk(torch.zeros(RATE), state, False))
        second = stream.next_chunk(0, piece, samples_out=RATE)
        assert (chunk.rendered, len(chunk.tokens), second.rendered, second.last) == (50, 53, 50, True)
        due[heard] = chunk.due - time.monotonic(), second.due - time.monotonic()
    assert due[True][0] < -1e8 and 0 < due[True][1] < 2
    assert 9 < due[False][0] < 11 and 10 < due[False][1] < 12


def test_no_part_of_a_long_recording_is_lost(babbler: Path) -> None:
    """Windows overlap; the last of them may be short, and then nothing may be missing at the end."""
    hearing = Hearing(BABBLE_CONFIG, Weights(babbler / "s3gen.safetensors"))
    wave = babble(61, 16_000)
    for seconds in (29.99, 30.02, 33.0, 52.5, 53.0, 56.01, 61.0):
        tokens = hearing.speech_tokens(wave[: round(seconds * 16_000)])
        assert len(tokens) == -(-round(seconds * 100) // 4), seconds
    assert hearing.is_loaded


def test_neither_t3_nor_vllm_is_loaded(babbler: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("s3gen.safetensors", "conds.pt", "config.json"):
        shutil.copy(babbler / name, tmp_path)
    code = f"""
import sys
from chatterbox_vllm import ChatterboxVC
with ChatterboxVC.from_local({str(tmp_path)!r}, "cpu") as vc:
    assert vc.generate({str(clips / "two.wav")!r}, seed=1).shape == (1, 48_000)
assert "vllm" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_audio_is_marked_unless_told_otherwise(babbler: Path, clips: Path) -> None:
    with ChatterboxVC.from_local(babbler, "cpu") as vc:
        marked = [vc.generate(clips / name, seed=1, diffusion_steps=2)[0] for name in ("two.wav", "long.wav")]
    assert all(Watermarker().detect(wave.numpy(), RATE) > 0.5 for wave in marked)


def test_quantized_and_in_a_tier(babbler: Path, clips: Path, vc: ChatterboxVC) -> None:
    pytest.importorskip("bitsandbytes")
    plain = vc.generate(clips / "two.wav", clips / "voice.wav", seed=1)
    for options, method in (({"quantize_s3gen": "bnb-8bit"}, "bnb-8bit"), ({"tier": 4}, "bnb-4bit")):
        with ChatterboxVC.from_local(babbler, "cpu", watermark=False, **options) as quantized:
            info = quantized.get_quantization_info()["s3gen"]
            assert info["method"] == method
            said = quantized.generate(clips / "two.wav", clips / "voice.wav", seed=1)
        assert said.shape == plain.shape and not torch.equal(said, plain)
        assert quantized.get_quantization_info() == {"s3gen": None}


def test_a_file_that_is_quantized_already(babbler: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "quantized"
    quantize_model(babbler, out, QuantizationConfig(s3gen="bnb-8bit"))
    with ChatterboxVC.from_local(out, "cpu", watermark=False) as stored:
        assert stored.get_quantization_info()["s3gen"]["method"] == "bnb-8bit"
        said = stored.generate(clips / "two.wav", clips / "voice.wav", seed=1)
    with ChatterboxVC.from_local(babbler, "cpu", watermark=False, quantize_s3gen="bnb-8bit") as loaded:
        assert torch.equal(said, loaded.generate(clips / "two.wav", clips / "voice.wav", seed=1))
    with pytest.raises(ConfigError, match="bnb-8bit"):
        ChatterboxVC.from_local(out, "cpu", quantize_s3gen="bnb-4bit")


@pytest.mark.parametrize("model", ["turbo_babbler", "multilingual_babbler"])
def test_other_families(model: str, clips: Path, request: pytest.FixtureRequest) -> None:
    """Turbo's mean flow, and files that are pickles."""
    with ChatterboxVC.from_local(request.getfixturevalue(model), "cpu", watermark=False) as other:
        said = other.generate(clips / "two.wav", clips / "voice.wav", seed=1)
        assert said.shape == (1, 50 * SAMPLES_PER_TOKEN) and said.abs().max() > 0.01
        chunks = [
            event.audio for event in other.generate_stream(clips / "two.wav", seed=1) if isinstance(event, AudioChunk)
        ]
        assert sum(map(len, chunks)) == said.shape[1]


def test_voices_of_files(vc: ChatterboxVC, babbler: Path, clips: Path, tmp_path: Path) -> None:
    assert vc.voices == ["builtin"]
    builtin = vc.builtin_voice("builtin")
    assert torch.equal(builtin.prompt.tokens, Voice.load(babbler / "conds.pt", BABBLE_CONFIG).prompt.tokens)
    with pytest.raises(ConfigError, match="no voice 'nobody'"):
        vc.builtin_voice("nobody")
    voice = Voice.load(babbler / "conds.pt", BABBLE_CONFIG)
    foreign = tmp_path / "foreign.pt"
    Voice(voice.conditioning, voice.prompt, "another").save(foreign)
    with pytest.raises(CheckpointError, match=r"foreign\.pt.*another.*enrol its clip anew"):
        vc.target_of(foreign)


def test_what_cannot_be_converted(vc: ChatterboxVC, clips: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, babble(0.05), RATE)
    with pytest.raises(AudioError, match=r"short\.wav: lasts 0\.05 s, at least 0\.1 s"):
        vc.generate(short)
    with pytest.raises(AudioError, match="no such file"):
        vc.generate(tmp_path / "none.wav")
    with pytest.raises(ConfigError, match="audio must be a path or the bytes of a file, not int"):
        vc.generate(5)  # type: ignore[call-overload]
    with pytest.raises(BatchError, match=r"1 of 2 recordings failed \(recording 1: .*short") as failed:
        vc.generate([clips / "two.wav", short], seed=1)
    assert isinstance(failed.value.results[1], AudioError) and failed.value.results[0].shape == (1, 48_000)
    with pytest.raises(ConfigError, match="a conversion has no temperature"):
        ConversionRequest(clips / "two.wav", vc.speaker, SpeechParameters(temperature=0.5))
    with pytest.raises(ConfigError, match="voice must be a Target or a Voice"):
        ConversionRequest(clips / "two.wav", "ada")  # type: ignore[arg-type]
    (result,) = vc.run([ConversionRequest(clips / "long.wav", vc.speaker, longest=20.0)])
    assert isinstance(result.error, AudioError) and "over the limit of 20 s; convert it in parts" in str(result.error)
    (result,) = vc.run([ConversionRequest(clips / "long.wav", vc.speaker, deadline=0.2)])
    assert isinstance(result.error, DeadlineError)
    (result,) = vc.run([SpeechRequest("Hello.", Voice.load(vc.directory / "conds.pt", BABBLE_CONFIG))])  # type: ignore[list-item]
    assert "ChatterboxTTS speaks texts" in str(result.error)


def test_samples_on_the_scale_of_integers(
    vc: ChatterboxVC, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wave = soundfile.read(clips / "two.wav", dtype="float32")[0]
    soundfile.write(tmp_path / "plain.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "as-integers.wav", wave * np.float32(2**15), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "beyond.wav", wave * np.float32(1e12), RATE, subtype="FLOAT")
    plain = vc.generate(tmp_path / "plain.wav", seed=1)
    assert torch.equal(vc.generate(tmp_path / "as-integers.wav", seed=1), plain)
    (warned,) = [
        record.getMessage() for record in caplog.records if "they were divided by 32768" in record.getMessage()
    ]
    assert "as-integers.wav: holds samples of" in warned
    with pytest.raises(AudioError, match=r"beyond\.wav: holds samples of .*export it anew"):
        vc.generate(tmp_path / "beyond.wav")


def test_noise_is_for_what_is_rendered_at_once(vc: ChatterboxVC, clips: Path) -> None:
    noise = vc.s3gen_stage.model.draw_noise(4, 50, vc.speaker.prompt)
    request = ConversionRequest(clips / "two.wav", vc.speaker, SpeechParameters(seed=9), noise=noise)
    (result,) = vc.run([request])
    assert torch.equal(result.audio[None], vc.generate(clips / "two.wav", seed=4))
    (result,) = vc.run([ConversionRequest(clips / "long.wav", vc.speaker, noise=noise)])
    assert isinstance(result.error, ConfigError) and "at most 40 s" in str(result.error)


def test_no_voice(babbler: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("s3gen.safetensors", "config.json"):
        shutil.copy(babbler / name, tmp_path)
    with ChatterboxVC.from_local(tmp_path, "cpu", watermark=False) as vc:
        with pytest.raises(ConfigError, match="no voice to convert to"):
            vc.generate(clips / "two.wav")
        assert vc.voices == []
    with pytest.raises(ConfigError, match="shut down"):
        list(vc.run([]))


def test_texts_and_recordings_in_one_engine(babbler: Path, clips: Path, vc: ChatterboxVC) -> None:
    """A model that speaks converts as well, through the same S3Gen."""
    pytest.importorskip("vllm")
    from chatterbox_vllm import AsyncChatterbox, ChatterboxTTS

    target = vc.target_of(clips / "voice.wav")
    alone = vc.generate(clips / "two.wav", clips / "voice.wav", seed=3)[0]
    conversion = ConversionRequest(clips / "two.wav", target, SpeechParameters(seed=3))

    async def serve(tts: ChatterboxTTS) -> None:
        async with AsyncChatterbox(tts) as engine:
            text = SpeechRequest("Hello, you.", tts.voice, SpeechParameters(seed=1, max_tokens=40))
            spoken, converted = await asyncio.gather(engine.speak(text), engine.speak(conversion))
            assert spoken.error is None and torch.equal(converted.audio, alone)
            events = [event async for event in engine.generate(conversion, stream=True)]
            parts = [event.audio for event in events if isinstance(event, AudioChunk)]
            assert sum(map(len, parts)) == len(alone) and events[-1].samples == len(alone)
            long = ConversionRequest(clips / "long.wav", target, SpeechParameters(seed=3))
            task = asyncio.create_task(engine.speak(long, "mine"))
            await asyncio.sleep(0.5)
            engine.abort("mine")
            assert isinstance((await task).error, AbortedError)

    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=2, watermark=False) as tts:
        texts = SpeechRequest("Hello, you.", tts.voice, SpeechParameters(seed=1, max_tokens=40))
        results = {result.index: result for result in tts.run([texts, conversion])}
        assert results[0].error is None and torch.equal(results[1].audio, alone)
        asyncio.run(serve(tts))


def test_a_recording_that_nobody_waits_for_is_not_listened_to(
    vc: ChatterboxVC, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And texts do not wait for one that is: it has a thread of its own."""
    heard: list[float] = []
    windows = SpeechTokenizer.windows

    def counted(self: SpeechTokenizer, wave: torch.Tensor, frames: int) -> Iterator[torch.Tensor]:
        for part in windows(self, wave, frames):
            heard.append(time.monotonic())
            yield part
            time.sleep(0.3)

    monkeypatch.setattr(SpeechTokenizer, "windows", counted)
    scheduler = vc._engine.scheduler
    serial = scheduler.submit(ConversionRequest(clips / "long.wav", vc.speaker))
    while not heard:
        time.sleep(0.01)
    scheduler.abort(serial)
    assert isinstance(scheduler.collect()[0].error, AbortedError)
    while scheduler.preparation.pending:
        scheduler.step(0.1)
    assert len(heard) < 3 and not scheduler.preparation._dropped  # it has three windows
