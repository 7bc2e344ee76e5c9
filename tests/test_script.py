"""What users write into what is spoken: nothing lost, nothing that is no speech, silences where a reader makes them."""

from __future__ import annotations

import logging
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.pauses import Pauses
from chatterbox_vllm.text.script import read_script
from chatterbox_vllm.text.split import LONGEST, Segment

PROSE = "The rain came down on the slate roofs of the town and nobody went out. "
TOKENS = frozenset(("[START]", "[STOP]", "[UNK]", "[SPACE]", "[it]", "[laughter]", "[clear_throat]", "[sing]"))
TAGS = ("[clear throat]", "[laugh]", "[sigh]")
LATIN = frozenset(("Latin",))
HEADING, SCENE, PARAGRAPH, SENTENCE = 0.7, 1.0, 0.7, 0.35


def read(text: str, **options: object) -> list[tuple[str, float]]:
    return [(segment.text, segment.pause) for segment in read_script(text, **options)]  # type: ignore[arg-type]


def letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text)


# Words, marks and lines as they stand in documents; nothing that the rules drop or rewrite, but hyphens at line ends.
PARTS = st.sampled_from(
    [
        *("word ", "Word ", "a ", "I ", "Mr. ", "3.14 ", "No. 5 ", "well-", "govern-\n", "extraordinarily ", "é", "ß "),
        *("\n", "\n\n", "\r\n", "\r", "\t", "\n- ", "\n* ", "\n1. ", "\n* * *\n", "\n---\n", "\n===\n", "\n# "),
        *("Chapter Two\n", "CHAPTER IV.\n\n", "THE END\n", "漢字", "か。", "👩 ", "[pause:1s]", "[pause: 20 ms] "),
        *(". ", ", ", "! ", "? ", ": ", "… ", "... ", "“", "”", '"', "'", "— ", "- ", "(", ")", "[", "] ", "_", "~"),
    ]
)
DOCUMENTS = st.lists(PARTS, max_size=80).map("".join)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.integers(4, 120))
@example("[pause:1s]\nWord\n[pause:1s]", 20)
@example("word [pause:1s]. [pause:1s] ... [pause:20 ms]\n\nWord", 20)
def test_every_word_is_spoken_once_and_in_order(text: str, longest: int) -> None:
    plain = re.sub(r"\[pause:[^]]*\]", " ", text)
    if not letters(plain):
        with pytest.raises(ConfigError, match="no text to speak"):
            read_script(text, longest=longest)
        return
    segments = read_script(text, longest=longest)
    assert letters("".join(segment.text for segment in segments)) == letters(plain)
    for segment in segments:
        assert letters(segment.text) and len(segment.text) <= longest
        assert 0 <= segment.pause < 1000
    assert all(segment.before == 0 for segment in segments[1:])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200), st.booleans())
def test_any_text_is_read_or_refused(text: str, clean: bool) -> None:
    try:
        segments = read_script(text, clean=clean, longest=40, special_tokens=TOKENS)
    except ConfigError:
        return
    assert all(letters(segment.text) and len(segment.text) <= 40 for segment in segments)
    # A piece that is read anew stays as it is.
    for segment in segments:
        if "[" not in segment.text and not clean:
            assert [again.text for again in read_script(segment.text, longest=40)] == [segment.text]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=("Cc", "Cf")), max_size=LONGEST))
def test_one_line_that_fits_is_one_piece_unchanged(text: str) -> None:
    if letters(text) and not re.search(r"\[\s*pause|\*", text):
        assert read_script(text) == [Segment(text, 0.0)]


@pytest.mark.parametrize(
    "text", ["", " \n ", "...", "…", "* * *", "\u200b", "🎉", "\ufeff", "---\n\n***", "[pause:1s]", "?!"]
)
def test_nothing_to_speak(text: str) -> None:
    with pytest.raises(ConfigError, match="there is no text to speak"):
        read_script(text)


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(ConfigError, match=r"'\\ud83d' at character 5"):
        read_script("Half \ud83d.")


def test_bad_limit() -> None:
    with pytest.raises(ConfigError, match="at least 1 character, not 0"):
        read_script("Text.", longest=0)


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("\ufeffHello from a file.\r\n", "Hello from a file."),
        ("some\u00adthing long\u200bword w\u2060j \u202eleft\u202c a\ufe0f", "something longword wj left a"),
        ("Le cafe\u0301 de la cre\u0300me", "Le café de la crème"),
        ("a\x00b\x07c\x9fd", "a b c d"),
        ("\ufb01nd \uff26ull \U0001d407ello x² ½ ª", "find Full Hello x² ½ ª"),
        ("govern\u00ad\nment", "government"),
        ("\ue000\uf8ffprivate", "private"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("a" + "\u0323\u0307" * 100_000, "\u1ea1" + "\u0323" * 14 + "\u0307" * 15),
    ],
)
def test_invisible_characters(text: str, spoken: str) -> None:
    assert [segment.text for segment in read_script(text)] == [spoken]


def test_pauses_in_the_text() -> None:
    assert read("Hello. [pause:0.5s] World.") == [("Hello.", 0.5), ("World.", 0.0)]
    assert read("Hello.[ PAUSE : 250 MS ]World. [pause:.5s][pause:1s]") == [("Hello.", 0.25), ("World.", 1.5)]
    first, second = read_script("[pause:2s] Hello [pause:1s] there")
    assert (first.before, first.pause, second.before, second.pause) == (2.0, 1.0, 0.0, 0.0)
    assert (first.ends_sentence, second.starts_sentence, second.ends_sentence) == (False, False, True)
    # What the text asks for stands in place of what its form asks for.
    assert read("One.\n\n[pause:0.1s]\n\nTwo.\n\n* * *\n[pause:3s]\nThree.") == [
        ("One.", 0.1),
        ("Two.", 3.0),
        ("Three.", 0),
    ]
    assert read("Chapter One [pause:2s]\n\nIt rained.") == [("Chapter One", 2.0), ("It rained.", 0.0)]
    assert read("So [pause:1s]! Go.") == [("So!", 1.0), ("Go.", 0.0)]
    assert read("Two leeks\nOne carrot [pause:1s]\nRed beets\nSalt") == [
        ("Two leeks. One carrot", 1.0),
        ("Red beets. Salt", 0.0),
    ]
    assert read("Press the [pause button] now.") == [("Press the [pause button] now.", 0.0)]
    assert sum(pause for _, pause in read("A [pause:60s]" * 60)) == 3600


@pytest.mark.parametrize(
    "mark",
    ["[pause]", "[pause:]", "[pause:1]", "[pause:1,5s]", "[pause:-1s]", "[pause:1 min]", "[pause 1s]", "[pause:1s"],
)
def test_a_pause_that_cannot_be_read(mark: str) -> None:
    with pytest.raises(ConfigError, match=r"at character 6 .*write it like \[pause:0.5s\] or \[pause:500ms\]"):
        read_script(f"Hello {mark} there.")


def test_too_long_pauses() -> None:
    with pytest.raises(ConfigError, match=r"'\[pause:61s\]' at character 2 is longer than the longest pause, 60 s"):
        read_script("A [pause:61s] b")
    with pytest.raises(ConfigError, match="61 pauses are 3660 s long together"):
        read_script("A [pause:60s] " * 61)


def test_pauses_can_be_set() -> None:
    text = f"Chapter One\n\n{PROSE * 4}\n\n{PROSE * 5}\n\n***\n\nThe end came."
    own = Pauses(clause=0.1, sentence=0.2, paragraph=0.9, heading=1.5, scene=2.5)
    assert [pause for _, pause in read(text, pauses=own)] == [1.5, 0.9, 0.2, 2.5, 0.0]
    assert [pause for _, pause in read(text)] == [HEADING, PARAGRAPH, SENTENCE, SCENE, 0.0]
    commas = read(("one two three four, " * 20).strip(), pauses=own)
    assert [pause for _, pause in commas] == [0.1, 0.0]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 61, True, "1", None])
def test_pauses_are_checked(value: object) -> None:
    with pytest.raises(ConfigError, match="the pause 'scene' must be a number of seconds from 0 to 60"):
        Pauses(scene=value)  # type: ignore[arg-type]


def heading_of(draw: random.Random) -> str:
    number = draw.choice(["One", "Two", "Twenty-Three", "I", "XIV", "7", "the Last"])
    title = draw.choice(
        ["The Long Road", "Low Water", "What the Heron Saw", "A Letter", "Who Goes There?", "Home again"]
    )
    return draw.choice(
        [
            f"Chapter {number}",
            f"CHAPTER {number}.",
            f"Chapter {number}: {title}",
            f"Part {number}\n{title}",
            f"{number}.",
            f"Chapter {number}\n\n{title}",
            f"BOOK {number}\n\n{title.upper()}",
            f"# Chapter {number}",
            f"Chapter {number}\n===========",
            "Prologue",
            "EPILOGUE.",
            title,
            title.upper(),
        ]
    )


def paragraph_of(draw: random.Random, wrapped: bool) -> str:
    words = ["rain", "came", "down", "on", "slate", "roofs", "of", "town", "and", "nobody", "went", "out", "who", "was"]
    sentences = [
        " ".join(draw.choices(words, k=draw.randint(3, 14))).capitalize() + draw.choice("..!?")
        for _ in range(draw.randint(1, 6))
    ]
    prose = " ".join(sentences)
    return re.sub(r"(.{50,60}) ", r"\1\n", prose) if wrapped else prose


def test_a_heading_never_ends_the_piece_before_it() -> None:
    """A thousand books by chance: wrapped or not, chapters of any length, headings of many kinds."""
    for seed in range(1000):
        draw = random.Random(seed)
        wrapped = draw.random() < 0.5
        headings, book = [], []
        for _ in range(draw.randint(1, 4)):
            headings.append(heading_of(draw))
            book += [headings[-1], *(paragraph_of(draw, wrapped) for _ in range(draw.randint(1, 4)))]
        segments = read_script("\n\n".join(book))
        spoken = [letters(segment.text) for segment in segments]
        at = 0
        for heading in headings:
            # With its title, or without.
            own = (letters(heading), letters(heading.split("\n")[0]))
            found = [i for i in range(at, len(spoken)) if spoken[i] in own]
            assert found, (seed, heading, segments[at:])
            at = found[0]
            assert at == 0 or segments[at - 1].pause >= HEADING, (seed, heading)
            assert segments[at].pause >= HEADING, (seed, heading)
            at += 1


def test_headings_without_empty_lines() -> None:
    assert read("It rained.\nCHAPTER II\nIt rained on.\nTHE LONG ROAD\nIt stopped.") == [
        ("It rained.", HEADING),
        ("CHAPTER II", HEADING),
        ("It rained on.", HEADING),
        ("THE LONG ROAD", HEADING),
        ("It stopped.", 0.0),
    ]
    # No headings: prose that begins like one, and prose that is wrapped before such words.
    assert len(read("Chapter two was long\nand dull to read.")) == 1
    assert len(read("As we have seen before in\nChapter Two\nof this long and dull book, it rained.")) == 1


@pytest.mark.parametrize(
    "mark", ["* * *", "***", "---", "#", "❦", ". . .", "…", "~ ~ ~", "_" * 400, "\u200b\u2022\u200b", "🎉"]
)
@pytest.mark.parametrize("prose", [PROSE, PROSE * 5])
def test_scene_breaks(mark: str, prose: str) -> None:
    pieces = read(f"{prose}\n\n{mark}\n\n{prose}")
    assert letters("".join(text for text, _ in pieces)) == letters(prose) * 2
    assert all(text.startswith("The rain") for text, _ in pieces)
    assert sorted(pause for _, pause in pieces)[-1] == SCENE
    assert read(f"{mark}\n{prose}\n{mark}")[-1][1] == 0.0


def test_scene_break_in_a_line() -> None:
    assert read(PROSE * 4 + "* * * " + PROSE * 4)[0] == ((PROSE * 4).strip(), SCENE)
    assert read("He left. ***Now*** he is gone.") == [("He left. ***Now*** he is gone.", 0.0)]
    assert read(PROSE + "*** It stopped.") == [(PROSE.strip(), SCENE), ("It stopped.", 0.0)]


def test_lists() -> None:
    items = ["Two leeks", "One carrot", "Red beets", "Sea salt", "Black beans"]
    spoken = "Two leeks. One carrot. Red beets. Sea salt. Black beans"
    for form in ("{}", "- {}", "* {}", "• {}", "  – {}"):
        assert read("\n".join(form.format(item) for item in items)) == [(spoken, 0.0)]
    assert read("\n".join(items).lower()) == [(spoken.lower(), 0.0)]
    assert read("1. Cut the leeks\n2. Boil them\n3. Eat") == [("1. Cut the leeks. 2. Boil them. 3. Eat", 0.0)]
    assert read("Ingredients:\n200 g flour\n2 eggs\nMethod:\nMix and rest") == [
        ("Ingredients: 200 g flour. 2 eggs. Method: Mix and rest", 0.0)
    ]
    assert read("Buy two large leeks at the market\nAsk the old man for salt") == [
        ("Buy two large leeks at the market. Ask the old man for salt", 0.0)
    ]
    assert read("- one\n\n- two\n\n3) three") == [("one. two", PARAGRAPH), ("3) three", 0.0)]
    assert read("You need:\n- two leeks that are\n  washed and cut\n- salt") == [
        ("You need: two leeks that are washed and cut. salt", 0.0)
    ]
    for piece in read("\n".join(f"- thing {i} without a full stop at its end" for i in range(1, 30))):
        assert re.fullmatch(r"(thing \d+ without a full stop at its end(\. |$))+", piece[0])
    # A dash that happens to begin a wrapped line is none.
    assert (
        read("The old house by the sea and the pier\n- it was grey - stood empty all the year.")[0][0].count(" - ") == 2
    )


def test_wrapped_lines() -> None:
    text = "The govern-\nment of the re-\npublic had not been ap-\nproved of by any-\nbody in the whole town"
    whole = "The government of the republic had not been approved of by anybody in the whole town"
    assert read(text) == [(whole, 0.0)]
    assert read("\n".join([text] * 5))[0][0].startswith(whole)
    assert read("It is well-\nknown to the mother-in-\nlaw of an Anglo-\nSaxon with a two-\nand a three-year-old")[0][
        0
    ] == ("It is well-known to the mother-in-law of an Anglo-Saxon with a two- and a three-year-old")
    long = "今天天气很好我们去公园散步然后回家吃饭，我们去公园散步，然后" * 2
    assert read(f"{long}\n回家。") == [(f"{long}回家。", 0.0)]


def test_verse_and_dialogue() -> None:
    assert read("Down by the river,\nWhere the old boats lie\nI saw a grey heron,\nGo slowly by.\n\nIt was late.") == [
        ("Down by the river, Where the old boats lie I saw a grey heron, Go slowly by.", PARAGRAPH),
        ("It was late.", 0.0),
    ]
    assert read("– Where to?\n– Home.\n– Now?") == [("Where to? Home. Now?", 0.0)]
    assert read('"Where to?"\n\n"Home."\n\nHe went home.') == [
        ('"Where to?" "Home."', PARAGRAPH),
        ("He went home.", 0.0),
    ]


def test_table_of_contents() -> None:
    assert read("Chapter 1 ........ 12\nChapter 2 . . . . . 24") == [("Chapter 1, 12", HEADING), ("Chapter 2, 24", 0.0)]


def test_pieces_cut_inside_a_sentence_say_so() -> None:
    segments = read_script("so then we went along the road " * 30)
    assert [segment.ends_sentence for segment in segments] == [False] * (len(segments) - 1) + [True]
    assert [segment.starts_sentence for segment in segments] == [True] + [False] * (len(segments) - 1)
    assert all(segment.starts_sentence and segment.ends_sentence for segment in read_script(PROSE * 20))


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("Take [it] and [STOP].", "Take it and STOP."),
        ("[clear_throat] Well [laughter]", "clear throat Well laughter"),
        ("[[it]] [[STOP] [s[it]ing]", "it STOP [siting]"),
        ("[STO[it]P] [s[it]", "[STOitP] [sit"),
        ("[IT] and [other] stay", "[IT] and [other] stay"),
        ("It is [la-\nughter] it is", "It is laughter it is"),
    ],
)
def test_control_tokens_do_not_act(text: str, spoken: str) -> None:
    assert [segment.text for segment in read_script(text, special_tokens=TOKENS)] == [spoken]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["[", "]", "it", "[it]", "STOP", "SPACE", "sing", "s", "ing", " ", "\n"]), max_size=40))
def test_no_control_token_is_left(parts: list[str]) -> None:
    if letters(text := "".join(parts)):
        for segment in read_script(text, special_tokens=TOKENS, longest=30):
            assert not any(token in segment.text for token in TOKENS)


@pytest.mark.parametrize(
    "text, script",
    [
        ("Привет, мир", "Cyrillic"),
        ("今天天气很好。", "Han"),
        ("これはテストです", "Hiragana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا بالعالم ١٢٣", "Arabic"),
        ("שלום", "Hebrew"),
        ("नमस्ते", "Devanagari"),
        ("สวัสดี", "Thai"),
        ("Καλημέρα κόσμε", "Greek"),
        (f"{PROSE}\n\nПривет, мир.\n\n{PROSE}", "Cyrillic"),
    ],
)
def test_a_script_that_the_model_cannot_say(text: str, script: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot say .* written in .*{script}.*; it speaks Latin letters"):
        read_script(text, scripts=LATIN)
    assert read_script(text)
    assert read_script(text, scripts=LATIN | {script, "Katakana", "Hiragana"})


def test_foreign_words_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_script(f"{PROSE * 2} Мир is peace, and π is a number.\n\n{PROSE * 2} Мир.", scripts=LATIN)
    assert len(caplog.records) == 1 and "6 of Cyrillic, 1 of Greek" in caplog.text
    caplog.clear()
    read_script("Naïve façade, Dvořák, ˈsɪŋɪŋ, ½ ² ª µ © 😀 — “x” ① 10 °C", scripts=LATIN)
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        PROSE * 4_000,
        f"{PROSE * 3}\n\n" * 1_200,
        "govern-\nment of the town " * 12_000,
        "a b\n" * 70_000,
        "[" * 300_000 + "a",
        "[pause" * 50_000 + "a",
        "a [pause:1ms]" * 20_000,
        "a" + "\u0316\u0301" * 150_000,
        "a " + ". " * 150_000 + "\nb",
        "* * *\n" * 50_000 + "a",
        "[it" * 100_000 + "]" * 100_000,
        "a. " + "* " * 150_000 + "\nb" + " " * 150_000,
    ],
    ids=lambda text: f"{len(text)}-{text[:8]!r}",
)
def test_time_is_linear(text: str) -> None:
    """A third of a megabyte. It takes a second or two; with the square of the length it would take many minutes."""
    start = time.process_time()
    assert read_script(text, special_tokens=TOKENS, scripts=LATIN)
    assert time.process_time() - start < 15


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*TAGS, "word", "extraordinarily", "a", "漢字", " ", ". ", ", ", "\n\n"]), max_size=60),
    st.integers(max(map(len, TAGS)), 60),
)
@example(["[clear throat]"] * 8, 20)
@example(["a"] * 12 + ["[clear throat]"] + ["a"] * 12, 20)
def test_no_cut_falls_inside_a_tag(parts: list[str], longest: int) -> None:
    text = "Once. " + "".join(parts)
    pieces = [segment.text for segment in read_script(text, longest=longest, tags=frozenset(TAGS))]
    for tag in TAGS:
        assert sum(piece.count(tag) for piece in pieces) == text.count(tag), pieces
    assert max(map(len, pieces)) <= longest


def test_a_tag_that_is_longer_than_a_piece_is_cut() -> None:
    assert [s.text for s in read_script("[clear throat]", longest=8, tags=frozenset(TAGS))] == ["[clear", "throat]"]
