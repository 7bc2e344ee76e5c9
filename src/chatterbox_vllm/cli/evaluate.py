"""`chatterbox-vllm evaluate`: is a candidate as good as the baseline?"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.model_options import model_options
from chatterbox_vllm.cli.options import DeviceOption, JsonOption, VoicesOption
from chatterbox_vllm.cli.outputs import beside, check_writable, write_json, write_text
from chatterbox_vllm.cli.texts import read_texts
from chatterbox_vllm.cli.wording import options_named
from chatterbox_vllm.errors import ChatterboxError, ConfigError, GenerationError
from chatterbox_vllm.settings import BY_KEYWORD, LANGUAGE

if TYPE_CHECKING:
    from chatterbox_vllm.evaluation.asr import Recogniser
    from chatterbox_vllm.evaluation.compare import Comparison, VoiceJudge
    from chatterbox_vllm.evaluation.gates import Threshold, Verdict
    from chatterbox_vllm.evaluation.plan import EvaluationPlan

_LIBRARIES = ("matplotlib", "pystoi")
_MOST_TROUBLES = 10
_SPEECH = (BY_KEYWORD["max_tokens"], BY_KEYWORD["diffusion_steps"], LANGUAGE)
_PLAN_OPTIONS = {
    "batch_size": "--max-batch-size",
    "diffusion_steps": "--diffusion-steps",
    "max_tokens": "--max-tokens",
    "repeats": "--repeats",
    "seed": "--seed",
}
_MODEL_OPTIONS = typer.Option(
    metavar="KEY=VALUE…",
    help="keywords of ChatterboxTTS.from_pretrained: dtype=float16 s3gen_dtype=float16 …",
    show_default=False,
)


@dataclass(frozen=True)
class _Outputs:
    """Where findings go.

    Raises:
        ConfigError, OutputError: they cannot go there.
    """

    json: Path | None
    report: Path | None
    listen: int
    keep: Path | None

    def __post_init__(self) -> None:
        files = [path for path in (self.json, self.report) if path is not None]
        for path in files:
            check_writable(path)
        if len({path.resolve() for path in files}) < len(files):
            raise ConfigError(f"--json and --report both name {files[0]}; give them a file each")
        if self.listen < 0:
            raise ConfigError(f"--listen must be 0 or more utterances, not {self.listen}")


# Errors name keywords where they speak of --baseline-options and --candidate-options.
@from_settings(_SPEECH, name_options=False)
def evaluate(
    *,
    baseline: Annotated[str, typer.Option(metavar="MODEL", help="as --model of say", show_default=False)],
    candidate: Annotated[str, typer.Option(metavar="MODEL", help="as --model of say", show_default=False)],
    baseline_options: Annotated[list[str] | None, _MODEL_OPTIONS] = None,
    candidate_options: Annotated[list[str] | None, _MODEL_OPTIONS] = None,
    device: DeviceOption = "auto",
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", "--text", metavar="FILE", help="texts to speak, one a line", show_default="eight of ours"
        ),
    ] = None,
    voice: VoicesOption = None,
    seed: Annotated[int, typer.Option(metavar="N", help="of the first utterance")] = 1,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", "--batch", metavar="N", help="utterances spoken at once")
    ] = 4,
    repeats: Annotated[int, typer.Option(metavar="N", help="runs: for speed the fastest counts, for failures all")] = 2,
    thresholds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with bounds", show_default="the package's")
    ] = None,
    asr: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="speech recogniser: tiny.en or base (Whisper; extras asr, judge), module:function of a 16 kHz "
            "wave, or a command that prints the text of a WAV file",
            show_default="none",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="whose enrolment nets compare speakers", show_default="the baseline's"),
    ] = None,
    json: JsonOption = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write an HTML page with plots and audio there", show_default=False),
    ] = None,
    listen: Annotated[int, typer.Option(metavar="N", help="utterances with audio in the page")] = 8,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep what both models did there", show_default=False)
    ] = None,
    given: Keywords,
) -> int:
    """Speak the same texts with two models and judge the second by the first.

    Exit status: 0 passed, 1 a gate failed, 2 it could not be judged.
    """
    # Whatever can be refused is refused before a model loads, and what is cheap to look at before what is not.
    options = (
        model_options("--baseline-options", baseline_options or ()),
        model_options("--candidate-options", candidate_options or ()),
    )
    outputs = _Outputs(json, report, listen, keep)
    texts = None if file is None else tuple(read_texts(file))
    language = given.pop("language", None)
    with _no_false_verdict():
        absent = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if absent:
            raise ConfigError(f"evaluate needs {', '.join(absent)}: in a checkout pip install '.[evaluate]'")
        from chatterbox_vllm.evaluation.asr import load_recogniser
        from chatterbox_vllm.evaluation.compare import VoiceJudge
        from chatterbox_vllm.evaluation.gates import load_thresholds
        from chatterbox_vllm.evaluation.plan import DEFAULT_TEXTS, EvaluationPlan
        from chatterbox_vllm.evaluation.preflight import check_models
        from chatterbox_vllm.families.registry import config_of, family_of
        from chatterbox_vllm.setup.models import resolve_model

        with options_named(_PLAN_OPTIONS):
            plan = EvaluationPlan(
                texts=texts or DEFAULT_TEXTS,
                clips=tuple(voice or ()),
                seed=seed,
                batch_size=max_batch_size,
                repeats=repeats,
                **given,
            )
        bounds = load_thresholds(thresholds)
        recogniser = None if asr is None else load_recogniser(asr)
        models = resolve_model(baseline), resolve_model(candidate)
        check_models(models, options)
        config = config_of(models[0])
        family = family_of(config.family)
        usual = family.defaults_of(config)
        # Guidance and steps are the baseline's own, since models differ in what they have.
        steps = given.get("diffusion_steps", usual.diffusion_steps)
        plan = replace(plan, cfg_weight=usual.cfg_weight, diffusion_steps=steps)
        if language is not None:
            plan = replace(plan, language=family.language(language))
        elif texts is None:
            plan = replace(plan, language=family.language_of_english)
        ears = VoiceJudge(models[0] if judge is None else resolve_model(judge))
        sides = tuple(map(_Side, ("baseline", "candidate"), (baseline, candidate), models, options))
        return _judged(sides, plan, device, outputs, ears, recogniser, bounds)


@dataclass(frozen=True)
class _Side:
    """One of the two models: the name of its part, what its user called it, its directory and its options."""

    part: str
    name: str
    model: Path
    options: dict[str, Any]


@contextmanager
def _no_false_verdict() -> Iterator[None]:
    """Within, no failure ends with a status that says that all is well, or that a gate failed."""
    try:
        yield
    except (ChatterboxError, BrokenPipeError):
        raise
    except SystemExit as error:
        # Whoever raised it may have meant 0, which says that all is well.
        raise GenerationError(f"a library ended the evaluation before its verdict (SystemExit: {error})") from error
    except Exception:
        # Python's own status would be 1, which says that a gate failed.
        traceback.print_exc()
        raise typer.Exit(2) from None


def _judged(
    sides: tuple[_Side, ...],
    plan: EvaluationPlan,
    device: str,
    outputs: _Outputs,
    ears: VoiceJudge,
    recogniser: Recogniser | None,
    bounds: dict[str, Threshold],
) -> int:
    """Let both models speak, compare them, and tell: the exit status."""
    from chatterbox_vllm.evaluation.collect import CollectionJob, collect_in_process
    from chatterbox_vllm.evaluation.collection import Collection
    from chatterbox_vllm.evaluation.compare import compare
    from chatterbox_vllm.evaluation.gates import judge
    from chatterbox_vllm.evaluation.page import as_html
    from chatterbox_vllm.evaluation.report import as_json

    with ExitStack() as stack:
        root = outputs.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatterbox-evaluate-")))
        baseline, candidate = (Collection.create(root / side.part) for side in sides)
        for collection, side in zip((baseline, candidate), sides, strict=True):
            home, other = collection.directory, None if collection is baseline else baseline.directory
            shown = " ".join(f"{key}={value}" for key, value in side.options.items())
            print(f"{side.part}: {side.model} {shown}", file=sys.stderr, flush=True)
            collect_in_process(CollectionJob(str(side.model), plan, home, other, device, side.options, side.name))
        comparison = compare(plan, baseline, candidate, ears, recogniser)
        verdict = judge(comparison.measurements, bounds)
        try:
            if outputs.json is not None:
                write_json(outputs.json, as_json(plan, comparison, verdict))
            if outputs.report is not None:
                write_text(outputs.report, as_html(plan, comparison, verdict, baseline, candidate, outputs.listen))
        finally:  # a full disk shall not take the figures along
            _print(comparison, verdict, outputs.json)
    return verdict.exit_status


def _print(comparison: Comparison, verdict: Verdict, json: Path | None) -> None:
    """What went wrong on standard error; the gates on standard output, the verdict last."""
    from chatterbox_vllm.evaluation.gates import Status
    from chatterbox_vllm.evaluation.report import line, troubles

    found, out = troubles(comparison), beside(json)
    for trouble in found[:_MOST_TROUBLES]:
        case = "" if trouble.case is None else f", case {trouble.case}"
        print(f"{trouble.model}{case}: {' '.join(trouble.what.split())}", file=sys.stderr)
    if len(found) > _MOST_TROUBLES:
        print(f"and {len(found) - _MOST_TROUBLES} more, see --report or --json", file=sys.stderr)
    for judgement in verdict.judgements:
        print(line(judgement), file=out)
    failed = ", ".join(j.name for j in verdict.judgements if j.status is Status.FAILED)
    missing = f"{', '.join(verdict.missing)} could not run" if verdict.missing else ""
    reasons = "; ".join(reason for reason in (failed, missing) if reason)
    print(f"{verdict.word}: {reasons}" if reasons else verdict.word, file=out)
