"""The judge's arithmetic: word errors, likeness, tables, and what it says of lists that cannot be judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from training import judge
from training.judge import JudgeError, likeness, read_list, summary, table, word_errors


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "plain", lambda text: text.lower().replace(".", "").replace(",", ""))


def test_word_errors_and_cut_ends() -> None:
    assert word_errors("One, two three.", "one two three") == {"errors": 0, "words": 3, "cut": 0}
    assert word_errors("One two three.", "one too") == {"errors": 2, "words": 3, "cut": 1}
    assert word_errors("One two three.", "two three four five") == {"errors": 3, "words": 3, "cut": 0}
    assert word_errors("One two.", "") == {"errors": 2, "words": 2, "cut": 1}
    with pytest.raises(JudgeError, match="no word"):
        word_errors("...", "one")


def test_likeness_to_references() -> None:
    files = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    references = {"a": np.array([2.0, 0.0]), "b": np.array([0.0, 3.0])}
    assert likeness(["a", "b", "a"], files, references) == [
        {"similarity": 1.0, "nearest": 1},
        {"similarity": 1.0, "nearest": 1},
        {"similarity": pytest.approx(0.6), "nearest": 0},
    ]
    with pytest.raises(JudgeError, match="'c' has no reference"):
        likeness(["c"], files[:1], references)


def test_likeness_to_the_voice_s_other_files() -> None:
    files = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    first, second, only = likeness(["a", "a", "b"], files, {})
    # A file is not compared with itself, and an only file with nothing.
    assert first == {"similarity": pytest.approx(0.8), "nearest": 1}
    assert second["similarity"] == pytest.approx(0.8)
    assert only == {}


def test_summaries_weigh_word_errors_by_words() -> None:
    rows = [
        {"words": 2, "tiny": {"errors": 1, "words": 2, "cut": 1, "heard": ""}, "similarity": 0.9, "stretch": 1.0},
        {"words": 8, "tiny": {"errors": 0, "words": 8, "cut": 0, "heard": ""}, "distillmos": 4.0, "stretch": 2.5},
    ]
    total = summary(rows)
    assert total["wer tiny"] == 10.0 and total["cut tiny"] == 1 and total["over twice"] == 1
    assert total["similarity"] == 0.9 and total["distillmos"] == 4.0
    assert [judge.length_of(row) for row in rows] == ["short", "medium"]
    shown = table("voice", {"a": total, "b": {"files": 3}})
    assert shown.splitlines()[0].startswith("| voice | files | wer tiny | cut tiny |")
    assert "| a | 2 | 10.0 | 1 | 0.90 |" in shown
    assert len({line.count("|") for line in shown.splitlines()}) == 1


def test_lists_are_read_and_checked(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(2400, np.float32), 24000)
    path = tmp_path / "list.tsv"
    path.write_text('file\ttext\tvoice\tseconds\na.wav\tSay "no".\tann\t0.5\n')
    (item,) = read_list(path)
    assert (item.text, item.voice, item.seconds) == ('Say "no".', "ann", 0.5)
    wave, seconds = judge.load(item.file)
    assert len(wave) == 1600 and seconds == 0.1
    path.write_text("file\ttext\tvoice\nb.wav\tNo.\tann\n")
    with pytest.raises(JudgeError, match=r"names b\.wav"):
        read_list(path)
    path.write_text("path\ttext\na.wav\tNo.\n")
    with pytest.raises(JudgeError, match="columns file and voice"):
        read_list(path)
    with pytest.raises(JudgeError, match="no list"):
        read_list(tmp_path / "none.tsv")


def test_recognisers_by_folder() -> None:
    assert judge.recognisers(["mine=/some/where"]) == {"mine": Path("/some/where")}


def test_pitch_range(tmp_path: Path) -> None:
    time = np.arange(48_000) / 24_000
    hertz = np.where(time < 1, 110.0, 220.0)
    phase = 2 * np.pi * np.cumsum(hertz) / 24_000
    wave = sum(np.sin(n * phase) / n for n in range(1, 6)) * 0.2
    soundfile.write(tmp_path / "octave.wav", wave, 24_000)
    assert judge.pitch_range(tmp_path / "octave.wav") == pytest.approx(12, abs=0.3)
    soundfile.write(tmp_path / "silence.wav", np.zeros(24_000), 24_000)
    assert judge.pitch_range(tmp_path / "silence.wav") is None
    soundfile.write(tmp_path / "nothing.wav", np.zeros(100), 24_000)
    assert judge.pitch_range(tmp_path / "nothing.wav") is None
