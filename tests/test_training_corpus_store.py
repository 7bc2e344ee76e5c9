"""Corpora on disk: what is written is read, an interrupted run goes on, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training.corpus.store import CorpusWriter
from training.data import PHONEME_SYMBOLS, RATE, Corpus, CorpusError, Speaker
from training.reference import reference_utterances

SPEAKERS = [Speaker("ann", {"timbre": {"af_heart": 1.0}}, False), Speaker("bob", {"timbre": {"am_adam": 1.0}}, True)]


def tone(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)


def add(writer: CorpusWriter, id: int, samples: int = 4800, phonemes: str = "həlˈO.") -> None:
    writer.add(
        id=id, speaker=id % 2, text=f"Line {id}.", phonemes=phonemes, held_out=id % 2 == 1, audio=tone(samples, id)
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        add(writer, 7, 4800)
        add(writer, 2, 2400, "ɥ")
    corpus = Corpus(tmp_path)
    assert corpus.speakers == SPEAKERS
    assert [utterance.id for utterance in corpus.utterances] == [7, 2]
    assert corpus.utterances[1].seconds == 2400 / RATE
    assert corpus.training == [1]
    for i, (id, samples) in enumerate(((7, 4800), (2, 2400))):
        np.testing.assert_array_equal(corpus.audio(i), tone(samples, id))
    assert corpus.phoneme_symbols == (*PHONEME_SYMBOLS, "ɥ")


def test_movement_is_kept(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        writer.add(id=0, speaker=0, text="a", phonemes="a", held_out=False, audio=tone(10), movement=1.5)
        writer.add(id=1, speaker=0, text="b", phonemes="b", held_out=False, audio=tone(10))
    assert [utterance.movement for utterance in Corpus(tmp_path).utterances] == [1.5, 1.0]
    # A corpus from before pitch was moved does not speak of it.
    lines = (tmp_path / "utterances.jsonl").read_text()
    (tmp_path / "utterances.jsonl").write_text(lines.replace(', "movement": 1.5', "").replace(', "movement": 1.0', ""))
    assert [utterance.movement for utterance in Corpus(tmp_path).utterances] == [1.0, 1.0]


def test_references_are_as_the_teacher_speaks(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        for id, (movement, held_out) in enumerate([(1.5, False), (1.0, True), (1.0, False), (0.5, False)]):
            writer.add(id=id, speaker=0, text="a", phonemes="a", held_out=held_out, audio=tone(RATE), movement=movement)
    corpus = Corpus(tmp_path)
    assert reference_utterances(corpus, 0, 1.0) == [2]
    assert reference_utterances(corpus, 0, 9.0) == [2, 0, 3, 1]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        add(writer, 0)
        add(writer, 1)
    lines, audio = tmp_path / "utterances.jsonl", tmp_path / "audio.i16"
    # A line that was cut off, and audio beyond the last whole one.
    lines.write_bytes(lines.read_bytes() + b'{"id": 2, "spea')
    audio.write_bytes(audio.read_bytes() + b"\x01\x02\x03")
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        assert writer.ids == {0, 1}
        add(writer, 2)
    corpus = Corpus(tmp_path)
    assert [utterance.id for utterance in corpus.utterances] == [0, 1, 2]
    np.testing.assert_array_equal(corpus.audio(2), tone(4800, 2))


def test_lines_ahead_of_their_audio_are_dropped(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        add(writer, 0)
        add(writer, 1)
    audio = tmp_path / "audio.i16"
    audio.write_bytes(audio.read_bytes()[:-2])
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        assert writer.ids == {0}
        add(writer, 1)
    np.testing.assert_array_equal(Corpus(tmp_path).audio(1), tone(4800, 1))


def test_a_writer_refuses_what_does_not_belong(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        add(writer, 0)
        with pytest.raises(CorpusError, match="utterance 0 is in"):
            add(writer, 0)
        with pytest.raises(CorpusError, match="float64, not"):
            writer.add(id=1, speaker=0, text="x", phonemes="x", held_out=False, audio=np.zeros(9))
        with pytest.raises(CorpusError, match=r"shape \(0,\)"):
            add(writer, 1, samples=0)
    with pytest.raises(CorpusError, match="other speakers"):
        CorpusWriter(tmp_path, SPEAKERS[:1])


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no speakers.json"):
        Corpus(tmp_path)
    with CorpusWriter(tmp_path, SPEAKERS) as writer:
        add(writer, 0)
    audio, lines = tmp_path / "audio.i16", tmp_path / "utterances.jsonl"
    whole = lines.read_text()
    audio.write_bytes(audio.read_bytes()[:-2])
    with pytest.raises(CorpusError, match="at samples 0 to 4800, but audio.i16 has 4799"):
        Corpus(tmp_path)
    lines.write_text(json.dumps(json.loads(whole) | {"speaker": 2, "samples": 10}) + "\n")
    with pytest.raises(CorpusError, match="by speaker 2, but"):
        Corpus(tmp_path)
    lines.write_text(whole[:-5])
    with pytest.raises(CorpusError, match="is damaged"):
        Corpus(tmp_path)


def test_an_empty_corpus_can_be_opened(tmp_path: Path) -> None:
    CorpusWriter(tmp_path, SPEAKERS).close()
    assert Corpus(tmp_path).training == []
