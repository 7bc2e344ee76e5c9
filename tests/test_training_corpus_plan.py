"""The plan: what is said covers the common words, what is held out stays out, and it is the same for one seed."""

from __future__ import annotations

import lzma
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from training.corpus import build, templates, text
from training.corpus.plan import Plan
from training.corpus.speakers import HELD_OUT_VOICES, TOO_ALIKE, VOICES, is_british, make_speakers
from training.data import CorpusError

COMMON = [f"{a}{b}{c}e" for a in "bdfgklmn" for b in "aiou" for c in "bdfgklmn"]


def sentences(count: int = 900) -> list[str]:
    """Lines of 2 to 13 of the first 200 common words; the other 56 are in none."""
    rng = random.Random(1)
    return [" ".join(rng.choices(COMMON[:200], k=rng.randint(2, 13))).capitalize() + "." for _ in range(count)]


def phonemize(line: str, british: bool) -> str:
    return re.sub("[^a-z .?!,]", "", line.lower()).translate(str.maketrans("cgoxy", "kɡɔsj")) + (
        " ɒ" if british else ""
    )


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    return make_plan(monkeypatch, 0)


def make_plan(monkeypatch: pytest.MonkeyPatch, seed: int) -> Plan:
    monkeypatch.setattr(build, "common_words", lambda phonemize: COMMON)
    pool = sentences()
    return build.build(pool, pool, {text.key(pool[0])}, build.Sizes(0.4, 12, 3), phonemize, seed)


def test_every_common_word_is_said_often_enough(plan: Plan) -> None:
    have = Counter(word for line in plan.lines if not line.held_out for word in set(text.words(line.text)))
    assert min(have[word] for word in COMMON) >= text.ENOUGH
    alone = {line.text.strip(".?!").lower() for line in plan.lines if " " not in line.text and not line.held_out}
    assert len(alone & set(COMMON)) >= 20


def test_what_is_held_out_stays_out(plan: Plan) -> None:
    held, trained = ([line for line in plan.lines if line.held_out is side] for side in (True, False))
    assert len({line.text for line in held}) == 200
    said = {text.key(part) for line in trained for part in re.split(r"(?<=[.?!]) ", line.text)}
    assert not said & {text.key(part) for line in held for part in re.split(r"(?<=[.?!]) ", line.text)}
    assert text.key(sentences()[0]) not in said
    # Speakers that are held out say nothing that is trained on, and every sentence of the evaluation has some of both.
    assert not any(plan.speakers[line.speaker].held_out for line in trained)
    for one in {line.text for line in held}:
        kinds = [plan.speakers[line.speaker].held_out for line in held if line.text == one]
        assert set(kinds) == {True, False}
    assert plan.lines[: len(held)] == held
    lengths = Counter(min(3, len(line.text.split()) // 5) for line in held)
    assert min(lengths[i] for i in range(4)) > 50


def test_a_plan_depends_on_its_seed_alone(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_plan(monkeypatch, 0) == plan
    assert make_plan(monkeypatch, 1) != plan


def test_lines_fit_their_speakers(plan: Plan) -> None:
    for line in plan.lines:
        assert line.phonemes.endswith(" ɒ") == plan.speakers[line.speaker].recipe["british"]
        assert 0.9 <= line.speed <= 1.15
    assert [line.id for line in plan.lines] == list(range(len(plan.lines)))
    counts = Counter(line.speaker for line in plan.lines if not line.held_out)
    assert len(counts) == len(VOICES) + 12
    summary = build.summary(plan, COMMON)
    assert summary["common_words"]["4 times"]["1000"] == len(COMMON)
    assert summary["held_out"] + sum(counts.values()) == summary["utterances"] == len(plan.lines)


def test_a_plan_on_disk(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    table = lzma.decompress((tmp_path / "lines.tsv.xz").read_bytes()).decode()
    (tmp_path / "lines.tsv.xz").write_bytes(lzma.compress((table + "\n1\t99999\t1\t0\tHi.\thI\t1").encode()))
    with pytest.raises(CorpusError, match="does not fit"):
        Plan.read(tmp_path)
    (tmp_path / "lines.tsv.xz").write_bytes(lzma.compress(b"id\ttext\n"))
    with pytest.raises(CorpusError, match="does not begin"):
        Plan.read(tmp_path)
    with pytest.raises(CorpusError, match=r"no speakers\.json"):
        Plan.read(tmp_path / "none")


def test_half_the_training_lines_move_more_or_less(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(line.movement == 1 for line in plan.lines if line.held_out)
    trained = [line.movement for line in plan.lines if not line.held_out]
    moved = [movement for movement in trained if movement != 1]
    assert 0.4 < len(moved) / len(trained) < 0.6
    low, high = build.MOVEMENT
    assert low <= min(moved) < low + 0.1 and high - 0.1 < max(moved) <= high
    # Nothing else of a plan depends on it.
    monkeypatch.setattr(build, "MOVEMENT", (1.0, 1.0))
    unmoved = make_plan(monkeypatch, 0)
    assert unmoved.lines == [replace(line, movement=1.0) for line in plan.lines] != plan.lines


def test_a_plan_from_before_pitch_was_moved(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path)
    rows = lzma.decompress((tmp_path / "lines.tsv.xz").read_bytes()).decode().split("\n")
    before = "\n".join(row.rsplit("\t", 1)[0] for row in rows)
    (tmp_path / "lines.tsv.xz").write_bytes(lzma.compress(before.encode()))
    assert Plan.read(tmp_path).lines == [replace(line, movement=1.0) for line in plan.lines]


def test_speakers_follow_the_recipe() -> None:
    speakers = make_speakers(60, 8, random.Random(0))
    trained = [speaker for speaker in speakers if not speaker.held_out]
    assert {speaker.name for speaker in speakers if speaker.held_out} >= set(HELD_OUT_VOICES)
    assert len({speaker.name for speaker in speakers}) == len(speakers) == len(VOICES) + 60 + 4 + 8
    for speaker in trained:
        named = set(speaker.recipe["timbre"]) | set(speaker.recipe["prosody"] or {})
        assert named <= set(VOICES) and not named & set(HELD_OUT_VOICES)
    for speaker in speakers:
        timbre = speaker.recipe["timbre"]
        assert abs(sum(timbre.values()) - 1) < 1e-6
        assert not any(frozenset((a, b)) in TOO_ALIKE for a in timbre for b in timbre)
        assert speaker.recipe["british"] == is_british(timbre)
        assert len(timbre) == 1 or 0.1 <= min(timbre.values()) <= max(timbre.values()) <= 0.7
    assert {name for pair in TOO_ALIKE for name in pair} <= set(VOICES)


def test_joined_texts_have_the_length_asked_for() -> None:
    joined = text.join(sentences(), 80, 195, random.Random(0))
    assert len(joined) > 100
    assert all(80 <= len(line) <= 195 and line.count(".") > 1 for line in joined)


def test_sentences_are_read_without_repeats_and_crude_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('Hello "there".\nHELLO, there!\nThis is shit.\n\n')
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress("A café.".encode()))
    assert text.read_sentences([tmp_path / "a.txt", tmp_path / "b.txt.xz"]) == ["Hello there.", "A café."]
    with pytest.raises(CorpusError, match="no file"):
        text.read_sentences([tmp_path / "c.txt"])
    with pytest.raises(CorpusError, match="to be had"):
        text.evaluation(["One two."], ["one", "two"], set(), random.Random(0))


def test_homophones_names_and_rare_words_are_not_judged() -> None:
    alike = text.homophones(["night", "knight", "day", "the"], lambda word: word.removeprefix("k"))
    assert alike == {"night", "knight"}
    common = [*COMMON, "night", "the", "ann"]
    odd = ["The night came.", "So did Ann.", "The zymurgy.", "Half-made."]
    texts, used = text.evaluation([*sentences(), *odd], common, alike, random.Random(0))
    assert len(texts) == 200 and not used & {text.key(line) for line in odd}


def test_numbers_are_spelled() -> None:
    for number, words in {
        0: "zero",
        19: "nineteen",
        40: "forty",
        342: "three hundred and forty-two",
        1007: "one thousand and seven",
        90_210: "ninety thousand two hundred and ten",
    }.items():
        assert templates.spelled(number) == words


def test_made_up_lines_are_sentences() -> None:
    rng = random.Random(0)
    for make in (templates.number_line, templates.name_line, templates.letter_line):
        for _ in range(300):
            line = make(rng)
            assert line[0] == line[0].upper() and line[-1] in ".?!" and "  " not in line and "None" not in line
    assert templates.list_line(["cargo", "velvet"], rng) == "Cargo, velvet."
