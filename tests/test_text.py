"""The small parts of reading texts: normalisation of pieces, text files, scripts."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.characters import tidy_characters
from chatterbox_vllm.text.files import read_text
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.script import read_script
from chatterbox_vllm.text.tokenizer import BpeTokenizer
from chatterbox_vllm.text.writing_systems import writing_system


def test_pieces_of_a_sentence_get_no_full_stop_and_no_capital() -> None:
    assert normalize_punctuation("we went along") == "We went along."
    assert normalize_punctuation("we went along", starts_sentence=False) == "we went along."
    assert normalize_punctuation("we went along", ends_sentence=False) == "We went along,"
    assert normalize_punctuation("and so;", starts_sentence=False, ends_sentence=False) == "and so,"
    assert normalize_punctuation('he said, "go!"', starts_sentence=False, ends_sentence=False) == 'he said, "go!"'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_files(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(mark + "Naïve.\r\n".encode())
    assert read_text(path) == read_text(path.read_bytes()) == "Naïve.\r\n"


@pytest.mark.parametrize(
    "content, message",
    [
        ("One.\nNaïve.".encode("latin-1"), r"not in UTF-8: byte 0xEF in line 2"),
        ("One.".encode("utf-16"), "UTF-16"),
        ("One.".encode("utf-32"), "UTF-32"),
    ],
)
def test_other_encodings(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"text\.txt is .*{message}.*save it as UTF-8"):
        read_text(path)
    with pytest.raises(ConfigError, match="^standard input is"):
        read_text(content, "standard input")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read \(No such file or directory\)"):
        read_text(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "character, script",
    [
        *((letter, "Latin") for letter in "aZßéŁəⅧＡK"),
        *((letter, None) for letter in " 1.²½ˈˇµªº𝐇ℎ①😀─１ー\u0301"),
        ("я", "Cyrillic"),
        *((letter, "Greek") for letter in "ωΩ"),
        *((letter, "Arabic") for letter in "ا١"),
        ("ש", "Hebrew"),
        ("क", "Devanagari"),
        *((letter, "Han") for letter in "漢々㐀〇"),
        ("ひ", "Hiragana"),
        ("カ", "Katakana"),
        *((letter, "Hangul") for letter in "ㅏ한"),
        ("ㄅ", "Bopomofo"),
        ("ก", "Thai"),
        ("ა", "Georgian"),
        ("Ꮳ", "Cherokee"),
        ("ᐁ", "Canadian Aboriginal"),
    ],
)
def test_writing_systems(character: str, script: str | None) -> None:
    assert writing_system(character) == script


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    """A character a token, and control tokens as the published one has them."""
    special = ["[STOP]", "[UNK]", "[SPACE]", "[START]", "[it]", "[laughter]", "[clear_throat]"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(33, 127))])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return BpeTokenizer(path)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["[", "]", "it", "[it]", "STOP", "SPACE", "UNK", " ", "\n", "-", "…", "’"]), max_size=40)
)
def test_no_text_reaches_the_model_as_a_control_token(tokenizer: BpeTokenizer, parts: list[str]) -> None:
    text = "Take " + "".join(parts)
    assert tokenizer.special_tokens >= {"[it]", "[STOP]"}
    spaces = {tokenizer.encode(" ")[0]}
    for piece in read_script(text, special_tokens=tokenizer.special_tokens, longest=60):
        ids = tokenizer.encode(normalize_punctuation(piece.text))
        assert not {i for i in ids if i < len(tokenizer.special_tokens)} - spaces


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=100))
def test_tidying_twice_is_tidying_once(text: str) -> None:
    tidy = tidy_characters(text)
    assert tidy_characters(tidy) == tidy
    assert tidy.isascii() or not set(tidy) & set("\ufeff\u00ad\u200b\u2060\u202e\ue000\x00")


def test_the_document_on_texts_says_what_happens() -> None:
    page = Path(__file__).parents[1] / "docs" / "text.md"
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted > 8 and found.failed == 0
