"""The small model's text tokenizer goes through the package's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.text import FILE, SPECIAL, character_features, spoken_form, train_text_tokenizer

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import TextTokenizer

CONFIG = T3Config(text_vocab_size=320)
TEXTS = [spoken_form(text) for text in ["the cat sat on the mat", "The café was there; then they left…"] * 30]


@pytest.fixture(params=[0, 40], ids=["characters", "merges"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TextTokenizer, int]:
    train_text_tokenizer(TEXTS, CONFIG, request.param).save(str(tmp_path / FILE))
    return ENGLISH.read_tokenizer(tmp_path), request.param


def test_reader_takes_it(tokenizer: tuple[TextTokenizer, int]) -> None:
    reader, merges = tokenizer
    assert reader.special_tokens == frozenset(SPECIAL)
    ids = reader.encode("The cat.")
    assert (
        max(ids) < CONFIG.text_vocab_size and CONFIG.start_text_token not in ids and CONFIG.stop_text_token not in ids
    )
    assert ids.count(SPECIAL["[SPACE]"]) == 1
    assert len(ids) < 8 if merges else len(ids) == 8
    assert reader.encode("A b.") == [*reader.encode("A"), SPECIAL["[SPACE]"], *reader.encode("b.")]


def test_every_english_text_can_be_spelt(tokenizer: tuple[TextTokenizer, int]) -> None:
    reader, _ = tokenizer
    assert SPECIAL["[UNK]"] not in reader.encode('Quick zebras, 1984: VJX? "No!" it\'s-so.'.replace(":", ","))
    assert reader.encode("café") == reader.encode("cafe")
    assert reader.encode("§") == [SPECIAL["[UNK]"]]


def test_capitals_share_their_letter() -> None:
    tokenizer = train_text_tokenizer(TEXTS, CONFIG)
    features = character_features(tokenizer, CONFIG.text_vocab_size)
    small, capital = (features[tokenizer.token_to_id(c)] for c in "tT")
    assert (small != capital).nonzero()[:, 0].tolist() == [features.shape[1] - 1]
    assert features[SPECIAL["[SPACE]"]].abs().sum() == 0


def test_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="text_vocab_size=70 has room"):
        train_text_tokenizer(TEXTS, T3Config(text_vocab_size=70))
