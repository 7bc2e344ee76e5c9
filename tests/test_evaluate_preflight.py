"""What `chatterbox-vllm evaluate` refuses before it loads a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip("matplotlib")
pytest.importorskip("pystoi")

from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.evaluation.compare import VoiceJudge
from chatterbox_vllm.evaluation.preflight import check_models


@pytest.fixture
def copy(babbler: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(babbler, tmp_path / "model"))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(job: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("chatterbox_vllm.evaluation.collect.collect_in_process", collect)


def refused(baseline: Path, candidate: Path, capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line that says why."""
    assert main(["evaluate", "--baseline", str(baseline), "--candidate", str(candidate), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "language"),
    [(["--language", "English"], "en"), (["--language", "en-GB"], "en"), ([], "en"), (["--text", "FILE"], None)],
)
def test_a_language_is_given_as_everywhere(
    babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], language: str | None
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Good morning.")
    plans: list[Any] = []

    def judged(sides: Any, plan: Any, *others: Any) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr("chatterbox_vllm.cli.evaluate._judged", judged)
    words = [str(file) if word == "FILE" else word for word in words]
    assert main(["evaluate", "--baseline", str(babbler), "--candidate", str(babbler), *words]) == 0
    assert [plan.language for plan in plans] == [language]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--baseline-options", "dtype"], "KEY=VALUE"),
        (["--candidate-options", "a=1", "a=2"], "twice"),
        (["--text", "none.txt"], "none.txt"),
        (["--voice", "none.wav"], "none.wav"),
        (["--batch", "0"], "--max-batch-size"),
        (["--language", "de"], "does not speak 'de'"),
        (["--thresholds", "none.toml"], "none.toml"),
        (["--asr", "no.such:thing"], "no.such"),
        (["--asr", ""], "recogniser"),
        (["--asr", "no-such-program --fast"], "no-such-program"),
        (["--asr", "tests.test_evaluate:TEXTS"], "not a function"),
        (["--report", "none/out.html"], "none"),
        (["--candidate-options", "device=cpu"], "--device"),
        (["--candidate-options", "model=babble"], "--candidate"),
        (["--candidate-options", "self=x"], "'self'"),
        (["--candidate-options", "dtyp=float16"], "'dtyp'"),
        (["--candidate-options", "dtype=5"], "float16"),
        (["--candidate-options", "quantization=nf4"], "quantization_method"),
        (["--candidate-options", "quantization_method=bnb-4bit"], "use_quantization=True"),
        (["--candidate-options", "use_quantization=true", "quantization_method=awq"], "awq"),
        (["--candidate-options", "cuda_graphs=7"], "true or false"),
        (["--candidate-options", "max_model_len=abc"], "a whole number"),
        (["--candidate-options", "max_model_len=0"], "positive"),
        (["--candidate-options", "gpu_memory_utilization=2"], "at most 1"),
        (["--candidate-options", "tier=5"], "tier"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_model_loads(
    babbler: Path, never: None, words: list[str], named: str, capsys: pytest.CaptureFixture
) -> None:
    assert named in refused(babbler, babbler, capsys, *words)


@pytest.mark.parametrize("file", ["t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json"])
def test_a_directory_without_a_file_is_refused(
    babbler: Path, copy: Path, never: None, file: str, capsys: pytest.CaptureFixture
) -> None:
    (copy / file).unlink()
    assert file in refused(babbler, copy, capsys)


def change(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_models_that_cannot_have_the_same_tokens_are_refused(babbler: Path, copy: Path) -> None:
    check_models((babbler, copy), ({}, {"fallback": True, "max_model_len": 512, "tier": 4}))
    sizes = json.loads((copy / "config.json").read_text())["t3"]
    (copy / "conds.pt").unlink()
    change(copy, t3={**sizes, "speech_prompt_tokens": 7})
    with pytest.raises(ConfigError, match="speech prompt is 7"):
        check_models((babbler, copy), ({}, {}))


def test_a_model_of_another_family_or_layout_is_refused(
    babbler: Path, copy: Path, never: None, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(babbler / "s3gen.safetensors", copy / "ve.safetensors")
    assert "ve.safetensors" in refused(babbler, copy, capsys)
    change(copy, family="klingon")
    assert "'klingon'" in refused(babbler, copy, capsys)


def test_a_judge_hears_with_nets_that_are_not_quantized(
    babbler: Path, copy: Path, never: None, capsys: pytest.CaptureFixture
) -> None:
    change(copy, quantized={"voice_encoder": {"method": "bnb-8bit"}})
    with pytest.raises(ConfigError, match="--judge MODEL"):
        VoiceJudge(copy)
    assert "--judge MODEL" in refused(babbler, babbler, capsys, "--judge", str(copy))
