"""The text tokenizer of a small model: characters, and merges of them where these are frequent.

python -m training.text --corpus DIR --out DIR writes `tokenizer.json` in the published layout.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH, TOKENIZER
from training.data import Corpus
from training.small import SMALL

FILE = TOKENIZER
# The published ids of the tokens that the package needs; the first two stand in the configuration too.
SPECIAL = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[START]": 255}
# What every model can read, whether or not the corpus has it.
_ALWAYS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?-'\""
# A rarer character is not learnt; the tokenizer says "[UNK]" for it.
_FEWEST = 20


def spoken_form(text: str) -> str:
    """A corpus text as the engine hands it to the tokenizer."""
    return ENGLISH.normalize(text, starts_sentence=True, ends_sentence=True)


def train_text_tokenizer(texts: Iterable[str], config: T3Config, merges: int = 0) -> Tokenizer:
    """A tokenizer for these texts.

    Accents are taken off, as the corpus has too few letters with one to learn them. With `merges` the most frequent
    pieces of words get ids of their own; a word that has none is still spelt in characters.

    Args:
        texts: as `spoken_form` gives them.
        config: its special ids and its vocabulary, into which everything must fit.

    Raises:
        ConfigError: the vocabulary is too small.
    """
    texts = [_without_accents(text) for text in texts]
    counts = Counter(character for text in texts for character in text if not character.isspace())
    characters = sorted(set(_ALWAYS) | {c for c, count in counts.items() if count >= _FEWEST})
    special = SPECIAL | {"[START]": config.start_text_token, "[STOP]": config.stop_text_token}
    free = sorted(set(range(config.text_vocab_size)) - set(special.values()))
    if len(characters) + merges > len(free):
        raise ConfigError(
            f"text_vocab_size={config.text_vocab_size} has room for {len(free)} pieces, but there are "
            f"{len(characters)} characters and {merges} merges; raise it"
        )
    pieces, pairs = _merged(texts, characters, merges) if merges else (characters, [])
    vocabulary = special | dict(zip(pieces, free, strict=False))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="[UNK]"))
    tokenizer.normalizer = _accents()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def character_features(tokenizer: Tokenizer, vocabulary: int) -> torch.Tensor:
    """What pieces of text have in common, float32 [vocabulary, features].

    A column for every letter, small or capital, with how often it is in the piece, and one for capitals.
    """
    pieces = {id: piece for piece, id in tokenizer.get_vocab().items() if piece not in SPECIAL}
    letters = sorted({c for piece in pieces.values() for c in piece.lower()})
    features = torch.zeros(vocabulary, len(letters) + 1)
    for id, piece in pieces.items():
        for c in piece.lower():
            features[id, letters.index(c)] += 1
        features[id, -1] = sum(c.isupper() for c in piece)
    return features


def _merged(texts: list[str], characters: list[str], merges: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Characters and merged pieces, and the pairs that they are merged of."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=len(characters) + merges,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    # The library tells the pairs in its file alone.
    pairs = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return pieces, pairs


def _accents() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merges", type=int, default=0, help="pieces of more than one character")
    arguments = parser.parse_args()
    corpus = Corpus(arguments.corpus)
    texts = [spoken_form(corpus.utterances[i].text) for i in corpus.training]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / FILE
    train_text_tokenizer(texts, SMALL.t3, arguments.merges).save(str(path))
    print(f"{path}: {len(Tokenizer.from_file(str(path)).get_vocab())} ids from {len(texts)} texts")


if __name__ == "__main__":
    main()
