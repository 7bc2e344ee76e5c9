"""The report's page and lines: whole, escaped, and true to what failed."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("matplotlib")
pytest.importorskip("pystoi")

from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.evaluation.collection import Collection
from chatterbox_vllm.evaluation.compare import Comparison, compare
from chatterbox_vllm.evaluation.gates import Judgement, Measurement, Status, Threshold, Verdict, judge, load_thresholds
from chatterbox_vllm.evaluation.page import as_html
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.evaluation.report import as_json, line, summary, value_and_bound
from tests.made_up_collections import FRAMES, Ears, made_up, silence

EVIL = """<script>alert('x')</script> & <img src="http://x/y">"""
PLAN = EvaluationPlan(texts=("Good morning.", "مرحبا", EVIL))
_VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A page's elements and words; fails where an end tag does not belong to the last open one."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_sound(page: Page, players: int) -> None:
    """What holds for every report."""
    assert page.elements[0] == ("html", {"lang": "en"})
    metas = page.all("meta")
    assert any(meta.get("name") == "viewport" for meta in metas)
    assert any(meta.get("content", "").startswith("default-src 'none'") for meta in metas)
    addresses = [value for _, given in page.elements for key, value in given.items() if re.search("src|href", key)]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in page.all("svg"))
    sounds = page.all("audio")
    assert len(sounds) == players and len({sound["aria-label"] for sound in sounds}) == players
    assert all("controls" in sound for sound in sounds)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Collection, Collection]:
    return made_up(tmp_path / "baseline", PLAN), made_up(tmp_path / "candidate", PLAN, "smaller")


def measured(pair: tuple[Collection, Collection]) -> tuple[Comparison, Verdict]:
    comparison = compare(PLAN, *pair, Ears())  # type: ignore[arg-type]
    return comparison, judge(comparison.measurements, load_thresholds())


def rendered(pair: tuple[Collection, Collection], listen: int = 1) -> Page:
    comparison, verdict = measured(pair)
    json.dumps(as_json(PLAN, comparison, verdict), allow_nan=False)
    return Page(as_html(PLAN, comparison, verdict, *pair, listen))


def changed(collection: Collection, **values: Any) -> None:
    collection.write_facts(dataclasses.replace(collection.facts(), **values))


def test_a_page_is_whole_and_says_the_verdict_first(pair: tuple[Collection, Collection]) -> None:
    page = rendered(pair, listen=3)
    assert_sound(page, players=12)
    assert page.words.index("Evaluation: passed") < page.words.index("of 22 gates passed") < page.words.index("t3_kl")
    assert "What went wrong" not in page.words and len(page.all("svg")) == 3 + 3 * 3
    # Every player holds what the model said.
    for sound in page.all("audio"):
        data = base64.b64decode(sound["src"].removeprefix("data:audio/flac;base64,"), validate=True)
        assert soundfile.info(io.BytesIO(data)).frames == FRAMES * 480


def test_the_worst_cases_are_to_be_heard_and_linked(pair: tuple[Collection, Collection]) -> None:
    mel = pair[1].load("mel", 1)
    assert mel is not None
    pair[1].save("mel", 1, mel + 0.01)
    page = rendered(pair)
    assert_sound(page, players=4)
    assert [link["href"] for link in page.all("a")] == ["#case-1"] and "The 1 of 3 cases" in page.words
    assert "Listening" not in rendered(pair, listen=0).words


def test_nothing_that_users_or_errors_say_becomes_markup(pair: tuple[Collection, Collection]) -> None:
    silence(pair[1], 0, EVIL)
    changed(pair[1], name=EVIL, options={EVIL: EVIL}, machine={EVIL: EVIL}, enrolments={EVIL: EVIL})
    page = rendered(pair)
    assert_sound(page, players=2)
    assert page.all("script") == page.all("img") == []
    # The text, the title, the model with its option (thrice), the machine (twice), the clip and its error, and the
    # case's errors in a table and by two players.
    assert page.words.count(EVIL) >= 13


def test_failures_are_told_where_they_happened(pair: tuple[Collection, Collection]) -> None:
    silence(pair[0], 0, "no room on the card")
    silence(pair[1], 1, "not finite")
    facts = pair[1].facts()
    facts.cases[2].finish_reason = "length"
    pair[1].write_facts(facts)
    comparison, verdict = measured(pair)
    # The baseline's failure says nothing of the candidate; the candidate's own is the worst there is.
    assert comparison.cases[0].mel_distance is None and comparison.cases[1].mel_distance == float("inf")
    assert verdict.exit_status == 1
    page = rendered(pair, listen=3)
    assert_sound(page, players=8)
    for words in ("no room on the card", "not finite", "cut off after 30 speech tokens (length)", "no audio: not fin"):
        assert words in page.words
    assert "30 positions with an infinite divergence" in page.words


def test_a_candidate_of_another_length_is_the_worst_and_still_shown(pair: tuple[Collection, Collection]) -> None:
    for kind in ("mel", "wave", "logits"):
        array = pair[1].load(kind, 0)
        assert array is not None
        pair[1].save(kind, 0, array[:-1])
    comparison, _ = measured(pair)
    assert comparison.cases[0].stoi == 0 and np.isinf(comparison.cases[0].kl).all()
    assert "no two mels" in rendered(pair).words


def test_a_baseline_that_makes_nothing_leaves_the_evaluation_incomplete(pair: tuple[Collection, Collection]) -> None:
    for collection in pair:
        for index in range(3):
            silence(collection, index, "broken")
        changed(collection, enrolments={})
    _, verdict = measured(pair)
    assert verdict.exit_status == 2 and {"t3_kl", "stoi", "speed", "enrolment_speaker"} <= set(verdict.missing)
    page = rendered(pair)
    assert_sound(page, players=0)
    assert "Evaluation: incomplete" in page.words and "The baseline said nothing." in page.words


def test_mels_that_are_not_finite_are_drawn_or_left_out(pair: tuple[Collection, Collection]) -> None:
    mel = pair[1].load("mel", 0)
    assert mel is not None
    mel[3] = np.inf
    pair[1].save("mel", 0, mel)
    pair[1].save("mel", 1, mel * np.nan)
    assert len(rendered(pair, listen=3).all("svg")) == 3 + 2 * 3


def test_collections_of_another_plan_or_version_are_refused(pair: tuple[Collection, Collection]) -> None:
    changed(pair[1], cases=pair[1].facts().cases[:2])
    with pytest.raises(CheckpointError, match="candidate was not collected with this plan"):
        measured(pair)
    (pair[1].directory / "facts.json").write_text('{"model": "x", "cases": []}')
    with pytest.raises(CheckpointError, match="collect it anew"):
        measured(pair)


def judged(value: float | None, bound: float = 0.85) -> Judgement:
    (judgement,) = judge({"speed": Measurement(value, "because")}, {"speed": Threshold(bound)}).judgements
    return judgement


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.8, "0.8"),
        (0.85, "0.85"),
        (0.8499999, "0.8499999"),
        (0.85000000001, "0.85000000001"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_a_figure_is_never_rounded_onto_its_bound(value: float, shown: str) -> None:
    assert value_and_bound(judged(value)) == (shown, "0.85")
    assert shown in line(judged(value))


def test_a_bound_has_as_many_digits_as_tell_it_from_the_value() -> None:
    assert value_and_bound(judged(0.12345695, bound=0.1234569)) == ("0.12345695", "0.1234569")
    assert value_and_bound(judged(0.1234569, bound=0.12345695)) == ("0.1234569", "0.12345695")
    assert value_and_bound(judged(0.1234569, bound=0.1234569)) == ("0.1235", "0.1235")
    assert value_and_bound(judged(None, bound=0.1234569)) == (None, "0.123457")


def test_lines_and_summary() -> None:
    assert line(judged(0.8)) == "failed   speed                0.8 (>= 0.85 ratio; because)"
    assert line(judged(None)) == "not run  speed                because"
    optional = Judgement("pesq", Status.NOT_RUN, Measurement(None), Threshold(3.0, required=False))
    verdict = Verdict((judged(0.9), judged(0.8), judged(None), optional))
    assert summary(verdict) == (
        "1 of 4 gates passed. Failed: speed. Required, but could not run: speed. Not run and not required: pesq."
    )
