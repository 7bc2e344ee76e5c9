"""Voices by name in a directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices import VoiceLibrary
from chatterbox_vllm.voices.entries import About
from chatterbox_vllm.voices.naming import draw_id
from chatterbox_vllm.voices.place import default_directory
from chatterbox_vllm.voices.preview import preview_of
from chatterbox_vllm.voices.records import Consents, Records, record_key

from .made_up_clips import babble
from .test_voice_files import made_up_voice


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "data" / "voices")


def files(library: VoiceLibrary) -> list[str]:
    """All files below the library's directory."""
    paths = (path.relative_to(library.directory) for path in library.directory.rglob("*") if path.is_file())
    return sorted(map(str, paths))


def test_voices_are_kept_shown_and_removed(library: VoiceLibrary) -> None:
    assert library.voices() == []
    path = library.save("Björk-2", made_up_voice(3))
    library.save("anna", made_up_voice(4))
    assert [voice.name for voice in library.voices()] == ["Björk-2", "anna"]
    shown = library.get("Björk-2")
    assert shown.path == path and shown.bytes == path.stat().st_size and shown.id == "Björk-2"
    assert shown.saved.timestamp() == pytest.approx(path.stat().st_mtime, abs=2)
    assert library.load("Björk-2").key == made_up_voice(3).key
    assert library.get("Bjo\u0308rk-2") == shown  # however the letters are composed
    with pytest.raises(CheckpointError, match=r"\[1, 192\]"):
        library.load("anna", ModelConfig(t3=T3Config(speaker_embedding_size=192)))
    assert library.delete("anna") == "anna"
    assert [voice.name for voice in library.voices()] == ["Björk-2"] and len(files(library)) == 2
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
    assert len(files(library)) == 2  # the first is gone


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../anna", "a/b", "a\\b", "-x", "_x", "a b", "a.pt", "a\0", "a\n", "\ud83d", "o\u0308", "x" * 65],
)
def test_names_that_are_not_easily_typed(library: VoiceLibrary, tmp_path: Path, name: str) -> None:
    made_up_voice().save(tmp_path / "data.pt")
    with pytest.raises(ConfigError, match="a voice cannot be named"):
        library.save(name, made_up_voice())
    for act in (library.get, library.load, library.delete):
        with pytest.raises(ConfigError, match="no voice named"):
            act(name)
    with pytest.raises(ConfigError, match="neither a file"):
        library.find(name)
    assert not library.directory.exists()


@pytest.mark.parametrize("name", ["Anna / the first", "../../etc/passwd", "a.pt", ".hidden", "声", "x" * 200])
def test_names_are_texts_that_stand_in_no_path(library: VoiceLibrary, name: str) -> None:
    kept = library.keep(name, made_up_voice(), numbered=True)
    assert kept.name == name and kept.id.startswith("voice_") and kept.path.is_file()
    assert library.get(kept.id) == library.get(name) == kept
    for path in files(library):
        assert not set(path) - set("0123456789abcdef-./namesconttrpj"), path
    assert library.delete(kept.id) == kept.id and files(library) == [] and library.voices() == []


def test_what_no_voice_can_be_called(library: VoiceLibrary) -> None:
    for name in ("", " ", "a\nb", "x" * 201, draw_id("voice")):
        with pytest.raises(ConfigError, match="printable characters|what ids look like"):
            library.keep(name, made_up_voice())
    with pytest.raises(ConfigError, match="language must be a BCP 47 tag"):
        About(languages=("english!",))


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


def test_equal_content_is_kept_once_and_removed_with_its_last_name(library: VoiceLibrary) -> None:
    about = About(preview=preview_of(babble(2), 24_000), languages=("en-GB", "de"))
    anna = library.save("anna", made_up_voice(1), about=about)
    assert library.save("berta", made_up_voice(1), about=about) == anna
    assert len(list((library.directory / "contents").iterdir())) == 2
    assert library.get("anna").languages == ("en-GB", "de")
    library.delete("anna")
    assert library.load("berta").key == made_up_voice(1).key
    preview = library.get("berta").preview
    assert preview is not None and library.contents.read(preview) == about.preview
    library.delete("berta")
    assert files(library) == []


def test_a_name_has_a_voice_for_each_kind_of_model(library: VoiceLibrary) -> None:
    about = About(preview=preview_of(babble(2), 24_000))
    published, small = made_up_voice(1), replace(made_up_voice(2), codebook="small-1")
    library.keep("anna", published, about=about, numbered=True)
    library.save("anna", small, about=about)
    assert len({voice.id for voice in library.voices()}) == 1 and len(library.voices()) == 2
    assert library.load("anna").key == published.key
    assert library.load("anna", replace(ModelConfig(), codebook="small-1")).key == small.key
    assert library.find("anna", kind="small-1") != library.find("anna") == library.find("anna", kind="else")
    with pytest.raises(CheckpointError, match="holds speech tokens of the published models"):
        library.load("anna", replace(ModelConfig(), codebook="else"))
    with pytest.raises(OutputError, match="'anna' already"):
        library.save("anna", small)
    library.save("anna", replace(made_up_voice(3), codebook="small-1"), overwrite=True, about=about)
    assert library.load("anna").key == published.key and len(files(library)) == 5
    library.delete("anna")
    assert files(library) == []


def test_a_preview_is_the_beginning_of_the_speech() -> None:
    clip = babble(17)
    silent = preview_of([0.0] * 24_000 + [*clip], 24_000)
    wave, rate = decode_audio(silent)
    assert rate == 24_000 and len(wave) == 15 * rate and abs(wave[0]) < 0.01 > abs(wave[-1])
    assert abs(wave[2400 : 5 * rate]).max() > 0.05
    assert preview_of(clip, 24_000) == preview_of(clip, 24_000)
    short, _ = decode_audio(preview_of(1000 * babble(1, 16_000), 16_000))
    assert len(short) <= 24_000 and 0.5 < abs(short).max() <= 1


def test_what_is_damaged_is_refused_by_name_and_hides_nothing(library: VoiceLibrary) -> None:
    about = About(preview=preview_of(babble(2), 24_000))
    names = ("whole", "half", "other", "missing", "preview", "record", "renamed")
    for number, name in enumerate(names):
        library.save(name, made_up_voice(number), about=about if name == "preview" else None)
    half, other, missing = (library.get(name).path for name in ("half", "other", "missing"))
    half.write_bytes(half.read_bytes()[:-100])
    made_up_voice(77).save(other)  # whole, but not what the name promises
    missing.unlink()
    preview = library.get("preview").preview
    assert preview is not None
    preview.write_bytes(b"fLaC")
    records = library.directory / "names"
    record = records / f"{record_key('record', None)}.json"
    record.write_bytes(record.read_bytes()[:-40])
    renamed = records / f"{record_key('renamed', None)}.json"
    renamed.write_text(renamed.read_text().replace("renamed", "another"))

    assert library.load("whole").key == made_up_voice(0).key
    for name, why in (
        ("half", "damaged, or not a voice file .*its content is not the one that its name promises"),
        ("other", "its content is not the one that its name promises"),
        ("missing", "'missing' is damaged: .* is missing; remove the voice and add it anew"),
        ("record", "damaged, or not a record"),
        ("renamed", "it is of another name"),
    ):
        with pytest.raises(CheckpointError, match=why):
            library.load(name)
    with pytest.raises(CheckpointError, match="its content is not the one"):
        library.contents.read(preview)
    assert [voice.name for voice in library.voices()] == sorted({*names} - {"record", "renamed"})
    faults = "\n".join(library.sweep().faults)
    for name in ("half", "other", "missing", "preview", record.name, renamed.name):
        assert name in faults
    assert "whole" not in faults and library.load("whole").key == made_up_voice(0).key
    for name in names:
        library.delete(name)
    library.sweep()
    assert files(library) == []


def test_a_library_of_earlier_versions_serves_as_it_is(library: VoiceLibrary) -> None:
    root = library.directory
    root.mkdir(parents=True)
    number, other = draw_id("voice"), draw_id("voice")
    for name, token in (("anna", 1), (number, 2), (other, 3)):
        made_up_voice(token).save(root / f"{name}.pt")
    told = {"id": number, "name": "Berta / 2", "created_at": 5, "consent": "cons_x", "languages": ["de"]}
    (root / f"{number}.json").write_text(json.dumps(told))
    (root / f"{other}.json").write_text("{")  # does not harm the voice
    (root / "aliases.json").write_text('{"alloy": "anna", "the host": "Berta / 2"}')
    (root / "notes.txt").write_text("left alone")
    (root / ".hidden.pt").write_text("left alone")
    (root / "a directory.pt").mkdir()

    assert [voice.name for voice in library.voices()] == ["Berta / 2", "anna", other]
    berta = library.get("Berta / 2")
    assert (berta.id, berta.languages, berta.consent, berta.saved.timestamp()) == (number, ("de",), "cons_x", 5)
    assert library.get(number) == berta and library.find("the host") == berta.path == root / f"{number}.pt"
    assert library.load("anna").key == made_up_voice(1).key and library.find("alloy") == root / "anna.pt"
    with pytest.raises(OutputError, match="'anna' already"):
        library.save("anna", made_up_voice(4))

    library.save("anna", replace(made_up_voice(5), codebook="small-1"))  # takes nobody's place
    assert library.load("anna").key == made_up_voice(1).key
    library.save("anna", made_up_voice(4), overwrite=True)
    assert library.load("anna").key == made_up_voice(4).key and not (root / "anna.pt").exists()
    library.set_alias("new", "anna")
    library.set_alias("alloy", None)
    assert library.aliases() == {"new": "anna", "the host": "Berta / 2"}
    library.delete("Berta / 2")
    library.delete(other)
    assert sorted(path.name for path in root.iterdir() if path.is_file()) == [
        ".hidden.pt",
        "aliases.json",
        "notes.txt",
    ]
    (root / "aliases.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="delete it and set the aliases anew"):
        library.aliases()


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


def test_a_directory_that_cannot_be_written_serves(library: VoiceLibrary) -> None:
    library.save("anna", made_up_voice(1))
    paths = [library.directory, *(path for path in library.directory.iterdir() if path.is_dir())]
    for path in paths:
        path.chmod(0o500)
    try:
        assert library.load("anna").key == made_up_voice(1).key and len(library.voices()) == 1
    finally:
        for path in paths:
            path.chmod(0o700)


def test_no_recording_of_a_consent_stays_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    consents = Consents(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="full"):
        patch.setattr(Records, "put", full)
        consents.create("Anna", "en", b"I agree.")
    assert list(tmp_path.iterdir()) == []
    kept = consents.create("Anna", "en", b"I agree.")
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="cannot be removed"):
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
        consents.delete(kept.id)
    assert consents.all() == [kept], "it is still there to be removed"
    assert consents.delete(kept.id) and list(tmp_path.iterdir()) == []
    assert not consents.delete(kept.id) and not consents.delete("../" + kept.id)
