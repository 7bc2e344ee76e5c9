"""Voices on disk: the form of the file, what is refused of one, and which models can use it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.checkpoint.config import (
    ModelConfig,
)
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.voice import Voice, check_voice

from .made_up_clips import babble
from .tiny_enrolment import TINY, tiny_enroller, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def saved(voice: Voice, folder: Path) -> bytes:
    voice.save(folder / "whole.pt")
    return (folder / "whole.pt").read_bytes()


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return tiny_enroller(tiny_tokenizer(), tmp_path_factory.mktemp("tiny")).enrol(babble(1.5), 24_000)


def tensors(voice: Voice) -> dict[str, torch.Tensor]:
    """All tensors of both parts by name."""
    parts = {**vars(voice.conditioning), **vars(voice.prompt)}
    return {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}


def rewritten(voice: Voice, directory: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = directory / "voice.pt"
    voice.save(path)
    data = torch.load(path, weights_only=True)
    change(data)
    torch.save(data, path)
    return path


def test_a_saved_voice_is_read_back_whole(voice: Voice, tmp_path: Path) -> None:
    voice.save(tmp_path / "voice.pt")
    loaded = Voice.load(tmp_path / "voice.pt", TINY)
    assert loaded.key == voice.key and loaded.nbytes == voice.nbytes
    for name, value in tensors(voice).items():
        assert torch.equal(tensors(loaded)[name], value) and tensors(loaded)[name].dtype == value.dtype, name
    assert [path.name for path in tmp_path.iterdir()] == ["voice.pt"]


def test_the_file_has_the_published_structure(voice: Voice, tmp_path: Path) -> None:
    voice.save(tmp_path / "voice.pt")
    data = torch.load(tmp_path / "voice.pt", weights_only=True)
    tokens, frames = len(voice.prompt.tokens), len(voice.prompt.mel)
    shapes = {
        part: {k: (str(v.dtype).removeprefix("torch."), *v.shape) if v is not None else None for k, v in values.items()}
        for part, values in data.items()
    }
    assert shapes == {
        "t3": {
            "speaker_emb": ("float32", 1, 8),
            "clap_emb": None,
            "cond_prompt_speech_tokens": ("int64", 1, len(voice.conditioning.speech_prompt)),
            "cond_prompt_speech_emb": None,
            "emotion_adv": ("float32", 1, 1, 1),
        },
        "gen": {
            "prompt_token": ("int64", 1, tokens),
            "prompt_token_len": ("int64", 1),
            "prompt_feat": ("float32", 1, frames, 20),
            "prompt_feat_len": None,
            "embedding": ("float32", 1, 6),
        },
    }
    assert data["gen"]["prompt_token_len"].item() == tokens and data["t3"]["emotion_adv"].item() == 0.5


def test_a_voice_saved_after_speaking_loads(voice: Voice, tmp_path: Path) -> None:
    def cast(data: dict[str, Any]) -> None:
        data["gen"]["prompt_token"] = data["gen"]["prompt_token"].float()
        data["gen"]["prompt_token_len"] = data["gen"]["prompt_token_len"].float()
        data["t3"]["cond_prompt_speech_emb"] = torch.randn(1, len(voice.conditioning.speech_prompt), 1024)

    loaded = Voice.load(rewritten(voice, tmp_path, cast), TINY)
    assert loaded.key == voice.key and loaded.prompt.tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("part", "name", "value", "complaint"),
    [
        ("t3", "speaker_emb", None, r"t3\.speaker_emb is missing"),
        ("t3", "speaker_emb", torch.zeros(1, 9), r"speaker_embedding has shape \[1, 9\], the model needs \[1, 8\]"),
        ("t3", "speaker_emb", torch.full((1, 8), float("nan")), "speaker_embedding holds nan"),
        ("t3", "speaker_emb", torch.full((1, 8), 11.0), "speaker_embedding holds 11, .* from -10 to 10"),
        ("t3", "speaker_emb", torch.zeros(1, 8, dtype=torch.long), "int64.* is not of floating-point numbers"),
        ("t3", "speaker_emb", torch.zeros(1).expand(10**8, 8), "speaker_emb has shape .*, a voice holds 1 to"),
        ("t3", "speaker_emb", "Anna", "is a str"),
        ("t3", "cond_prompt_speech_tokens", torch.zeros(1, 151, dtype=torch.long), r"enrolled for .* 'turbo'"),
        ("t3", "cond_prompt_speech_tokens", torch.zeros(1, 0, dtype=torch.long), r"\[1, 0\]"),
        ("t3", "cond_prompt_speech_tokens", torch.tensor([[6561]]), r"holds 6561, .* 0\.\.6560"),
        ("gen", "prompt_token", torch.tensor([[0.5]]), "whole numbers"),
        ("gen", "prompt_token", torch.tensor([[float("inf")]]), "whole numbers"),
        ("gen", "prompt_token", torch.tensor([[-1]]), r"holds -1, .* 0\.\.6560"),
        ("gen", "prompt_token", torch.zeros(1, 20_000, dtype=torch.long), r"prompt tokens .*\[20000\].* 1 to 250"),
        ("gen", "prompt_token", torch.zeros(3, dtype=torch.long), r"\[3\], a voice has one row"),
        ("gen", "prompt_feat", torch.zeros(1, 10, 20), r"prompt mel has shape \[10, 20\], the model needs \[74, 20\]"),
        ("gen", "prompt_feat", torch.zeros(1, 74, 80), r"\[74, 80\], the model needs \[74, 20\]"),
        ("gen", "prompt_feat", torch.full((1, 74, 20), 1e6), r"prompt mel holds 1e\+06"),
        ("gen", "embedding", torch.zeros(6), r"\[6\], a voice has one row"),
        ("gen", "embedding", torch.full((1, 6), -1e30), r"x-vector holds 1e\+30"),
    ],
)
def test_faults_are_named_by_file_and_value(
    voice: Voice, tmp_path: Path, part: str, name: str, value: Any, complaint: str
) -> None:
    path = rewritten(voice, tmp_path, lambda data: data[part].update({name: value}))
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{complaint}.*; use a voice made for"):
        Voice.load(path, TINY)


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


class Greedy:
    """torch.load would call it."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 40,)


@pytest.mark.parametrize("content", [None, b"", b"not a voice", pickle.dumps(Malicious()), pickle.dumps([1, 2])])
def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "voice.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"voice\.pt"):
        Voice.load(tmp_path / "voice.pt", TINY)
    assert not (tmp_path / "executed").exists()


def repacked(path: Path, compression: int, change: Callable[[str, bytes], bytes]) -> None:
    """Write a zip file anew, each of its entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))


def test_files_that_would_take_any_memory_are_refused(voice: Voice, tmp_path: Path) -> None:
    path = tmp_path / "voice.pt"
    torch.save({"t3": Greedy()}, path)
    with pytest.raises(CheckpointError, match="it calls .*bytearray, which no voice needs"):
        Voice.load(path, TINY)
    voice.save(path)
    repacked(path, zipfile.ZIP_DEFLATED, lambda name, data: data + bytes(20 << 20) if name.endswith("/0") else data)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="unpacks to 20 MB"):
        Voice.load(path, TINY)
    path.write_bytes(bytes(9 << 20))
    with pytest.raises(CheckpointError, match="larger than 8 MB"):
        Voice.load(path, TINY)


def test_a_storage_that_is_shorter_than_the_file_says_is_refused(voice: Voice, tmp_path: Path) -> None:
    voice.save(tmp_path / "voice.pt")
    cut = len(voice.prompt.mel) * 20 * 4
    repacked(tmp_path / "voice.pt", zipfile.ZIP_STORED, lambda _, data: data[: cut // 2] if len(data) == cut else data)
    with pytest.raises(CheckpointError, match="record size"):
        Voice.load(tmp_path / "voice.pt", TINY)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_loads_as_a_fitting_voice_or_not_at_all(data: st.DataObject, saved: bytes, folder: Path) -> None:
    damaged = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "voice.pt"
    path.write_bytes(damaged[: data.draw(st.integers(len(saved) // 2, len(saved)) | st.just(len(saved)))])
    try:
        check_voice(Voice.load(path, TINY), TINY)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_failed_save_leaves_the_old_file(voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "voice.pt"
    voice.save(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="there is a file already"):
        voice.save(path, overwrite=False)

    def disk_full(_data: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        voice.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="absent"):
        voice.save(tmp_path / "absent" / "voice.pt")


@pytest.mark.parametrize(
    ("spoken", "flow", "fits"),
    [(140, 140, True), (150, 149, True), (126, 126, True), (120, 120, False), (150, 200, False), (140, 250, False)],
)
def test_a_file_that_says_nothing_serves_both_kinds_where_both_recipes_make_it(
    spoken: int, flow: int, fits: bool, tmp_path: Path
) -> None:
    tokens = torch.arange(flow)
    prompt = FlowPrompt(tokens, torch.zeros(2 * flow, 80), torch.ones(192))
    voice = Voice(SpeakerConditioning(torch.full((1, 256), 1 / 16), torch.arange(spoken)), prompt)
    voice.save(tmp_path / "published.pt")
    assert Voice.load(tmp_path / "published.pt").recipe is None  # the first Chatterbox takes it
    if fits:
        assert check_voice(Voice.load(tmp_path / "published.pt", TURBO.config), TURBO.config)
        with pytest.raises(ConfigError, match="enrolled for models of the kind 'x'"):
            check_voice(replace(voice, recipe="x"), TURBO.config)
    else:
        with pytest.raises(CheckpointError, match="enrolled for models of the first Chatterbox's kind"):
            Voice.load(tmp_path / "published.pt", TURBO.config)


def test_a_voice_of_another_codebook_is_refused(voice: Voice, tmp_path: Path) -> None:
    own = replace(voice, codebook="small-1")
    own.save(tmp_path / "own.pt")
    config = replace(TINY, codebook="small-1")
    assert Voice.load(tmp_path / "own.pt", config).codebook == "small-1"
    with pytest.raises(
        CheckpointError, match="holds speech tokens of small-1, and this model's are the published ones"
    ):
        Voice.load(tmp_path / "own.pt", TINY)
    with pytest.raises(ConfigError, match="holds speech tokens of the published models, and this model's are small-1"):
        check_voice(voice, config)
    assert ModelConfig.from_file(write(tmp_path / "config.json", config.to_json())) == config


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_keys_follow_the_contents(voice: Voice) -> None:
    same = Voice(
        SpeakerConditioning(**{k: v.clone() for k, v in vars(voice.conditioning).items() if k != "key"}),
        FlowPrompt(**{k: v.clone() for k, v in vars(voice.prompt).items() if k != "key"}),
    )
    assert same.key == voice.key
    for part in ("conditioning", "prompt"):
        for name, value in vars(getattr(voice, part)).items():
            if isinstance(value, torch.Tensor):
                changed = value.clone()
                changed.view(-1)[-1] += 1
                other = replace(voice, **{part: replace(getattr(voice, part), **{name: changed})})
                assert other.key != voice.key and getattr(other, part).key != getattr(voice, part).key, name
                untouched = "prompt" if part == "conditioning" else "conditioning"
                assert getattr(other, untouched).key == getattr(voice, untouched).key


class Liar:
    """Says that it is a voice, and breaks when it is looked at."""

    __class__ = Voice  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")


class BrokenVoice(Voice):
    @property
    def conditioning(self) -> Any:
        raise RuntimeError("broken")


def not_voices(voice: Voice) -> list[Any]:
    speaker, prompt = voice.conditioning, voice.prompt
    return [
        None,
        "clip.wav",
        Path("clip.wav"),
        Voice,
        object(),
        Liar(),
        BrokenVoice.__new__(BrokenVoice),
        Voice.__new__(Voice),
        prompt,
        Voice(prompt, speaker),
        Voice(speaker, None),
        replace(voice, conditioning=replace(speaker, speaker_embedding=torch.zeros(1, 192))),
        replace(voice, conditioning=replace(speaker, speaker_embedding=speaker.speaker_embedding.double())),
        replace(voice, conditioning=replace(speaker, speaker_embedding=speaker.speaker_embedding.numpy())),
        replace(voice, conditioning=replace(speaker, speaker_embedding=torch.zeros(1, 8, device="meta"))),
        replace(voice, conditioning=replace(speaker, speaker_embedding=torch.zeros(1, 8).to_sparse())),
        replace(voice, conditioning=replace(speaker, speaker_embedding=torch.full((1, 8), float("inf")))),
        replace(voice, conditioning=replace(speaker, speech_prompt=speaker.speech_prompt.int())),
        replace(voice, conditioning=replace(speaker, speech_prompt=speaker.speech_prompt[:0])),
        replace(voice, conditioning=replace(speaker, speech_prompt=speaker.speech_prompt + 6561)),
        replace(voice, conditioning=replace(speaker, speech_prompt=torch.zeros(151, dtype=torch.long))),
        replace(voice, prompt=replace(prompt, tokens=prompt.tokens[None])),
        replace(voice, prompt=replace(prompt, tokens=torch.zeros(251, dtype=torch.long), mel=torch.zeros(502, 20))),
        replace(voice, prompt=replace(prompt, mel=prompt.mel[:-2])),
        replace(voice, prompt=replace(prompt, mel=torch.zeros(0))),
        replace(voice, prompt=replace(prompt, mel=None)),
        replace(voice, prompt=replace(prompt, mel=torch.cat([prompt.mel, prompt.mel[:2]]))),
        replace(voice, prompt=replace(prompt, xvector=prompt.xvector[None])),
        replace(voice, prompt=replace(prompt, xvector=prompt.xvector * float("nan"))),
    ]


def test_whatever_is_no_fitting_voice_is_a_config_error(voice: Voice) -> None:
    assert check_voice(voice, TINY) is voice
    for value in not_voices(voice):
        with pytest.raises(ConfigError, match="^the voice .*(enrol a clip|enrol the clip anew)"):
            check_voice(value, TINY)
    with pytest.raises(ConfigError, match=r"speaker_embedding has shape \[1, 8\], the model needs \[1, 256\]"):
        check_voice(voice, ModelConfig())
