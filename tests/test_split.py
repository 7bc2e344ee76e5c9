"""Texts into pieces: nothing lost, nothing too long, cuts where a reader would breathe."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.split import LONGEST, Segment, split_text

PARAGRAPH, SENTENCE, CLAUSE = 0.7, 0.35, 0.15
# What cuts depend on, and what makes them hard.
PARTS = st.sampled_from(
    [
        *"abZ19 .,!?…:;-—–\n\"'“”’()[]。！？、」』と؟۔।",
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "\u2029",
        "\u0301",
        "\u200d",
        "👩",
        "漢",
        "か",
    ]
    + [
        "Mr. ",
        "e.g. ",
        "U.S. ",
        "3.14 ",
        "word ",
        "Word. ",
        "...",
        ". ",
        "I. ",
        "J. R. ",
        "No. 5 ",
        "etc. A",
        "extraordinarily ",
    ]
)
TEXTS = st.one_of(st.text(max_size=400), st.lists(PARTS, max_size=120).map("".join))


def bare(text: str) -> str:
    return "".join(text.split())


def pieces(text: str, longest: int) -> list[str]:
    return [segment.text for segment in split_text(text, longest)]


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 120))
@example("a\u0301" * 30, 7)
@example("\u0301" * 30, 7)
@example(". . . . " * 20, 3)
def test_no_character_is_lost_or_doubled(text: str, longest: int) -> None:
    segments = split_text(text, longest)
    assert bare("".join(segment.text for segment in segments)) == bare(text)
    assert all(0 < len(segment.text) <= longest and segment.text.strip() for segment in segments)
    assert all(segment.pause >= 0 for segment in segments)
    assert not segments or segments[-1].pause == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abcXYZ.,!?'\"éß1", min_size=1, max_size=12), min_size=1, max_size=150), st.integers(12, 100))
def test_words_that_fit_are_never_cut(words: list[str], longest: int) -> None:
    assert [word for piece in pieces(" ".join(words), longest) for word in piece.split()] == words


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(60, 300))
def test_pieces_are_balanced(seed: int, longest: int) -> None:
    """Prose has no tiny pieces: neighbours in a paragraph would not fit into one well."""
    draw = random.Random(seed)
    text = " ".join(
        " ".join("abcdefghij"[: draw.randint(1, 10)] for _ in range(draw.randint(3, 14))).capitalize() + "."
        for _ in range(draw.randint(10, 60))
    )
    lengths = [len(piece) for piece in pieces(text, longest)]
    assert all(a + b + 1 > 0.6 * longest for a, b in zip(lengths, lengths[1:], strict=False)), lengths


def test_a_text_that_fits_is_unchanged() -> None:
    text = "  Two sentences.\n\nOne  piece. "
    assert split_text(text) == [Segment(text, 0.0)]
    assert split_text("  \n ") == split_text("") == []


def test_a_bad_limit() -> None:
    with pytest.raises(ConfigError, match="at least 1 character, not 0"):
        split_text("Text.", 0)


@pytest.mark.parametrize(
    "first, second",
    [
        ("Mr. Smith met Dr. Jones and Prof. Lee.", "They spoke."),
        ("J. R. R. Tolkien wrote it, e.g. in the U.S. at 10 p.m. or so.", "It is long."),
        ("It costs 3.14 dollars, see No. 5 and Fig. 3 at 10:30.", "Cheap."),
        ("So did I.", "Then we all went to bed at last."),
        ("He said no.", "Then he left the room without a word."),
        ("Apples, pears etc.", "Then we ate all of them together."),
        ('"What?" she said to the man.', "He did not answer her."),
        ('He said: "Go away (now)!"', "She went away from there."),
        ("Well... he said nothing of it.", "It was late already."),
        ("She waited...", "Nobody came on that long day."),
        ("“Is it so?”", "“It is so, and I am sorry for it.”"),
        ("Is this right?!", "Nobody knows it, I am afraid."),
        ("هل هذا صحيح؟", "نعم، هذا صحيح تماما يا صديقي."),
        ("यह सही है।", "हाँ, यह बिल्कुल सही बात है।"),
    ],
)
def test_sentences(first: str, second: str) -> None:
    assert split_text(f"{first} {second}", max(len(first), len(second)) + 1) == [
        Segment(first, SENTENCE),
        Segment(second, 0.0),
    ]


def test_scripts_without_spaces() -> None:
    assert pieces("今天天气很好！我们去公园。你来吗？", 8) == ["今天天气很好！", "我们去公园。", "你来吗？"]
    assert pieces("彼は「行く。」と言った。それから寝た。", 14) == ["彼は「行く。」と言った。", "それから寝た。"]
    assert pieces("漢" * 10, 4) == ["漢漢漢漢", "漢漢漢", "漢漢漢"]
    assert pieces("か\u3099" * 3, 3) == ["か\u3099"] * 3


def test_where_cuts_fall_and_how_long_the_pauses_are() -> None:
    a, b = "One two three four five six.", "Seven eight nine ten eleven."
    assert split_text(f"{a}\n\n{b}", 40) == [Segment(a, PARAGRAPH), Segment(b, 0.0)]
    # "Seven" had room in the first line: no wrapping.
    assert split_text(f"{a}\n{b[:-1]}, or twelve.", 45)[0] == Segment(a, PARAGRAPH)
    assert split_text(f"{a} {b}", 40)[0].pause == SENTENCE
    assert split_text("One two three four five six, seven eight nine ten eleven.", 40)[0] == Segment(
        "One two three four five six,", CLAUSE
    )
    long = split_text("one two three four five six seven eight nine ten", 30)
    assert [segment.pause for segment in long] == [0.0, 0.0]
    assert abs(len(long[0].text) - len(long[1].text)) < 8
    assert pieces("a" * 25, 10) == ["a" * 9, "a" * 8, "a" * 8]
    # Dialogue in short lines is spoken together, a heading by itself.
    assert len(split_text('"Yes."\n\n"No."\n\n"But."\n\n"Why?"\n\n' * 4, 60)) <= 4
    assert split_text("Chapter One\n\n" + f"{a} {b} " * 4, 100)[0] == Segment("Chapter One", PARAGRAPH)


def test_wrapped_lines_are_one_paragraph() -> None:
    text = "The quick brown fox jumps over the\nlazy dog. The dog sleeps on and on\nin the sun.\nThe end came soon."
    assert split_text(text, 50) == [
        Segment("The quick brown fox jumps over the lazy dog.", SENTENCE),
        Segment("The dog sleeps on and on in the sun.", PARAGRAPH),
        Segment("The end came soon.", 0.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "One two three four, five six. Seven! " * 14_000,
        "word " * 100_000,
        "a" * 500_000,
        "." * 500_000,
        '."' * 250_000,
        "a." * 250_000,
        " " * 250_000 + "\n " * 125_000 + "b",
        "漢" * 500_000,
        "Mr. " * 125_000,
    ],
    ids=["prose", "words", "one-word", "dots", "quotes", "dotted", "spaces", "han", "abbreviations"],
)
def test_half_a_megabyte(text: str) -> None:
    start = time.process_time()
    found = split_text(text)
    seconds = time.process_time() - start
    assert bare("".join(segment.text for segment in found)) == bare(text)
    assert max(len(segment.text) for segment in found) <= LONGEST
    # About a second; with the square of the length it would take many minutes.
    assert seconds < 15, seconds
