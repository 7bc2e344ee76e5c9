"""`chatterbox-vllm evaluate` on the babbling model: the baseline passes against itself, damaged candidates do not."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")
pytest.importorskip("matplotlib")
pytest.importorskip("pystoi")

from safetensors.torch import load_file, save_file

from chatterbox_vllm.cli import main
from chatterbox_vllm.cli.model_options import model_options
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.evaluation.collect import CollectionJob, collect, collect_in_process
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.compare import Comparison, VoiceJudge, compare
from chatterbox_vllm.evaluation.gates import Status, judge, load_thresholds
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from tests.made_up_collections import POSITIONS, Ears, made_up, silence
from tests.test_page import Page, assert_sound

TEXTS = ("Good morning.", "It rains a little today, and tomorrow too.")
PLAN = EvaluationPlan(texts=TEXTS, diffusion_steps=4, repeats=1)
# What other programs do to this machine is not what these tests are about.
LOOSE = "[speed]\nminimum = 0.001\n[host_memory]\nmaximum = 2\n"
T3_GATES = {"t3_kl", "t3_top1"}
S3GEN_GATES = {"mel_distance", "pitch_error", "spectral_distortion", "stoi"}
if importlib.util.find_spec("pesq") is not None:
    S3GEN_GATES.add("pesq")
SPEECH_GATES = {"speech_sanity", "speech_duration", "speech_spectrum", "speech_speaker"}

Damage = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def thresholds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thresholds") / "loose.toml"
    path.write_text(LOOSE)
    return path


@pytest.fixture(scope="module")
def baseline(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluation") / "baseline"
    collect(CollectionJob(str(babbler), PLAN, directory, device="cpu"))
    return directory


@pytest.fixture(scope="module")
def ears(babbler: Path) -> VoiceJudge:
    return VoiceJudge(babbler)


def damaged(babbler: Path, directory: Path, file: str, damage: Damage) -> Path:
    shutil.copytree(babbler, directory)
    tensors = load_file(directory / file)
    damage(tensors)
    save_file(tensors, directory / file)
    return directory


def shuffle(prefix: str) -> Damage:
    """All matrices of one layer, each with its own values in another order."""

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        keys = [key for key, tensor in tensors.items() if key.startswith(prefix) and tensor.dim() == 2]
        assert keys
        for key in keys:
            flat = tensors[key].flatten()
            tensors[key] = flat[torch.randperm(len(flat), generator=generator)].view_as(tensors[key]).contiguous()

    return damage


def flow_to_two_bits(tensors: dict[str, torch.Tensor]) -> None:
    """The flow's linear weights on four levels a row."""
    for key, tensor in tensors.items():
        if key.startswith("flow.") and key.endswith(".weight") and tensor.dim() == 2 and "embedding" not in key:
            step = tensor.abs().amax(1, keepdim=True) / 1.5
            tensors[key] = ((tensor / step - 0.5).round().clamp(-2, 1) + 0.5) * step


def against(baseline: Path, model: Path, output: Path, ears: VoiceJudge) -> Comparison:
    collect(CollectionJob(str(model), PLAN, output, baseline, device="cpu"))
    return compare(PLAN, Collection(baseline), Collection(output), ears)


def failed(comparison: Comparison, thresholds: Path) -> set[str]:
    verdict = judge(comparison.measurements, load_thresholds(thresholds))
    assert verdict.missing == ()
    assert verdict.exit_status == (1 if any(j.status is Status.FAILED for j in verdict.judgements) else 0)
    return {j.name for j in verdict.judgements if j.status is Status.FAILED}


def test_a_damaged_t3_layer_fails_the_gates_of_t3_and_no_other(
    babbler: Path, baseline: Path, tmp_path: Path, ears: VoiceJudge, thresholds: Path
) -> None:
    model = damaged(babbler, tmp_path / "model", "t3_cfg.safetensors", shuffle("tfmr.layers.2."))
    assert failed(against(baseline, model, tmp_path / "out", ears), thresholds) - {"failures"} == T3_GATES


@pytest.mark.parametrize(
    "damage", [shuffle("flow.decoder.estimator.mid_blocks.0."), flow_to_two_bits], ids=["shuffled layer", "two bits"]
)
def test_a_damaged_flow_fails_the_gates_of_s3gen_and_no_other(
    babbler: Path, baseline: Path, tmp_path: Path, ears: VoiceJudge, thresholds: Path, damage: Damage
) -> None:
    model = damaged(babbler, tmp_path / "model", "s3gen.safetensors", damage)
    assert failed(against(baseline, model, tmp_path / "out", ears), thresholds) == S3GEN_GATES


def test_a_damaged_voice_encoder_fails_enrolment(
    babbler: Path, baseline: Path, tmp_path: Path, ears: VoiceJudge, thresholds: Path
) -> None:
    model = damaged(babbler, tmp_path / "model", "ve.safetensors", shuffle("proj."))
    assert failed(against(baseline, model, tmp_path / "out", ears), thresholds) == {"enrolment_speaker"}


def white(wave: torch.Tensor) -> torch.Tensor:
    """White noise as long and as loud as the wave."""
    return torch.randn(wave.shape, generator=torch.Generator().manual_seed(1)) * wave.square().mean().sqrt()


def test_a_candidate_whose_vocoder_makes_noise_fails(
    babbler: Path, baseline: Path, tmp_path: Path, ears: VoiceJudge, thresholds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = HiFT.decode
    monkeypatch.setattr(HiFT, "decode", lambda *given: white(decode(*given)))
    found = failed(against(baseline, babbler, tmp_path / "out", ears), thresholds)
    assert {"speech_sanity", "spectral_distortion", "stoi"} <= found and not found & (T3_GATES | {"mel_distance"})


def test_a_candidate_whose_stage_makes_noise_fails_s3gens_gates_too(
    babbler: Path, baseline: Path, tmp_path: Path, ears: VoiceJudge, thresholds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go through the stage that serves: a model that would do right beside it does not help."""
    run = S3GenStage.run
    monkeypatch.setattr(S3GenStage, "run", lambda *given: [white(wave) for wave in run(*given)])
    found = failed(against(baseline, babbler, tmp_path / "out", ears), thresholds)
    assert {"speech_sanity", "spectral_distortion", "stoi"} <= found and not found & T3_GATES


@pytest.mark.parametrize(
    ("change", "gates"),
    [
        (lambda wave: wave, set()),
        (lambda wave: wave + 0.003 * white(torch.from_numpy(wave)).numpy(), set()),  # as half precision makes
        (lambda wave: 0 * wave, {"speech_sanity", "speech_spectrum", "speech_speaker"}),
        (lambda wave: white(torch.from_numpy(wave)).numpy(), {"speech_sanity"}),
        (lambda wave: np.tile(wave[2400:9600], 99)[: len(wave)], {"speech_sanity"}),
        (lambda wave: np.clip(10 * wave, -0.99, 0.99), {"speech_sanity", "speech_spectrum"}),
        (lambda wave: 0.2 * np.sin(np.arange(len(wave)) / 32), {"speech_sanity", "speech_spectrum"}),
        (lambda wave: np.tile(wave, 9), {"speech_sanity", "speech_duration"}),
        (lambda wave: wave[:4800], {"speech_sanity", "speech_duration", "speech_speaker"}),
    ],
    ids=["itself", "half precision", "silence", "noise", "loop", "clipped", "hum", "too long", "too short"],
)
def test_own_speech(
    baseline: Path, tmp_path: Path, ears: VoiceJudge, change: Callable[[np.ndarray], np.ndarray], gates: set[str]
) -> None:
    candidate = Collection(shutil.copytree(baseline, tmp_path / "candidate"))
    for case in PLAN.cases:
        wave = candidate.load("speech", case.index)
        assert wave is not None
        candidate.save("speech", case.index, change(wave))
    comparison = compare(PLAN, Collection(baseline), candidate, ears)
    verdict = judge(comparison.measurements, load_thresholds())
    found = {j.name for j in verdict.judgements if j.status is Status.FAILED}
    # Which voice is in a sound that is none is a matter of the babbling random nets.
    assert found - {"speech_speaker"} == gates - {"speech_speaker"} and gates <= found
    assert all(
        (case.speech is not None and case.speech.candidate_fault is not None) == bool(gates)
        for case in comparison.cases
    )


def in_one_new_process(job: CollectionJob) -> RunFacts:
    """One of the two is enough to see that it works."""
    return collect(job) if job.baseline is None else collect_in_process(job)


def test_the_command_passes_a_model_against_itself_and_reports(
    babbler: Path, tmp_path: Path, thresholds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("chatterbox_vllm.evaluation.collect.collect_in_process", in_one_new_process)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    command: list[Any] = ["evaluate", "--baseline", babbler, "--candidate", babbler, "--device", "cpu", "--text", texts]
    command += ["--repeats", 1, "--steps", 4, "--thresholds", thresholds, "--keep", tmp_path / "kept"]
    command += ["--candidate-options", "max_model_len=1536", "--asr", "tests.test_evaluate:parrot"]
    command += ["--json", tmp_path / "out.json", "--report", tmp_path / "out.html", "--listen", 1]
    assert main([str(word) for word in command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "passed" and sum(line.startswith("passed ") for line in lines) == 19

    found = json.loads((tmp_path / "out.json").read_text())
    assert found["verdict"] == "passed" and found["candidate"]["options"] == {"max_model_len": 1536}
    # Another model length puts the prompt elsewhere, which is a matter of rounding.
    assert found["gates"]["t3_kl"]["value"] < 1e-8 and found["gates"]["t3_top1"]["value"] == 1
    assert found["gates"]["t3_kl_late"]["status"] == found["gates"]["device_memory"]["status"] == "not run"
    # The parrot's words are the first text's: all right there, all wrong in the second.
    assert found["gates"]["word_errors"]["status"] == "passed"
    assert [case["word_errors"] for case in found["cases"]] == [[0, 0, 2], [8, 8, 8]]
    assert all(case["positions"] == len(case["kl_by_position"]) > 20 for case in found["cases"])
    runs = [found[name] for name in ("baseline", "candidate")]
    assert all(run["peak_host_bytes"] > 100 << 20 and run["audio_seconds"] > 1 for run in runs)
    assert all(case["baseline"]["speech_tokens"] == case["candidate"]["speech_tokens"] for case in found["cases"])
    assert_sound(Page((tmp_path / "out.html").read_text()), players=4)

    # What is kept is whole, and is not overwritten.
    kept = Collection(tmp_path / "kept" / "baseline")
    mel, wave = kept.load("mel", 0), kept.load("wave", 0)
    assert mel is not None and wave is not None and len(wave) == 480 * len(mel)
    assert main([str(word) for word in command]) == 2
    assert "not empty" in capsys.readouterr().err


def parrot(wave: np.ndarray) -> str:
    """A recogniser that hears the same in everything."""
    assert wave.dtype == np.float32 and len(wave) > 1000
    return "good morning"


class Command:
    """`evaluate` of collections that are made up; `damage` befalls the candidate's."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.options: list[Any] = ["--text", tmp_path / "texts.txt", "--thresholds", tmp_path / "own.toml"]
        self.collected: list[str] = []
        (tmp_path / "texts.txt").write_text("\ufeffGood morning.\n", encoding="utf-8")
        (tmp_path / "own.toml").write_text("[pesq]\nrequired = false\n")
        monkeypatch.setattr("chatterbox_vllm.evaluation.collect.collect_in_process", self._collect)
        monkeypatch.setattr("chatterbox_vllm.evaluation.compare.VoiceJudge", lambda directory: Ears())
        monkeypatch.setattr("chatterbox_vllm.setup.models.resolve_model", Path)
        monkeypatch.setattr("chatterbox_vllm.evaluation.preflight.check_models", lambda directories, options: None)

    def damage(self, collection: Collection) -> None:
        pass

    def _collect(self, job: CollectionJob) -> None:
        assert [case.text for case in job.plan.cases] == ["Good morning."]
        self.collected.append(job.name)
        collection = made_up(job.output, job.plan, job.name)
        if job.baseline is not None:
            self.damage(collection)

    def __call__(self, *more: Any) -> int:
        words = ["evaluate", "--baseline", "large", "--candidate", "small", *self.options, *more]
        return main([str(word) for word in words])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


def test_the_verdict_is_the_exit_status_and_the_last_line_says_why(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert command() == 0 and capsys.readouterr().out.endswith("\npassed\n")

    def other_thoughts(collection: Collection) -> None:
        collection.save("logits", 0, np.zeros((POSITIONS, 16)))

    command.damage = other_thoughts  # type: ignore[method-assign]
    assert command() == 1 and capsys.readouterr().out.endswith("\nfailed: t3_kl, t3_top1\n")

    def nothing(collection: Collection) -> None:
        for each in (collection, Collection(collection.directory.parent / "baseline")):
            silence(each, 0, "no room\non the card")

    command.damage = nothing  # type: ignore[method-assign]
    assert command() == 2
    output = capsys.readouterr()
    assert re.search(r"\nincomplete: t3_kl, .*, speed could not run\n$", output.out)
    assert "candidate, case 0: not spoken: no room on the card\n" in output.err

    def crash(*arguments: Any) -> None:
        raise ZeroDivisionError("by chance")

    # Python would end with 1 here, as if a gate had failed.
    monkeypatch.setattr("chatterbox_vllm.evaluation.compare.compare", crash)
    assert command() == 2 and "ZeroDivisionError: by chance" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_the_verdict_on_the_terminal(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "report.html"

    def in_the_way(collection: Collection) -> None:
        report.mkdir()

    command.damage = in_the_way  # type: ignore[method-assign]
    assert command("--report", report) == 2
    output = capsys.readouterr()
    assert output.out.endswith("\npassed\n") and "report.html: cannot be written" in output.err


def test_outputs_are_refused_before_a_model_is_collected(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "kept" / "candidate" / "old").mkdir(parents=True)
    for words, named in (
        (["--keep", tmp_path / "kept"], "candidate is not empty"),
        (["--keep", tmp_path / "texts.txt"], "texts.txt"),
        (["--report", tmp_path], "is a directory"),
        (["--json", tmp_path / "out", "--report", tmp_path / "out"], "a file each"),
        (["--listen", -1], "--listen"),
        (["--voice", __file__, __file__], "named twice"),
    ):
        assert command(*words) == 2
        assert named in capsys.readouterr().err
    assert command.collected == []
    assert command("--keep", tmp_path / "new", "--json", tmp_path / "out.json") == 0
    assert command.collected == ["large", "small"]
    assert json.loads((tmp_path / "out.json").read_text())["candidate"]["name"] == "small"
    assert Collection(tmp_path / "new" / "candidate").facts().name == "small"


def test_a_process_that_fails_says_why(babbler: Path, tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"status 2 .*'tpu'"):
        collect_in_process(CollectionJob(str(babbler), PLAN, tmp_path / "a", None, "tpu"))
    with pytest.raises(ConfigError, match="'bits'"):
        collect(CollectionJob(str(babbler), PLAN, tmp_path / "b", None, "cpu", {"bits": 3}))


def test_a_candidate_that_makes_nothing_gets_the_worst_of_every_figure(
    baseline: Path, tmp_path: Path, ears: VoiceJudge
) -> None:
    candidate = Collection.create(tmp_path / "empty")
    facts = Collection(baseline).facts()
    for case in facts.cases:
        case.error, case.finish_reason, case.seconds = "broken", None, 0.0
    facts.enrolments = dict.fromkeys(facts.enrolments, "broken")
    candidate.write_facts(facts)
    found = compare(PLAN, Collection(baseline), candidate, ears, lambda wave: "good morning")
    verdict = judge(found.measurements, load_thresholds())
    passed = {j.name for j in verdict.judgements if j.status is Status.PASSED}
    assert passed == {"host_memory"} and verdict.exit_status == 1
    assert found.measurements["word_errors"].value == pytest.approx(0.2)  # ten of ten words wrong, eight before


def test_long_texts_are_evaluated_piece_by_piece() -> None:
    plan = EvaluationPlan(seed=7)
    cases = plan.cases
    assert [case.seed for case in cases] == list(range(7, 7 + len(cases)))
    assert max(len(case.text) for case in cases) > 250 and all(len(case.text) <= 300 for case in cases)


def test_options_of_a_model() -> None:
    words = ["use_quantization=true", "quantization_method=bnb-4bit", "max_model_len=512", "tier=4", "dtype=None"]
    words += ["gpu_memory_utilization=0.5", "quantize_s3gen=true"]
    expected = {"use_quantization": True, "quantization_method": "bnb-4bit", "max_model_len": 512, "tier": 4}
    expected |= {"dtype": None, "gpu_memory_utilization": 0.5, "quantize_s3gen": True}
    assert model_options("--candidate-options", words) == expected
