"""What families share: which one a directory holds, directories of links, and how utterances end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import CheckpointError, OutputError
from chatterbox_vllm.families import babble, registry
from chatterbox_vllm.families.ending import SpeechEnding
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import check_parts
from chatterbox_vllm.families.links import linked_directory
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.setup.inspection import model_facts

TEXT = "A good deal longer than that, I should say, and long enough for some chunks."
COMMIT = "c" * 40


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Family:
    """A second family, whose T3 file alone is its own."""
    family = replace(ENGLISH, name="other", t3="t3_other.safetensors", config=ModelConfig(family="other"))
    monkeypatch.setitem(registry.FAMILIES, "other", family)
    return family


def test_alignment_heads_are_known_of_the_second_multilingual_model_alone() -> None:
    known = {name: family.config.t3.alignment_heads for name, family in registry.FAMILIES.items()}
    assert {name for name, heads in known.items() if heads} == {"multilingual"}
    assert known["multilingual"] == ((12, 15), (13, 11), (9, 2))  # as published


def test_files_say_which_family_they_are(tmp_path: Path, other: Family) -> None:
    assert config_of(tmp_path) == ENGLISH.config
    (tmp_path / other.t3).touch()
    assert config_of(tmp_path).family == "other"
    (tmp_path / ENGLISH.t3).touch()
    assert config_of(tmp_path) == ENGLISH.config  # where both lie, a configuration has to say it
    (tmp_path / CONFIG_FILE).write_text(other.config.to_json())
    assert config_of(tmp_path) == other.config


def test_one_of_two_families_that_lie_together(tmp_path: Path, other: Family, babbler: Path) -> None:
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in (*ENGLISH.files, other.t3):
        (snapshot / name).write_bytes((babbler / (ENGLISH.t3 if name == other.t3 else name)).read_bytes())
    directory = linked_directory([snapshot], other)
    assert config_of(directory) == other.config and not (directory / ENGLISH.t3).exists()
    assert (directory / other.t3).samefile(snapshot / other.t3)
    assert linked_directory([snapshot], other) == directory
    assert model_facts(directory)["revision"] == COMMIT
    (snapshot / ENGLISH.builtin_voice).unlink()
    assert linked_directory([snapshot], other) != directory  # what was there is no longer


def test_a_cache_that_cannot_be_written(tmp_path: Path, other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OutputError, match="CHATTERBOX_VLLM_CACHE"):
        linked_directory([tmp_path], other)


def test_a_cache_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(babble, "save_file", full)
    with pytest.raises(OutputError, match="No space left.*make room"):
        babble.babble_directory()
    assert not list(tmp_path.iterdir())


def test_a_flow_of_few_steps_under_anothers_name(babbler: Path, turbo_babbler: Path) -> None:
    files = {
        "t3": babbler / ENGLISH.t3,
        "s3gen": turbo_babbler / TURBO.s3gen,
        "voice_encoder": babbler / "ve.safetensors",
    }
    with pytest.raises(CheckpointError, match="s3gen_meanflow.safetensors: its flow is one of few steps"):
        check_parts(config_of(babbler), {part: Weights(file) for part, file in files.items()})


@pytest.fixture(scope="module")
def tts(babbler: Path) -> Iterator:
    pytest.importorskip("vllm")
    from chatterbox_vllm import ChatterboxTTS

    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=2, watermark=False) as model:
        yield model


def spoken(tts, ending: SpeechEnding, monkeypatch: pytest.MonkeyPatch):
    """The whole audio, that of a stream, and the speech tokens."""
    scheduler, _ = tts.lend_scheduler()
    tts.return_scheduler()
    monkeypatch.setattr(scheduler, "ending", ending)
    whole = tts.generate(TEXT, seed=1)[0]
    *chunks, result = tts.generate_stream(TEXT, seed=1)
    return whole, torch.cat([chunk.audio for chunk in chunks]), result.speech_tokens


def test_endings(tts, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, stream, tokens = spoken(tts, SpeechEnding(), monkeypatch)
    assert len(plain) == len(stream) == 960 * len(tokens) - 480 * (len(tts.voice.prompt.mel) % 2)

    cut, cut_stream, told = spoken(tts, SpeechEnding(unheard=1), monkeypatch)
    assert told == tokens and len(cut) == len(cut_stream) == 960 * (len(tokens) - 1)
    assert torch.equal(cut, plain[: len(cut)])

    longer, longer_stream, told = spoken(tts, SpeechEnding(appended=(3, 3, 3)), monkeypatch)
    assert told == tokens and len(longer) == len(longer_stream) == len(plain) + 3 * 960

    shortest, _, told = spoken(tts, SpeechEnding(unheard=10_000), monkeypatch)
    assert told == tokens and len(shortest) == 960  # one token is heard
