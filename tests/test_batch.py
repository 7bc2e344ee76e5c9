"""Batches: rows, and the folder that survives any death."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from chatterbox_vllm.batch.folder import Folder
from chatterbox_vllm.batch.identity import differences, what_files_depend_on
from chatterbox_vllm.batch.rows import Input
from chatterbox_vllm.caches.atomic import partial_name
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError, OutputError
from chatterbox_vllm.voices import VoiceLibrary
from tests.batches import RUN, FakeSpeaker, audio_files, manifest, speak, write
from tests.fakes import a_voice


def test_a_run(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"text": "one", "id": "a"},
        {"text": "two long", "seed": 77, "voice": "v.wav", "cfg_weight": 0},
    )
    speaker = FakeSpeaker()
    (tmp_path / "v.wav").touch()
    out = tmp_path / "deep" / "out"
    summary = speak(source, out, speaker, temperature=0.5)
    assert (summary.rows, summary.spoken, summary.failed, summary.cut_off) == (2, 2, 0, 1)
    assert summary.seconds == pytest.approx(0.2)
    assert speaker.enrolled == [tmp_path / "v.wav"]
    first, second = sorted(manifest(out), key=lambda entry: entry["index"])
    assert first["id"] == "a" and first["file"] == "a.wav" and first["seed"] == 5 and first["error"] is None
    assert first["parameters"]["temperature"] == 0.5 and first["duration"] == 0.1 and first["finish_reason"] == "stop"
    assert set(first["timings"]) == {"queued", "talking", "voicing", "first_audio", "total"}
    assert len(first["text_hash"]) == 32
    assert second["file"] == "0000001.wav" and second["seed"] == 77 and second["voice"] == "v.wav"
    assert second["parameters"]["cfg_weight"] == 0 and second["finish_reason"] == "length"
    wave, rate = soundfile.read(out / "a.wav")
    assert rate == 24_000 and len(wave) == 2400
    assert {path.name for path in out.iterdir()} == {"a.wav", "0000001.wav", "manifest.jsonl", "run.json", ".lock"}


def test_a_clips_loudness_is_the_rows_or_else_the_batchs(tmp_path: Path) -> None:
    rows = [{"voice": "v.wav"}, {"voice": "v.wav", "norm_loudness": True}, {"voice": "v.wav", "norm_loudness": False}]
    source = write(tmp_path / "in.jsonl", {"text": "own"}, *({"text": "x"} | row for row in rows))
    (tmp_path / "v.wav").touch()
    for name, norm_loudness, wanted in (
        ("of the model", None, [None, True, False]),
        ("off", False, [False, True, False]),
    ):
        speaker = FakeSpeaker()
        assert speak(source, tmp_path / name, speaker, norm_loudness=norm_loudness).spoken == 4
        assert speaker.loudness == wanted


def test_rows_name_files_and_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path / "library"))
    library = VoiceLibrary()
    anna, clip, own = library.save("anna", a_voice()), tmp_path / "ben", tmp_path / "own"
    library.save("ben", a_voice())
    library.set_alias("alloy", "of the model")
    clip.touch()  # a file beside the input goes before a voice
    names = ("anna", "ben", "of the model", "alloy", "anna", "anne", 300 * "a")
    source = write(tmp_path / "in.jsonl", *({"text": name, "voice": name} for name in names))
    speaker = FakeSpeaker()
    summary = speak(source, tmp_path / "out", speaker, own={"of the model": own})
    assert speaker.enrolled == [anna, clip, own, own, anna]
    assert summary.failed == 2
    fault, _ = (entry["error"] for entry in manifest(tmp_path / "out") if entry["error"])
    assert "neither a file" in fault and str(tmp_path / "anne") in fault and "anna" in fault


def test_bad_rows_do_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"text": "one"},
        "{torn",
        {"text": ""},
        {"text": "x", "temperature": 99},
        {"text": "x", "voice": "bad.wav", "seed": 8},
        {"text": "x", "voice": "bad.wav"},
        {"text": "fail"},
        {"text": "nan"},
        {"text": "last"},
    )
    (tmp_path / "bad.wav").touch()
    speaker = FakeSpeaker()
    summary = speak(source, tmp_path / "out", speaker)
    assert (summary.spoken, summary.failed) == (2, 7)
    assert speaker.enrolled == [tmp_path / "bad.wav"]
    entries = {entry["index"]: entry for entry in manifest(tmp_path / "out")}
    named = ["JSON", "no text", "temperature", "bad.wav", "bad.wav", "could not speak", "finite"]
    lines = capsys.readouterr().err.splitlines()
    for index, name in enumerate(named, 1):
        assert name in entries[index]["error"] and entries[index]["file"] is None and entries[index]["duration"] is None
        assert any(f"row {index} (line {index + 1}," in line and name in line for line in lines), lines
    assert len(entries) == 9 and entries[4]["seed"] == 8
    assert sorted(audio_files(tmp_path / "out")) == ["0000000.wav", "0000008.wav"]
    # Started again, nothing is done twice; on demand, failures are.
    speaker = FakeSpeaker()
    again = speak(source, tmp_path / "out", speaker)
    assert (again.earlier, again.spoken, again.failed, speaker.spoken) == (9, 0, 7, [])
    again = speak(source, tmp_path / "out", speaker, retry_failed=True)
    assert (again.earlier, again.failed, sorted(speaker.spoken)) == (2, 7, ["fail", "nan"])
    assert sorted(entry["index"] for entry in manifest(tmp_path / "out")) == list(range(9))


def test_no_voice_at_all(tmp_path: Path) -> None:
    speaker = FakeSpeaker()
    speaker.conds = None
    (tmp_path / "v.wav").touch()
    source = write(tmp_path / "in.jsonl", {"text": "x"}, {"text": "y", "voice": str(tmp_path / "v.wav")})
    summary = speak(source, tmp_path / "out", speaker)
    assert (summary.spoken, summary.failed) == (1, 1)
    assert "--voice" in manifest(tmp_path / "out")[0]["error"]


@pytest.mark.parametrize("seed", range(5))
def test_dying_again_and_again_changes_nothing(tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    source = write(tmp_path / "in.txt", *(f"Text {i}{' fail' * (i % 7 == 3)}." for i in range(40)))
    speak(source, tmp_path / "whole")
    out = tmp_path / "killed"
    spoken: list[str] = []
    for _ in range(6):
        speaker = FakeSpeaker(lives=random.randrange(1, 9))
        with pytest.raises(KeyboardInterrupt):
            speak(source, out, speaker)
        spoken += speaker.spoken
        path = out / "manifest.jsonl"
        content = path.read_bytes()
        if random.random() < 0.7 and content:  # the last line was being written
            path.write_bytes(content[: -random.randrange(1, min(60, len(content)))])
        if random.random() < 0.5:  # so was a file
            (out / partial_name()).write_bytes(b"RIFF")
    speak(source, out)
    assert audio_files(out) == audio_files(tmp_path / "whole")
    assert sorted(entry["index"] for entry in manifest(out)) == list(range(40))
    assert not list(out.glob(".*.partial"))
    stable = {"index", "id", "file", "text_hash", "parameters", "seed", "duration", "finish_reason", "error"}
    whole, killed = (
        sorted(([(k, v) for k, v in entry.items() if k in stable] for entry in manifest(d)), key=str)
        for d in (tmp_path / "whole", out)
    )
    assert whole == killed


def test_what_a_manifest_may_hold(tmp_path: Path) -> None:
    """Lines that are no entries, of rows that are not there, twice, or of files that are gone: those rows are open."""
    source = write(tmp_path / "in.txt", *"abcdef")
    out = tmp_path / "out"
    speak(source, out)
    lines = (out / "manifest.jsonl").read_text().splitlines()
    keep = {json.loads(line)["index"]: line for line in lines}
    stranger = json.dumps(json.loads(keep[0]) | {"index": 99})
    write(out / "manifest.jsonl", keep[0], keep[0], keep[1], "null", "\0\0\0", stranger, '{"index": 2}', keep[4])
    (out / "0000001.wav").unlink()
    speaker = FakeSpeaker()
    summary = speak(source, out, speaker)
    assert summary.earlier == 2 and sorted(speaker.spoken) == ["b", "c", "d", "f"]
    assert sorted(entry["index"] for entry in manifest(out)) == list(range(6))


def test_another_run_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", "a", "b")
    out = tmp_path / "out"
    speak(source, out)
    before = audio_files(out)
    with pytest.raises(ConfigError, match="another input.*--overwrite"):
        speak(source, out, run=RUN | {"input": "2"})
    with pytest.raises(ConfigError, match=r"temperature 0\.8, now 0\.5"):
        speak(source, out, run=RUN | {"parameters": {"temperature": 0.5}})
    with pytest.raises(ConfigError, match="seed 5, now 6"):
        speak(source, out, run=RUN | {"seed": 6})
    (out / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        speak(source, out)
    assert audio_files(out) == before


def test_a_run_goes_on_with_the_engine_that_began_it(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.txt", "a", "fail"), tmp_path / "out"
    engine = {"quantization": "nothing quantized", "T3 dtype": "float32"}
    speak(source, out, engine=engine)
    again = speak(source, out, engine=engine, retry_failed=True)
    assert (again.earlier, again.failed) == (1, 1)
    before = audio_files(out), (out / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="T3 dtype 'float32', now 'bfloat16'.*--overwrite"):
        speak(source, out, engine=engine | {"T3 dtype": "bfloat16"})
    assert (audio_files(out), (out / "run.json").read_bytes()) == before
    speak(source, out, engine=engine | {"T3 dtype": "bfloat16"}, overwrite=True)
    assert json.loads((out / "run.json").read_text())["engine"]["T3 dtype"] == "bfloat16"


def test_what_files_depend_on(babbler: Path, tmp_path: Path) -> None:
    def identity(directory: Path, **parameters: Any) -> dict[str, Any]:
        device = torch.device("cpu")
        return what_files_depend_on("1", directory, None, SpeechParameters(**parameters), "wav", device)

    moved = shutil.copytree(babbler, tmp_path / "moved")
    assert identity(moved) == identity(babbler) and differences(identity(moved), identity(babbler)) == []
    assert differences(identity(babbler), identity(babbler, temperature=0.5)) == ["temperature None, now 0.5"]
    file = moved / "s3gen.safetensors"
    content = bytearray(file.read_bytes())
    for i in range(len(content) // 2, len(content)):  # as training would: other weights under the same header
        content[i] ^= 1
    file.write_bytes(content)
    assert differences(identity(babbler), identity(moved)) == ["another model"]
    newer = identity(babbler) | {"versions": identity(babbler)["versions"] | {"torch": "9.9"}}
    (told,) = differences(identity(babbler), newer)
    assert told == f"torch '{torch.__version__}', now '9.9'"


def test_the_seed_of_then_is_kept(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        folder.begin(folder.open(RUN, 1, False, False))
    with Folder(tmp_path) as folder:
        assert folder.open(RUN | {"seed": None}, 1, False, False)["seed"] == 5


def test_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    speak(write(tmp_path / "in.txt", "a", "b", "c"), out)
    (out / "notes").write_text("mine")
    other = write(tmp_path / "other.txt", "x")
    speaker = FakeSpeaker()
    speak(other, out, speaker, run=RUN | {"input": "2"}, overwrite=True)
    assert speaker.spoken == ["x"]
    assert list(audio_files(out)) == ["0000000.wav"] and len(manifest(out)) == 1
    assert (out / "notes").read_text() == "mine"


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with Folder(tmp_path) as folder, pytest.raises(ConfigError, match=r"photo\.jpg"):
        folder.open(RUN, 1, False, False)
    with pytest.raises(OutputError, match=r"photo\.jpg"):
        Folder(tmp_path / "photo.jpg" / "out")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from chatterbox_vllm.batch.folder import Folder\n"
        "with Folder(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="another process"):
            Folder(tmp_path)
        other.kill()
        other.wait()
        with Folder(tmp_path):
            pass


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.txt", *(f"t{i}" for i in range(30)))
    out = tmp_path / "out"
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            speak(source, out)
    assert not list(out.glob(".*.partial"))
    assert all((out / entry["file"]).is_file() for entry in manifest(out))
    assert speak(source, out).failed == 0
    speak(source, tmp_path / "whole")
    assert audio_files(out) == audio_files(tmp_path / "whole")


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    import tracemalloc

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.txt"
        path.write_text("Some text to speak.\n" * rows)
        tracemalloc.start()
        with Input(str(path)) as source:
            assert source.check() == rows
            for _ in source.rows():
                pass
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    # The array of hashes while it grows, its sorted copy, and their comparison.
    assert peak(60_000) - peak(10_000) < 50_000 * 40
