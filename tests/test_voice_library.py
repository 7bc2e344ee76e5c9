"""Voices by name in a directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices import VoiceLibrary
from chatterbox_vllm.voices.library import default_directory
from chatterbox_vllm.voices.records import VoiceRecord, draw_id

from .test_voice_files import made_up_voice


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "data" / "voices")


def test_voices_are_kept_shown_and_deleted(library: VoiceLibrary) -> None:
    assert library.voices() == []
    path = library.save("Björk-2", made_up_voice(3))
    library.save("anna", made_up_voice(4))
    (library.directory / "notes.txt").write_text("left alone")
    (library.directory / ".hidden.pt").write_text("left alone")
    (library.directory / "a directory.pt").mkdir()
    assert [voice.name for voice in library.voices()] == ["Björk-2", "anna"]
    shown = library.get("Björk-2")
    assert shown.path == path and shown.bytes == path.stat().st_size
    assert shown.saved.timestamp() == pytest.approx(path.stat().st_mtime)
    assert library.load("Björk-2").key == made_up_voice(3).key
    with pytest.raises(CheckpointError, match=r"\[1, 192\]"):
        library.load("anna", ModelConfig(t3=T3Config(speaker_embedding_size=192)))
    library.delete("anna")
    assert [voice.name for voice in library.voices()] == ["Björk-2"]
    for act in (library.get, library.load, library.delete):
        with pytest.raises(ConfigError, match=r"no voice named 'anna' .* such as Björk-2"):
            act("anna")


def test_a_voice_is_replaced_only_where_that_is_asked_for(library: VoiceLibrary) -> None:
    library.save("anna", made_up_voice(1))
    with pytest.raises(OutputError, match="a voice named 'anna' already"):
        library.save("anna", made_up_voice(2))
    assert library.load("anna").key == made_up_voice(1).key
    library.save("anna", made_up_voice(2), overwrite=True)
    assert library.load("anna").key == made_up_voice(2).key
    assert [path.name for path in library.directory.iterdir()] == ["anna.pt"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../anna", "a/b", "a\\b", "-x", "_x", "a b", "a.pt", "a\0", "a\n", "\ud83d", "o\u0308", "x" * 65],
)
def test_names_that_are_no_file_of_the_library(library: VoiceLibrary, tmp_path: Path, name: str) -> None:
    made_up_voice().save(tmp_path / "data.pt")
    for act in (library.get, library.load, library.delete, lambda name: library.save(name, made_up_voice())):
        with pytest.raises(ConfigError, match="a voice cannot be named"):
            act(name)
    with pytest.raises(ConfigError, match="neither a file"):
        library.find(name)
    assert not library.directory.exists()


def test_a_user_means_a_file_or_a_name(library: VoiceLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.save("anna", made_up_voice())
    assert library.find("anna") == path
    monkeypatch.chdir(tmp_path)
    Path("anna").write_bytes(b"a clip")
    assert library.find("anna") == Path("anna")
    with pytest.raises(ConfigError, match=r"neither a file 'bert' nor a voice .* such as anna"):
        library.find("bert")


def test_a_saved_voice_goes_before_a_model_s_own(library: VoiceLibrary) -> None:
    saved = library.save("anna", made_up_voice())
    own = {"anna": Path("own/anna.pt"), "af_bella": Path("own/af_bella.pt"), "am_adam": Path("own/am_adam.pt")}
    assert library.find("anna", own) == saved
    assert library.find("am_adam", own) == own["am_adam"]
    with pytest.raises(ConfigError, match=r"nor a voice of that name .* or with the model; .* such as af_bella$"):
        library.find("Bella", own)


def test_where_the_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.delenv("CHATTERBOX_VOICES", raising=False)
    assert default_directory() == tmp_path / "share" / "chatterbox-vllm" / "voices"
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path / "own"))
    assert VoiceLibrary().directory == tmp_path / "own"
    (tmp_path / "own").write_text("a file stands here")
    with pytest.raises(OutputError, match=r"cannot be made .*set CHATTERBOX_VOICES"):
        VoiceLibrary().save("anna", made_up_voice())


def test_voices_are_found_by_what_their_owner_calls_them(library: VoiceLibrary) -> None:
    record = VoiceRecord(draw_id("voice"), "Anna / the first", 1)
    path = library.save(record.id, made_up_voice(1))
    library.records.put(record)
    assert library.saved_as("Anna / the first") == record.id == library.saved_as(record.id)
    assert library.find("Anna / the first") == path
    library.records.put(replace(record, name="Berta"))
    assert library.look_up("Anna / the first") is None and library.find("Berta") == path
    library.records.path(draw_id("voice")).write_text("{")  # one that is damaged hides no other
    assert library.find("Berta") == path
    library.delete("Berta")
    assert library.voices() == [] and library.records.all() == [] and not path.exists()


def test_aliases(library: VoiceLibrary, tmp_path: Path) -> None:
    assert library.aliases() == {}
    path = library.save("anna", made_up_voice(1))
    library.set_alias("alloy", "anna")
    library.set_alias("the host", "af_heart")
    assert library.find("alloy") == path
    assert library.find("the host", {"af_heart": tmp_path}) == tmp_path
    with pytest.raises(ConfigError, match="neither a file 'the host'"):
        library.find("the host")
    with pytest.raises(ConfigError, match="'anna' is a voice of its own"):
        library.set_alias("anna", "af_heart")
    with pytest.raises(ConfigError, match="an alias must be 1 to 200 printable characters"):
        library.set_alias("a\nb", "anna")
    library.set_alias("alloy", None)
    assert library.aliases() == {"the host": "af_heart"}
    with pytest.raises(ConfigError, match="no alias 'alloy'; give one, such as the host"):
        library.set_alias("alloy", None)
    (library.directory / "aliases.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="delete it and set the aliases anew"):
        library.aliases()


def test_records_are_read_by_ids_only(library: VoiceLibrary) -> None:
    for name in ("../../etc/passwd", "voice_", "voice_" + "g" * 24, "cons_" + "0" * 24, ""):
        assert library.records.get(name) is None and library.records.delete(name) is False
        with pytest.raises(ConfigError, match="no id"):
            library.records.path(name)
