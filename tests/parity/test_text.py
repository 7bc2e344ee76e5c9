"""Text normalisation and token ids against the goldens."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.text.gpt2_tokenizer import Gpt2Tokenizer
from chatterbox_vllm.text.normalize import normalize_punctuation, normalize_punctuation_turbo
from chatterbox_vllm.text.tokenizer import BpeTokenizer

from .conftest import Goldens, Parity


def test_punctuation(goldens: Goldens, parity: Parity) -> None:
    for row in goldens.json("text")["punc_norm"]:
        differs = normalize_punctuation(row["text"]) != row["english"]
        parity.check(f"text normalisation: {row['text']!r}", differs, 0)


def test_punctuation_turbo(goldens: Goldens, parity: Parity) -> None:
    for row in goldens.json("text")["punc_norm"]:
        differs = normalize_punctuation_turbo(row["text"]) != row["turbo"]
        parity.check(f"text normalisation, Turbo: {row['text']!r}", differs, 0)


def test_token_ids_turbo(goldens: Goldens, parity: Parity, turbo_tokenizer: Path) -> None:
    tokenizer, golden = Gpt2Tokenizer(turbo_tokenizer), goldens.json("text")["turbo_tokenizer"]
    for row in golden["cases"]:
        ids = tokenizer.encode(normalize_punctuation_turbo(row["text"]))
        parity.identical(f"text tokens, Turbo: {row['text']!r}", ids, row["ids"])
    assert tokenizer.size == golden["len"]


def test_token_ids(goldens: Goldens, parity: Parity, published_tokenizer: Path) -> None:
    tokenizer = BpeTokenizer(published_tokenizer)
    for row in goldens.json("text")["english_tokenizer"]:
        parity.identical(
            f"text tokens: {row['text']!r}", tokenizer.encode(normalize_punctuation(row["text"])), row["ids"]
        )
        parity.identical(f"text tokens: raw {row['text']!r}", tokenizer.encode(row["text"]), row["raw_ids"])
