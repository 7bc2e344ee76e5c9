"""Turbo through every door, with a small synthetic checkpoint: Python, the published class, command line, server."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AudioError,
    ChatterboxTTS,
    ChatterboxTurboTTS,
    CheckpointError,
    ConfigError,
    SpeechParameters,
    SpeechRequest,
    TextTooLongError,
    Voice,
)
from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.loudness import integrated_loudness
from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.cli import main
from chatterbox_vllm.families.babble_turbo import BABBLE_TURBO_CONFIG, TAGS
from chatterbox_vllm.families.registry import FAMILIES, config_of
from chatterbox_vllm.families.turbo import NANO, TURBO
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.text.gpt2_tokenizer import ADDED, Gpt2Tokenizer
from chatterbox_vllm.voices.entries import About
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.preview import preview_of

from .made_up_clips import babble
from .test_serve_command import served

TEXT = "Hello there. [chuckle] This is a test; it goes on... and ends."


@pytest.fixture(scope="module")
def turbo(turbo_babbler: Path) -> Iterator[ChatterboxTurboTTS]:
    with ChatterboxTurboTTS.from_local(turbo_babbler, "cpu", watermark=False) as tts:
        yield tts


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "clip.wav", babble(7), 24_000)
    return tmp_path / "clip.wav"


def test_published_dimensions_are_those_of_the_published_files() -> None:
    layouts = Path(__file__).parent / "parity" / "oracle" / "layouts"
    for family in (TURBO, NANO):
        published = json.loads((layouts / f"{family.t3}.json").read_text())["tensors"]
        ours = backbone_of(family.config.t3).published_shapes(family.config.t3)
        assert {key: list(shape) for key, shape in ours.items()} == {key: published[key][0] for key in ours}
        unread = set(published) - set(ours)
        assert unread == {"tfmr.wte.weight", "text_head.weight"}


def test_a_directory_of_published_files_is_its_family(tmp_path: Path) -> None:
    for family in FAMILIES.values():
        (tmp_path / family.name).mkdir()
        (tmp_path / family.name / family.t3).touch()
        assert config_of(tmp_path / family.name).t3 == family.config.t3


def test_it_speaks_alone_in_a_batch_and_as_a_stream(turbo: ChatterboxTTS) -> None:
    texts = [TEXT, "Two.", "Three of us are here, and one more."]
    requests = [SpeechRequest(text, turbo.voice, SpeechParameters(seed=5)) for text in texts]
    together = {result.index: result for result in turbo.run(requests)}
    for index, request in enumerate(requests):
        (alone,) = turbo.run([request])
        assert alone.error is None and alone.finish_reason == "stop"
        assert alone.speech_tokens == together[index].speech_tokens
        # 960 samples a token, the three of silence that S3Gen gets behind them included.
        assert alone.samples == 960 * (len(alone.speech_tokens) + 3)
        *chunks, result = turbo.stream(request)
        assert result.samples == sum(len(chunk.audio) for chunk in chunks) == alone.samples
        assert alone.audio.abs().max() > 0.01


def test_a_voices_rows_are_computed_once(turbo: ChatterboxTTS) -> None:
    """T3 takes in a further text of a voice behind the keys and values of the first, and says the same."""

    def speak(text: str, voice: Voice) -> tuple[list[int], tuple[int, ...]]:
        rows: list[int] = []
        layer = turbo.t3_stage.model.model.h[0]
        handle = layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        (result,) = turbo.run([SpeechRequest(text, voice, SpeechParameters(seed=3, max_tokens=30))])
        handle.remove()
        return rows, result.speech_tokens

    clip = turbo.voice.conditioning.speech_prompt
    one, other = (  # no voices of other tests
        replace(turbo.voice, conditioning=replace(turbo.voice.conditioning, speech_prompt=(clip + n) % 6561))
        for n in (1, 2)
    )
    prompt = turbo._engine.scheduler.preparation.prompts.builder.prompt_length(len("Nine men."), len(clip))
    (first, *_), said = speak("Nine men.", one)
    assert first == prompt
    (again, *steps), same = speak("Nine men.", one)
    assert again < prompt - len(clip) + 16 and set(steps) == {1}  # a block of vLLM's cache has 16 rows
    assert same == said
    (anew, *_), another = speak("Nine men.", other)
    assert anew == prompt and another != said


def test_tags_reach_the_model_as_tags(turbo: ChatterboxTTS) -> None:
    prompts = turbo._engine.scheduler.preparation.prompts
    for tag in TAGS:
        request = SpeechRequest(f"well {tag} yes, <|endoftext|> and no", turbo.voice)
        (piece,) = prompts.script(request).pieces
        number = prompts.tokenizer.encode(tag)
        assert len(number) == 1 and piece.tokens.count(number[0]) == 1
        # The end of a text is none where a user writes it.
        assert prompts.tokenizer.encode("<|endoftext|>")[0] not in piece.tokens


def test_a_text_is_refused_or_split_but_never_cut(turbo: ChatterboxTTS) -> None:
    long = " ".join(f"This is sentence number {i}, which says little." for i in range(60))
    prompts = turbo._engine.scheduler.preparation.prompts
    pieces = prompts.script(SpeechRequest(long, turbo.voice)).pieces
    assert len(pieces) > 5
    spell = prompts.tokenizer._tokenizer.id_to_token
    said = "".join(spell(token) for piece in pieces for token in piece.tokens).replace("Ġ", " ")
    assert all(f"number {i}," in said for i in range(60))
    with pytest.raises(TextTooLongError, match="room for"):
        turbo.generate("x" * 250, max_tokens=1800)


def test_what_the_model_lacks_is_refused_by_name_but_zero_asks_for_nothing(turbo: ChatterboxTTS) -> None:
    for name in ("exaggeration", "cfg_weight", "min_p"):
        result = next(turbo.run([SpeechRequest("Hi.", turbo.voice, SpeechParameters(**{name: 0.3}))]))
        assert isinstance(result.error, ConfigError)
        assert str(result.error) == f"the turbo model has no {name}; leave it out, not 0.3"
        assert name not in turbo.defaults
    lacking = SpeechParameters(exaggeration=0, cfg_weight=0.0, min_p=0, seed=1, max_tokens=5)
    assert next(turbo.run([SpeechRequest("Hi.", turbo.voice, lacking)])).error is None


def test_top_k_is_a_parameter(turbo: ChatterboxTTS, babbler: Path) -> None:
    free, same, one, greedy = (
        turbo.generate("Hi there.", seed=1, **given)
        for given in (
            {},
            {"top_k": 1000},
            {"top_k": 1, "repetition_penalty": 1.0},
            {"temperature": 0.0, "repetition_penalty": 1.0},
        )
    )
    assert torch.equal(free, same) and torch.equal(one, greedy) and free.shape != one.shape
    for bad in (-1, 1.5, True, 10**9):
        with pytest.raises(ConfigError, match="top_k must be an integer from 0"):
            turbo.generate("Hi.", top_k=bad)
    with ChatterboxTTS.from_local(babbler, "cpu") as english, pytest.raises(ConfigError, match="has no top_k"):
        english.generate("Hi.", top_k=5)


def test_the_published_class_warns_where_it_passes_over(
    turbo: ChatterboxTurboTTS, caplog: pytest.LogCaptureFixture
) -> None:
    plain = turbo.generate("Hi there.", seed=1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(turbo.generate("Hi there.", 1.2, 0.1, 0.95, None, 0.5, 0.5, 0.8, 1000, True, seed=1), plain)
    assert "turbo has no exaggeration, cfg_weight, min_p" in caplog.text
    for name in ("exaggeration", "cfg_weight", "min_p"):
        for bad in ("0.5", -1, float("nan")):
            with pytest.raises(ConfigError, match=f"{name} must be a number"):
                turbo.generate("Hi there.", **{name: bad})


def test_the_published_class_takes_its_own_models_alone(turbo_babbler: Path, babbler: Path) -> None:
    with pytest.raises(ConfigError, match="holds no turbo model but english"):
        ChatterboxTurboTTS.from_local(babbler, "cpu")
    with pytest.raises(ConfigError, match="holds no nano model but turbo"):
        ChatterboxTurboTTS.from_local(turbo_babbler, "cpu", nano=True)


def test_the_published_class_finds_its_models_by_their_names(
    turbo_babbler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(name: str, revision: str | None = None) -> Path:
        asked.append(name)
        return turbo_babbler

    monkeypatch.setattr("chatterbox_vllm.tts_turbo.resolve_model", resolve)
    monkeypatch.setattr("chatterbox_vllm.loaded.tts.resolve_model", resolve)
    pytest.importorskip("bitsandbytes")
    ChatterboxTurboTTS.from_pretrained("cpu").shutdown()
    with ChatterboxTurboTTS.from_pretrained_quantized("cpu", quantization_strategy="int8") as tts:
        assert tts.get_quantization_info()["t3"]["method"] == "bnb-8bit"
    with pytest.raises(ConfigError, match="holds no nano model but turbo"):
        ChatterboxTurboTTS.from_pretrained("cpu", True)
    assert asked == ["turbo", "turbo", "nano"]


def test_clips_are_brought_to_a_loudness_unless_told_otherwise(turbo: ChatterboxTTS, tmp_path: Path) -> None:
    wave = babble(7)
    paths = [tmp_path / "loud.wav", tmp_path / "faint.wav"]
    for path, gain in zip(paths, (1.0, 0.1), strict=True):
        soundfile.write(path, gain * wave, 24_000, subtype="FLOAT")
    loud, faint = (turbo.enrol(path) for path in paths)
    assert loud.recipe == "turbo" and (loud.prompt.mel - faint.prompt.mel).abs().max() < 0.01
    as_it_is = turbo.enrol(paths[0], norm_loudness=False)
    assert turbo.enrol_clip(paths[0].read_bytes(), False).key == as_it_is.key
    assert turbo.enrol(paths[0], norm_loudness=True).key == loud.key == turbo.enrol_clip(paths[0].read_bytes()).key
    with contextlib.closing(turbo.generate_stream("Hi.", audio_prompt_path=paths[0], norm_loudness=False)):
        assert turbo.conds.key == as_it_is.key
    turbo.conds = turbo.builtin_voice("builtin")
    gain = (-27 - integrated_loudness(decode_audio(paths[0])[0], 24_000)) / 20 * np.log(10)
    # The mel is of amplitudes, in natural logarithms.
    assert float((loud.prompt.mel - as_it_is.prompt.mel).median()) == pytest.approx(gain, abs=0.05)


def test_clips_of_five_seconds_are_too_short(turbo: ChatterboxTTS, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", babble(5), 24_000)
    with pytest.raises(AudioError, match=r"has 5\.00 s to hear, and this model needs more than 5 s"):
        turbo.enrol(tmp_path / "short.wav")


def test_a_voice_says_how_it_was_enrolled(turbo: ChatterboxTTS, clip: Path, tmp_path: Path) -> None:
    voice = turbo.enrol(clip)
    voice.save(tmp_path / "own.pt")
    assert Voice.load(tmp_path / "own.pt", BABBLE_TURBO_CONFIG).recipe == "turbo"
    with pytest.raises(CheckpointError, match="enrolled for models of the kind 'turbo', .* of the first Chatterbox's"):
        Voice.load(tmp_path / "own.pt")
    english = replace(voice, recipe=None)
    with pytest.raises(ConfigError, match="of the first Chatterbox's kind, and this one is of the kind 'turbo'"):
        turbo.conds = english
        turbo.generate("Hi.")
    turbo.conds = turbo.builtin_voice("builtin")
    # The published files say nothing; what is too long for the first Chatterbox is Turbo's.
    long = replace(english.conditioning, speech_prompt=torch.arange(375))
    replace(english, conditioning=long).save(tmp_path / "published.pt")
    assert Voice.unchecked(tmp_path / "published.pt").recipe == "turbo"


def test_a_name_of_the_library_serves_models_of_both_kinds(
    turbo: ChatterboxTTS,
    turbo_babbler: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = VoiceLibrary(tmp_path / "voices")
    voice, config = turbo.enrol(clip), ModelConfig()
    library.save("ada", replace(voice, recipe=None), about=About(preview=preview_of(*decode_audio(clip))))
    assert library.look_for("ada", config.voice_kind).source(config.voice_kind).suffix == ".pt"
    # Turbo has none of that name, but the clip is there.
    source = library.find("ada", kind=turbo.voice_kind, or_clip=True)
    assert source.suffix == ".flac" and turbo.enrol(source).kind == turbo.voice_kind
    assert library.find("ada", kind=turbo.voice_kind).suffix == ".pt"
    monkeypatch.setenv("CHATTERBOX_VOICES", str(library.directory))
    assert main(["voices", "show", "ada", "--model", str(turbo_babbler)]) == 0
    assert f"{turbo_babbler}, which enrols its preview" in capsys.readouterr().out
    library.save("ada", voice)
    assert main(["voices", "show", "ada", "--model", str(turbo_babbler)]) == 0
    assert "which enrols its preview" not in capsys.readouterr().out
    assert len(library.voices()) == 2 and library.load("ada", BABBLE_TURBO_CONFIG).key == voice.key
    assert library.find("ada", kind=turbo.voice_kind, or_clip=True).suffix == ".pt"
    assert library.sweep().faults == ()


def test_a_tokenizer_whose_files_do_not_fit_is_refused(turbo_babbler: Path, tmp_path: Path) -> None:
    for file in TURBO.tokenizer:
        (tmp_path / file).write_bytes((turbo_babbler / file).read_bytes())
    added = json.loads((tmp_path / ADDED).read_text())
    (tmp_path / ADDED).write_text(json.dumps({tag: number + 1 for tag, number in added.items()}))
    with pytest.raises(CheckpointError, match=r"gives .* the id \d+, which is not the next free one"):
        Gpt2Tokenizer(tmp_path)
    (tmp_path / ADDED).write_text("{")
    with pytest.raises(CheckpointError, match="are no tokenizer files"):
        Gpt2Tokenizer(tmp_path)
    (tmp_path / ADDED).unlink()
    with pytest.raises(CheckpointError, match="no such tokenizer file"):
        Gpt2Tokenizer(tmp_path)


def test_the_command_line_speaks_it(
    turbo_babbler: Path, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path / "voices"))
    model, out = ["--model", str(turbo_babbler)], tmp_path / "out.wav"
    assert main(["voices", "add", str(clip), "ada", *model]) == 0
    assert main(["voices", "add", str(clip), "loud", "--no-norm-loudness", *model]) == 0
    library = VoiceLibrary()
    ada, loud = (library.load(name, BABBLE_TURBO_CONFIG).prompt.mel for name in ("ada", "loud"))
    assert float((loud - ada).median()) > 0.5  # the clip is louder than -27 LUFS
    assert main(["say", TEXT, "-o", str(out), "--voice", "ada", "--top-k", "50", "--seed", "1", *model]) == 0
    assert soundfile.info(out).duration > 1
    spoken = {}
    for loudness in ("--norm-loudness", "--no-norm-loudness"):
        speak = ["-o", str(out), "--seed", "1", "--no-watermark", loudness]
        assert main(["say", "Hi.", *speak, "--voice", str(clip), *model]) == 0
        spoken[loudness] = soundfile.read(out)[0].tobytes()
    assert len(set(spoken.values())) == 2
    capsys.readouterr()
    for voice, words in (
        (["--voice", "ada"], "is a saved voice, .* --no-norm-loudness"),
        ([], "--norm-loudness is of a"),
    ):
        assert main(["say", "Hi.", "-o", str(out), "--no-norm-loudness", *voice, *model]) == 2
        assert re.search(words, capsys.readouterr().err)
    assert main(["say", "Hi.", "-o", str(out), "--cfg-weight", "0.5", *model]) == 2
    assert "the turbo model has no --cfg-weight" in capsys.readouterr().err


def test_a_server_speaks_it(turbo_babbler: Path, tmp_path: Path, clip: Path) -> None:
    body = {"input": TEXT, "response_format": "wav", "top_k": 50, "seed": 1}
    with served(tmp_path, turbo_babbler) as (_, url):
        answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=120)
        assert answer.status_code == 200 and decode_audio(answer.content)[0].size > 24_000
        heard = body | {"ref_audio": base64.b64encode(clip.read_bytes()).decode(), "response_format": "pcm"}
        loudness = (None, True, False)
        spoken = [
            httpx.post(f"{url}/v1/audio/speech", json=heard | {"norm_loudness": norm}, timeout=120).content
            for norm in loudness
        ]
        assert spoken[0] == spoken[1] != spoken[2]
        (model,) = httpx.get(f"{url}/page/facts.json").json()["models"]
        assert model["fields"]["top_k"]["default"] == 1000 and not TURBO.absent & set(model["fields"])
        refused = httpx.post(f"{url}/v1/audio/speech", json=body | {"exaggeration": 0.7})
        assert refused.status_code == 400 and "has no exaggeration" in refused.text


def test_llama_is_what_a_configuration_is_without_a_word() -> None:
    assert type(backbone_of(T3Config())).__name__ == "Llama" and ModelConfig().voice_kind is None
