"""Thresholds and verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.evaluation.gates import KINDS, Measurement, Status, Threshold, judge, load_thresholds


def test_every_gate_has_a_threshold_in_the_package() -> None:
    thresholds = load_thresholds()
    assert set(thresholds) == set(KINDS)
    assert thresholds["spectral_distortion"].bound == 15 and thresholds["mel_distance"].bound == 0.2
    assert thresholds["speaker_similarity"].bound == 0.9 and thresholds["speed"].bound == 0.85
    assert not thresholds["word_errors"].required and thresholds["t3_kl"].required


def test_bounds_are_the_last_values_that_pass() -> None:
    thresholds = {"t3_kl": Threshold(0.1), "t3_top1": Threshold(0.8)}

    def statuses(kl: float, top1: float) -> list[Status]:
        verdict = judge({"t3_kl": Measurement(kl), "t3_top1": Measurement(top1)}, thresholds)
        return [j.status for j in verdict.judgements]

    assert statuses(0.1, 0.8) == [Status.PASSED, Status.PASSED]
    assert statuses(0.11, 0.79) == [Status.FAILED, Status.FAILED]
    assert statuses(float("inf"), float("nan")) == [Status.FAILED, Status.FAILED]


def test_what_did_not_run_never_passes() -> None:
    thresholds = {"t3_kl": Threshold(0.1), "word_errors": Threshold(0.1, required=False)}
    some = judge({"t3_kl": Measurement(0.0)}, thresholds)
    assert [j.status for j in some.judgements] == [Status.PASSED, Status.NOT_RUN]
    assert some.exit_status == 0 and some.word == "passed" and some.missing == ()
    none = judge({"t3_kl": Measurement(None, "no tokens"), "word_errors": Measurement(0.0)}, thresholds)
    assert none.exit_status == 2 and none.word == "incomplete" and none.missing == ("t3_kl",)
    both = judge({"word_errors": Measurement(0.5)}, thresholds)
    assert both.exit_status == 1 and both.word == "failed"


def test_a_file_replaces_single_entries(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[pesq]\nminimum = 2\n[word_errors]\nrequired = true\n")
    own, shipped = load_thresholds(path), load_thresholds()
    assert own["pesq"] == Threshold(2.0, required=False)
    assert own["word_errors"] == Threshold(shipped["word_errors"].bound, True)
    del own["pesq"], own["word_errors"], shipped["pesq"], shipped["word_errors"]
    assert own == shipped


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[mos]\nminimum = 1", "mos"),
        ("[pesq]\nmaximum = 1", "minimum"),
        ("[pesq]\nminimum = 'high'", "high"),
        ("[pesq]\nminimum = nan", "nan"),
        (f"[pesq]\nminimum = 1{'0' * 400}", "valid number, found 1000"),
        (f"[pesq]\nminimum = 1{'0' * 5000}", "digits"),
        ("[pesq]\nrequired = 1", "required"),
        ("pesq = 3", "pesq"),
        ("[pesq", "TOML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_thresholds(path)
    assert "own.toml" in str(caught.value)
    with pytest.raises(ConfigError, match="none.toml"):
        load_thresholds(tmp_path / "none.toml")
