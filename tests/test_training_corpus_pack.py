"""Shards: a corpus comes back whole, within the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training.corpus.pack import pack, unpack
from training.corpus.store import CorpusWriter
from training.data import RATE, Corpus, CorpusError, Speaker

SPEAKERS = [Speaker("ann", {"timbre": {"af_heart": 1.0}}, False)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten utterances of a second, ids downward, each a tone of its own."""
    with CorpusWriter(tmp_path / "corpus", SPEAKERS) as writer:
        for id in range(9, -1, -1):
            time = np.arange(RATE + id) / RATE
            wave = (8000 * np.sin(2 * np.pi * (200 + 100 * id) * time)).astype(np.int16)
            writer.add(
                id=id,
                speaker=0,
                text=f"Line {id}.",
                phonemes="lˈIn",
                held_out=id == 3,
                audio=wave,
                movement=1 + id / 10,
            )
    return tmp_path / "corpus"


def test_a_corpus_comes_back(corpus: Path, tmp_path: Path) -> None:
    paths = pack(corpus, tmp_path / "shards", kbits=32, megabytes=0.02)
    assert len(paths) > 1 and max(path.stat().st_size for path in paths) <= 20_000
    assert unpack(tmp_path / "shards", tmp_path / "back") == 10
    assert unpack(tmp_path / "shards", tmp_path / "back") == 0
    back = Corpus(tmp_path / "back")
    assert back.speakers == SPEAKERS
    for i, utterance in enumerate(back.utterances):
        assert (utterance.id, utterance.samples, utterance.held_out) == (i, RATE + i, i == 3)
        assert utterance.movement == 1 + i / 10
        # Away from its neighbours each second is the tone that it was.
        spectrum = np.abs(np.fft.rfft(back.audio(i)[2400 : 2400 + RATE // 2].astype(float)))
        assert abs(int(spectrum.argmax()) * 2 - (200 + 100 * i)) <= 2
        assert 7000 < np.abs(back.audio(i)[2400:-2400]).max() < 9000


def test_the_first_hours_are_packed(corpus: Path, tmp_path: Path) -> None:
    pack(corpus, tmp_path / "shards", kbits=32, hours=3.5 / 3600)
    unpack(tmp_path / "shards", tmp_path / "back")
    assert [utterance.id for utterance in Corpus(tmp_path / "back").utterances] == [0, 1, 2]


def test_what_does_not_fit_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="pack at fewer kbits"):
        pack(corpus, tmp_path / "shards", kbits=32, megabytes=0.001)
    with pytest.raises(CorpusError, match="holds no corpus"):
        unpack(tmp_path, tmp_path / "back")
