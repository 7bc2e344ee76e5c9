"""`ChatterboxTTS` on the babbling model: the real engine, the real stages, at a small size."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AudioError,
    BatchError,
    ChatterboxTTS,
    CheckpointError,
    ConfigError,
    DeviceError,
    SpeechParameters,
    SpeechRequest,
    TextTooLongError,
)
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.engine.synthesis import InlineSynthesis
from chatterbox_vllm.t3.vllm.stage import T3Stage

from .made_up_clips import babble

TEXTS = ["Hello there.", "A good deal longer than that, I should say.", "No."]


@pytest.fixture(scope="module")
def tts(babbler: Path) -> Iterator[ChatterboxTTS]:
    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=4) as model:
        yield model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audio(tmp_path_factory.mktemp("clips") / "babble.flac", babble(3, 44_100), 44_100)


def test_one_text(tts: ChatterboxTTS) -> None:
    wave = tts.generate(TEXTS[0], seed=1)
    assert wave.dtype == torch.float32 and wave.shape[0] == 1 and tts.sr == 24_000
    assert torch.isfinite(wave).all() and 0.01 < wave.abs().max() < 1
    assert wave[0, :480].abs().max() < 0.02  # the published fade: 20 ms of silence, but for the watermark


def test_same_seed_same_audio_alone_and_in_a_list(tts: ChatterboxTTS) -> None:
    together = tts.generate(TEXTS, seed=5)
    assert isinstance(together, list) and len(together) == 3
    for i, text in enumerate(TEXTS):
        assert torch.equal(tts.generate(text, seed=5 + i), together[i])
    assert tts.generate(TEXTS[0], seed=6).shape != together[0].shape or not torch.allclose(
        tts.generate(TEXTS[0], seed=6), together[0], atol=1e-3
    )


def test_a_request_is_the_same_alone_and_among_31_others(tts: ChatterboxTTS, clip: Path) -> None:
    voices = [tts.voice, tts.enrol(clip)]
    requests = [
        SpeechRequest(
            " ".join(TEXTS[: 1 + i % 3]),
            voices[i % 2],
            SpeechParameters(seed=i, max_tokens=10 + 5 * (i % 7), cfg_weight=(0.5, 0.0, 1.0)[i % 3]),
        )
        for i in range(32)
    ]
    together = {result.index: result for result in tts.run(requests)}
    assert len(together) == 32
    for i in (0, 13, 27):
        (alone,) = tts.run([requests[i]])
        assert alone.speech_tokens == together[i].speech_tokens
        assert torch.equal(alone.audio, together[i].audio)


def test_every_guidance_weight(tts: ChatterboxTTS) -> None:
    waves = {w: tts.generate(TEXTS[0], cfg_weight=w, seed=1, max_tokens=100) for w in (0, 0.5, 1.0)}
    assert all(torch.isfinite(wave).all() for wave in waves.values())
    assert waves[0].shape != waves[1.0].shape or not torch.allclose(waves[0], waves[1.0], atol=1e-3)


@pytest.mark.parametrize("change", [{"temperature": 0}, {"top_p": 0.5}, {"min_p": 0.5}, {"repetition_penalty": 0.1}])
def test_sampling_parameters_change_what_is_said(tts: ChatterboxTTS, change: dict[str, float]) -> None:
    def said(**parameters: float) -> tuple[int, ...]:
        settings = SpeechParameters(seed=3, max_tokens=60, **parameters)
        (result,) = tts.run([SpeechRequest(TEXTS[1], tts.conds, settings)])
        return result.speech_tokens

    assert said() == said()
    assert said() != said(**change)


def test_diffusion_steps_change_the_sound_only(tts: ChatterboxTTS) -> None:
    two, ten = (tts.generate(TEXTS[0], diffusion_steps=n, seed=1) for n in (2, 10))
    assert two.shape == ten.shape and not torch.allclose(two, ten, atol=1e-3)


def test_exaggeration_changes_what_is_said(tts: ChatterboxTTS) -> None:
    flat, wild = (tts.generate(TEXTS[1], exaggeration=x, seed=1) for x in (0.0, 2.0))
    assert flat.shape != wild.shape or not torch.allclose(flat, wild, atol=1e-3)


def test_cloning(tts: ChatterboxTTS, clip: Path) -> None:
    builtin = tts.conds
    try:
        own = tts.generate(TEXTS[0], seed=1)
        cloned = tts.generate(TEXTS[0], seed=1, audio_prompt_path=str(clip))
        assert cloned.shape != own.shape or not torch.allclose(cloned, own, atol=1e-3)
        # As published, the voice stays; and a file is enrolled once.
        assert torch.equal(tts.generate(TEXTS[0], seed=1), cloned)
        assert tts.enrol(clip) is tts.conds
    finally:
        tts.conds = builtin


def test_watermark(tts: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = Watermarker()
    wave = tts.generate(TEXTS[1], seed=1)
    monkeypatch.setattr(tts._engine.voicing, "watermarker", None)
    plain = tts.generate(TEXTS[1], seed=1)
    assert marker.detect(wave[0].numpy(), tts.sr) > 0.9
    assert marker.detect(plain[0].numpy(), tts.sr) < 0.6


def test_failures_in_a_list(tts: ChatterboxTTS) -> None:
    texts = [TEXTS[0], "", TEXTS[2], "\n"]
    with pytest.raises(BatchError) as caught:
        tts.generate(texts, seed=1, max_tokens=100)
    results = tts.generate(texts, seed=1, max_tokens=100, return_exceptions=True)
    for found in (caught.value.results, results):
        assert [type(r) for r in found] == [torch.Tensor, ConfigError, torch.Tensor, ConfigError]
    assert torch.equal(results[0], caught.value.results[0])


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_nothing_to_say(tts: ChatterboxTTS, text: object) -> None:
    with pytest.raises(ConfigError, match=r"no text|text must"):
        tts.generate(text)


def test_long_texts(tts: ChatterboxTTS) -> None:
    text = "This is a sentence of a book. " * 20
    (result,) = tts.run([SpeechRequest(text, tts.conds, SpeechParameters(seed=1, max_tokens=200))])
    assert result.segments > 1 and len(result.audio) > 4 * tts.sr
    with pytest.raises(TextTooLongError, match="max_model_len=2048"):
        tts.generate(TEXTS[1], max_tokens=2000)


def test_results_of_an_iterator_come_as_they_finish(tts: ChatterboxTTS) -> None:
    results = list(tts.generate_iter(iter(TEXTS), seed=5))
    assert sorted(r.index for r in results) == [0, 1, 2] and [
        r.seed for r in sorted(results, key=lambda r: r.index)
    ] == [
        5,
        6,
        7,
    ]


def test_a_bad_call_leaves_the_voice_alone(tts: ChatterboxTTS, clip: Path, tmp_path: Path) -> None:
    before = tts.conds
    with pytest.raises(ConfigError, match="temperature"):
        tts.generate(TEXTS[0], audio_prompt_path=clip, temperature=-1)
    with pytest.raises(AudioError, match=r"nowhere\.wav"):
        tts.generate(TEXTS[0], audio_prompt_path=tmp_path / "nowhere.wav")
    with pytest.raises(ConfigError, match="this model has no norm_loudness"):
        tts.generate(TEXTS[0], audio_prompt_path=clip, norm_loudness=True)
    with pytest.raises(ConfigError, match="norm_loudness is of a clip"):
        tts.generate(TEXTS[0], norm_loudness=False)
    for samples, fault in ((1, "0.5"), (4800, "0.20 s")):
        write_audio(tmp_path / "short.wav", np.full(samples, 0.1, np.float32), 24_000)
        with pytest.raises(AudioError, match=fault):
            tts.generate(TEXTS[0], audio_prompt_path=tmp_path / "short.wav")
    assert tts.conds is before


def test_an_abandoned_run_does_not_disturb_the_next(tts: ChatterboxTTS) -> None:
    request = SpeechRequest(TEXTS[1], tts.conds, SpeechParameters(seed=1))
    run = tts.run([request] * 6, on_step=None)
    next(run)
    run.close()
    (result,) = tts.run([request])
    assert result.error is None
    assert not tts.t3_stage.unfinished


def test_shut_down(babbler: Path) -> None:
    model = ChatterboxTTS.from_local(babbler, "cpu", max_model_len=256, max_batch_size=1, watermark=False)
    s3gen = weakref.ref(model.s3gen_stage.model)
    model.shutdown()
    model.shutdown()
    assert s3gen() is None and model.get_quantization_info()["s3gen"] is None
    with pytest.raises(ConfigError, match="shut down"):
        model.generate("Hello.")


def test_where_s3gen_cannot_start_t3_does_not_stay(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("no room for a graph")

    close, closed = T3Stage.close, []
    monkeypatch.setattr(InlineSynthesis, "warm_up", no_room)
    monkeypatch.setattr(T3Stage, "close", lambda stage: (closed.append(stage), close(stage)))
    with pytest.raises(DeviceError, match="S3Gen cannot start: no room for a graph"):
        ChatterboxTTS.from_local(babbler, "cpu", max_model_len=256, max_batch_size=1, watermark=False)
    assert len(closed) == 1


def test_devices(babbler: Path) -> None:
    for device, error in (("cuda", DeviceError), ("mps", ConfigError), ("cpu:1", ConfigError), ("gpu", ConfigError)):
        with pytest.raises(error):
            ChatterboxTTS.from_local(babbler, device)
    for option in ("cuda_graphs", "deterministic"):
        with pytest.raises(ConfigError, match=option):
            ChatterboxTTS.from_local(babbler, "cpu", **{option: True})


def test_damaged_checkpoints(babbler: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def damaged(file: str, change) -> Path:
        directory = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(babbler, directory)
        change(directory / file)
        return directory

    def drop(key: str):
        return lambda path: save_file({k: v for k, v in load_file(path).items() if k != key}, path)

    def reshape(key: str):
        return lambda path: save_file(load_file(path) | {key: torch.zeros(3, 5)}, path)

    cases = [
        ("t3_cfg.safetensors", Path.unlink, "t3_cfg.safetensors"),
        ("tokenizer.json", Path.unlink, "tokenizer.json"),
        ("s3gen.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1000]), "s3gen.safetensors: truncated"),
        ("conds.pt", lambda p: p.write_bytes(p.read_bytes()[:2000]), "conds.pt"),
        ("t3_cfg.safetensors", drop("tfmr.layers.1.mlp.up_proj.weight"), "tfmr.layers.1.mlp.up_proj.weight"),
        ("t3_cfg.safetensors", reshape("speech_head.weight"), "speech_head.weight"),
        ("s3gen.safetensors", drop("mel2wav.conv_pre.bias"), "mel2wav.conv_pre.bias"),
        ("s3gen.safetensors", reshape("tokenizer.encoder.conv1.weight"), "tokenizer.encoder.conv1.weight"),
        ("ve.safetensors", drop("proj.bias"), "proj.bias"),
    ]
    for file, change, named in cases:
        with pytest.raises(CheckpointError) as caught:
            ChatterboxTTS.from_local(damaged(file, change), "cpu")
        assert named in str(caught.value)


def test_published_calling_order(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "chatterbox_vllm.loaded.tts.resolve_model", lambda model, revision: calls.append(model) or babbler
    )
    monkeypatch.setattr(ChatterboxTTS, "from_local", classmethod(lambda cls, path, device, **o: calls.append(device)))
    ChatterboxTTS.from_pretrained("cpu")
    ChatterboxTTS.from_pretrained(device="cpu")
    ChatterboxTTS.from_pretrained("babble", "cpu")
    assert calls == [None, "cpu", None, "cpu", "babble", "cpu"]
