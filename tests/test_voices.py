"""Voices on disk, enrolment of clips, and the small nets and features behind it, on tiny random weights."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from chatterbox_vllm.audio.features import mel_filterbank, trim_silence
from chatterbox_vllm.audio.resample import resample, sinc_resample
from chatterbox_vllm.checkpoint.config import (
    FlowConfig,
    ModelConfig,
    S3GenConfig,
    SpeechTokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
    XVectorConfig,
)
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import AudioError, CheckpointError, ConfigError, OutputError
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder, split_partials
from chatterbox_vllm.voices.nets.xvector import CAMPPlus
from chatterbox_vllm.voices.voice import Voice, check_voice

from .made_up_clips import babble

TINY = ModelConfig(
    t3=T3Config(speaker_embedding_size=8),
    voice_encoder=VoiceEncoderConfig(num_mels=10, hidden_size=16, num_layers=2, embedding_size=8),
    s3gen=S3GenConfig(
        tokenizer=SpeechTokenizerConfig(num_mels=16, hidden_size=32, num_heads=2, num_layers=2, memory_kernel=5),
        xvector=XVectorConfig(16, 2, 8, 4, 2, (2, 2), (1, 2), embedding_size=6),
        flow=FlowConfig(num_mels=20),
    ),
)
COMPUTED_BUFFERS = Path(__file__).parent / "parity" / "oracle" / "computed_buffers.npz"


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        centred = "norm" in name or "_ln" in name or "bn" in name or "shortcut.1" in name
        if centred and "bias" not in name:
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(noise * (0.05 if tensor.dim() == 1 else 1.5 / tensor[0].numel() ** 0.5))
    return module


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    net = randomised(SpeechTokenizer(TINY.s3gen.tokenizer))
    net._mel_filters.copy_(mel_filterbank(16_000, 400, 16, 8000.0))
    # Codes spread over all levels, so that tokens differ from place to place.
    project = net.quantizer._codebook.project_down
    with torch.no_grad():
        hidden, _ = net.encoder(net.mel(torch.from_numpy(babble(4, 16_000)))[None], torch.tensor([400]))
        project.weight /= project(hidden).std((0, 1))[:, None]
        project.bias -= project(hidden).mean((0, 1))
    return net


@pytest.fixture(scope="module")
def enroller(tokenizer: SpeechTokenizer, tmp_path_factory: pytest.TempPathFactory) -> VoiceEnroller:
    directory = tmp_path_factory.mktemp("tiny")
    nets = {"tokenizer.": tokenizer, "speaker_encoder.": randomised(CAMPPlus(TINY.s3gen.xvector))}
    s3gen = {prefix + key: value for prefix, net in nets.items() for key, value in net.state_dict().items()}
    save_file(s3gen, directory / "s3gen.safetensors")
    save_file(randomised(VoiceEncoder(TINY.voice_encoder)).state_dict(), directory / "ve.safetensors")
    return VoiceEnroller(TINY, Weights(directory / "s3gen.safetensors"), Weights(directory / "ve.safetensors"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def saved(voice: Voice, folder: Path) -> bytes:
    voice.save(folder / "whole.pt")
    return (folder / "whole.pt").read_bytes()


@pytest.fixture(scope="module")
def voice(enroller: VoiceEnroller) -> Voice:
    return enroller.enrol(babble(1.5), 24_000)


# --- the file format


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


# --- enrolment


def test_both_recipes_make_the_same_of_a_clip_of_five_to_six_seconds(enroller: VoiceEnroller) -> None:
    config = replace(TINY, enrolment=TURBO.config.enrolment, t3=replace(TINY.t3, speech_prompt_tokens=375))
    turbo = VoiceEnroller(config, enroller.hearing._weights, enroller._weights_ve)
    for seconds, alike in ((5.1, True), (5.99, True), (7, False)):
        first, other = (e.enrol(babble(seconds), 24_000, norm) for e, norm in ((enroller, None), (turbo, False)))
        assert (first.key == other.key) is alike and (other.recipe, first.recipe) == ("turbo", None)
        if alike:
            assert check_voice(first, config) is first
        else:
            with pytest.raises(ConfigError, match="of the first Chatterbox's kind"):
                check_voice(first, config)


def test_enrolment_takes_the_published_lengths(enroller: VoiceEnroller) -> None:
    clip = babble(12)
    voice, first = enroller.enrol(clip, 24_000), enroller.enrol(clip[: 10 * 24_000], 24_000)
    assert voice.prompt.mel.shape == (500, 20) and voice.prompt.tokens.shape == (250,)
    assert voice.conditioning.speech_prompt.shape == (150,)
    assert voice.conditioning.speaker_embedding.shape == (1, 8) and voice.prompt.xvector.shape == (6,)
    assert torch.equal(voice.prompt.mel, first.prompt.mel) and torch.equal(voice.prompt.xvector, first.prompt.xvector)
    assert torch.equal(voice.prompt.tokens, first.prompt.tokens)
    assert not torch.allclose(voice.conditioning.speaker_embedding, first.conditioning.speaker_embedding, atol=1e-4)
    assert abs(voice.conditioning.speaker_embedding.norm().item() - 1) < 1e-5


@pytest.mark.parametrize(("samples", "frames", "tokens"), [(24_000, 50, 25), (24_480, 51, 25), (24_959, 51, 25)])
def test_an_odd_mel_frame_is_kept_and_its_token_dropped(
    enroller: VoiceEnroller, samples: int, frames: int, tokens: int
) -> None:
    voice = enroller.enrol(babble(2)[:samples], 24_000)
    assert (len(voice.prompt.mel), len(voice.prompt.tokens)) == (frames, tokens)


def test_other_rates_and_widths_are_taken(enroller: VoiceEnroller, voice: Voice) -> None:
    wide = enroller.enrol(babble(1.5).astype(np.float64), 24_000)
    assert wide.key == voice.key
    assert enroller.enrol(babble(1, 44_100), 44_100).prompt.mel.shape == (50, 20)


def test_the_nets_are_loaded_at_first_use_and_released(enroller: VoiceEnroller, voice: Voice) -> None:
    enroller.release()
    assert not enroller.is_loaded
    with pytest.raises(AudioError):
        enroller.enrol(np.zeros(24_000, np.float32), 24_000)
    assert not enroller.is_loaded
    assert enroller.enrol(babble(1.5), 24_000).key == voice.key
    assert enroller.is_loaded


def test_a_clip_that_cannot_be_a_voice_is_refused(enroller: VoiceEnroller) -> None:
    with pytest.raises(AudioError, match="never changes"):
        enroller.enrol(np.sin(np.arange(48_000) / 20).astype(np.float32), 24_000)


def test_silence_before_the_speech_is_not_enrolled(enroller: VoiceEnroller) -> None:
    speech, silence = babble(4), np.zeros(12 * 24_000, np.float32)
    voice = enroller.enrol(np.concatenate([silence, speech]), 24_000)
    assert len(voice.prompt.mel) == pytest.approx(4.2 * 50, abs=1)
    at_once = enroller.enrol(np.concatenate([silence[: 24_000 // 5], speech]), 24_000)
    assert voice.key == at_once.key


# --- the nets and their features


def test_batched_windows_equal_single_ones(tokenizer: SpeechTokenizer) -> None:
    lengths = [400, 37, 1, 203, 398, 399, 100, 64, 50, 5]
    mels = [tokenizer.mel(torch.from_numpy(babble(5, 16_000, seed=i)))[:, 50 : 50 + n] for i, n in enumerate(lengths)]
    batched = tokenizer.tokenize_mels(mels)
    for mel, tokens in zip(mels, batched, strict=True):
        assert len(tokens) == -(-mel.shape[1] // 4)
        assert torch.equal(tokens, tokenizer.tokenize_mels([mel])[0])
    padded = torch.stack([torch.nn.functional.pad(mel, (0, 400 - mel.shape[1]), value=9.0) for mel in mels])
    with torch.no_grad():
        hidden, counts = tokenizer.encoder(padded, torch.tensor(lengths))
        for mel, row, count in zip(mels, hidden, counts.tolist(), strict=True):
            alone, _ = tokenizer.encoder(mel[None], torch.tensor([mel.shape[1]]))
            torch.testing.assert_close(row[:count], alone[0], atol=1e-5, rtol=1e-5)


def test_long_audio_is_tokenized_in_overlapping_windows(tokenizer: SpeechTokenizer) -> None:
    wave = torch.from_numpy(babble(58, 16_000))
    mel = tokenizer.mel(wave)
    tokens = tokenizer.tokens(wave)
    first, second, third = tokenizer.tokenize_mels([mel[:, :3000], mel[:, 2600:5600], mel[:, 5200:]])
    assert tokens.dtype == torch.int64 and len(tokens) == 58 * 25
    assert torch.equal(tokens, torch.cat((first[:700], second[50:700], third[50:])))
    assert torch.equal(tokenizer.tokens(wave, max_tokens=750), first)


def test_tokens_are_base_three_digits(tokenizer: SpeechTokenizer) -> None:
    tokens = tokenizer.tokens(torch.from_numpy(babble(4, 16_000)))
    assert tokens.min() >= 0 and tokens.max() < 3**8 and len(tokens.unique()) > 50
    bias = tokenizer.quantizer._codebook.project_down.bias
    saved = bias.detach().clone()
    with torch.no_grad():
        bias.copy_(torch.tensor([99.0, -99, -99, -99, -99, -99, -99, 99]))
        assert tokenizer.quantizer(torch.zeros(1, 32)).item() == 2 + 2 * 3**7
        bias.copy_(saved)


@pytest.mark.parametrize(
    ("frames", "count"), [(1, 1), (159, 1), (160, 1), (204, 1), (205, 2), (237, 2), (281, 2), (282, 3)]
)
def test_partials_of_the_voice_encoder(frames: int, count: int) -> None:
    mel = torch.arange(1.0, frames + 1)[:, None].expand(-1, 10)
    partials = split_partials(mel)
    assert partials.shape == (count, 160, 10)
    start = 77 * (count - 1)
    expected = torch.arange(start + 1.0, start + 161)
    expected[expected > frames] = 0
    assert torch.equal(partials[-1, :, 3], expected)


def test_silent_ends_are_trimmed() -> None:
    wave = torch.zeros(16_000)
    wave[5000:9000] = 0.5
    # Frames reach 1024 samples to either side; those that hold over 1 % of the loudest one's power stay.
    assert trim_silence(wave) == (8 * 512, 20 * 512)
    wave[:3000] = 0.5 * 10 ** (-24 / 20)
    wave[12_000:14_000] = 0.5 * 10 ** (-14 / 20)
    assert trim_silence(wave) == (8 * 512, 29 * 512)
    assert trim_silence(wave * 1e-9) == (0, 16_000)
    assert trim_silence(torch.ones(700)) == (0, 700)


def test_filterbank_equals_the_published_one() -> None:
    published = np.load(COMPUTED_BUFFERS)["tokenizer._mel_filters"]
    assert np.array_equal(mel_filterbank(16_000, 400, 128, 8000.0).numpy(), published)


@pytest.mark.parametrize("samples", [16_000, 16_001, 12_345])
@pytest.mark.parametrize("rates", [(24_000, 16_000), (44_100, 24_000), (8_000, 24_000)])
def test_resamplers_keep_a_tone_and_the_length(rates: tuple[int, int], samples: int) -> None:
    rate_in, rate_out = rates
    tone = np.sin(2 * np.pi * 440 / rate_in * np.arange(samples)).astype(np.float32)
    length = -(-samples * rate_out // rate_in)
    expected = np.sin(2 * np.pi * 440 / rate_out * np.arange(length))
    for out in (resample(tone, *rates), sinc_resample(torch.from_numpy(tone), *rates).numpy()):
        assert out.dtype == np.float32 and len(out) == length
        assert np.abs(out - expected)[300:-300].max() < 2e-3
