"""`chatterbox-vllm evaluate`: is a candidate as good as the baseline?"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.cli.outputs import check_writable, write_json, write_text
from chatterbox_vllm.errors import ChatterboxError, ConfigError, GenerationError

if TYPE_CHECKING:
    from chatterbox_vllm.evaluation.compare import Comparison
    from chatterbox_vllm.evaluation.gates import Verdict
    from chatterbox_vllm.evaluation.plan import EvaluationPlan

_LIBRARIES = ("matplotlib", "pystoi")
_WORDS = {"true": True, "false": False, "none": None}
_MOST_TROUBLES = 10


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=run)
    parser.description = (
        "Speak the same texts with two models and judge the second by the first. Exit status: 0 passed, 1 a gate "
        "failed, 2 it could not be judged."
    )
    parser.add_argument("--baseline", metavar="MODEL", required=True, help="as --model of `say`")
    parser.add_argument("--candidate", metavar="MODEL", required=True, help="likewise")
    for name in ("baseline", "candidate"):
        parser.add_argument(
            f"--{name}-options",
            nargs="+",
            metavar="KEY=VALUE",
            default=[],
            help="parameters of ChatterboxTTS.from_pretrained: dtype=float16 s3gen_dtype=float16 …",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="texts to speak, one a line (default: eight of ours)")
    parser.add_argument(
        "--voice",
        type=Path,
        nargs="+",
        metavar="CLIP",
        default=[],
        help="reference clips (default: the built-in)",
    )
    parser.add_argument("--seed", type=int, metavar="N", default=1, help="of the first utterance (default: 1)")
    parser.add_argument("--batch", type=int, metavar="N", default=4, help="utterances spoken at once (default: 4)")
    parser.add_argument(
        "--repeats", type=int, metavar="N", default=2, help="runs: for speed the fastest counts, for failures all"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", default=1000, help="most speech tokens an utterance")
    parser.add_argument("--steps", type=int, metavar="N", default=10, help="diffusion steps")
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="TOML with bounds in place of the package's")
    parser.add_argument(
        "--asr",
        metavar="NAME",
        help="speech recogniser: module:function of a 16 kHz wave, or a command that prints the text of a WAV file",
    )
    parser.add_argument(
        "--judge", metavar="MODEL", help="whose enrolment nets compare speakers (default: the baseline's)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with plots and audio there")
    parser.add_argument("--listen", type=int, metavar="N", default=8, help="utterances with audio in the page")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what both models did there")


def run(options: argparse.Namespace) -> int:
    try:
        return _evaluate(options)
    except (ChatterboxError, BrokenPipeError):
        raise
    except SystemExit as error:
        # Whoever raised it may have meant 0, which says that all is well.
        raise GenerationError(f"a library ended the evaluation before its verdict (SystemExit: {error})") from error
    except Exception:
        # Python's own status would be 1, which says that a gate failed.
        traceback.print_exc()
        return 2


def _evaluate(options: argparse.Namespace) -> int:
    absent = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"evaluate needs {', '.join(absent)}: in a checkout pip install '.[evaluate]'")

    from chatterbox_vllm.evaluation.asr import load_recogniser
    from chatterbox_vllm.evaluation.collect import CollectionJob, collect_in_process
    from chatterbox_vllm.evaluation.collection import Collection
    from chatterbox_vllm.evaluation.compare import VoiceJudge, compare
    from chatterbox_vllm.evaluation.gates import judge, load_thresholds
    from chatterbox_vllm.evaluation.page import as_html
    from chatterbox_vllm.evaluation.preflight import check_models
    from chatterbox_vllm.evaluation.report import as_json
    from chatterbox_vllm.setup.models import resolve_model

    # Whatever can be refused is refused before a model loads.
    plan = _plan(options)
    thresholds = load_thresholds(options.thresholds)
    recogniser = None if options.asr is None else load_recogniser(options.asr)
    _check_outputs(options)
    names = (options.baseline, options.candidate)
    models = resolve_model(names[0]), resolve_model(names[1])
    parameters = model_options(options.baseline_options), model_options(options.candidate_options)
    check_models(models, parameters)
    ears = VoiceJudge(models[0] if options.judge is None else resolve_model(options.judge))

    with ExitStack() as stack:
        root = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatterbox-evaluate-")))
        baseline, candidate = (Collection.create(root / name) for name in ("baseline", "candidate"))
        for collection, model, given, name in zip((baseline, candidate), models, parameters, names, strict=True):
            home, other = collection.directory, None if collection is baseline else baseline.directory
            print(f"{home.name}: {model} {' '.join(f'{k}={v}' for k, v in given.items())}", file=sys.stderr, flush=True)
            collect_in_process(CollectionJob(str(model), plan, home, other, options.device, given, name))
        comparison = compare(plan, baseline, candidate, ears, recogniser)
        verdict = judge(comparison.measurements, thresholds)
        try:
            if options.json is not None:
                write_json(options.json, as_json(plan, comparison, verdict))
            if options.report is not None:
                write_text(options.report, as_html(plan, comparison, verdict, baseline, candidate, options.listen))
        finally:  # a full disk shall not take the figures along
            _print(comparison, verdict)
    return verdict.exit_status


def _check_outputs(options: argparse.Namespace) -> None:
    files = [path for path in (options.json, options.report) if path is not None]
    for path in files:
        check_writable(path)
    if len({path.resolve() for path in files}) < len(files):
        raise ConfigError(f"--json and --report both name {files[0]}; give them a file each")
    if options.listen < 0:
        raise ConfigError(f"--listen must be 0 or more utterances, not {options.listen}")


def _print(comparison: Comparison, verdict: Verdict) -> None:
    """What went wrong on standard error; the gates on standard output, the verdict last."""
    from chatterbox_vllm.evaluation.gates import Status
    from chatterbox_vllm.evaluation.report import line, troubles

    found = troubles(comparison)
    for trouble in found[:_MOST_TROUBLES]:
        case = "" if trouble.case is None else f", case {trouble.case}"
        print(f"{trouble.model}{case}: {' '.join(trouble.what.split())}", file=sys.stderr)
    if len(found) > _MOST_TROUBLES:
        print(f"and {len(found) - _MOST_TROUBLES} more, see --report or --json", file=sys.stderr)
    for judgement in verdict.judgements:
        print(line(judgement))
    failed = ", ".join(j.name for j in verdict.judgements if j.status is Status.FAILED)
    missing = f"{', '.join(verdict.missing)} could not run" if verdict.missing else ""
    reasons = "; ".join(reason for reason in (failed, missing) if reason)
    print(f"{verdict.word}: {reasons}" if reasons else verdict.word)


def model_options(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as parameters: true, false, none, numbers, and text as it stands.

    Raises:
        ConfigError: a word without "=", or a name twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"model options are KEY=VALUE, not {word!r}")
        if name in found:
            raise ConfigError(f"the model option {name!r} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plan(options: argparse.Namespace) -> EvaluationPlan:
    from chatterbox_vllm.evaluation.plan import DEFAULT_TEXTS, EvaluationPlan

    texts = DEFAULT_TEXTS
    if options.text is not None:
        try:
            texts = tuple(options.text.read_text(encoding="utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the texts in {options.text} cannot be read as UTF-8: {error}") from error
    return EvaluationPlan(
        texts=texts,
        clips=tuple(str(clip) for clip in options.voice),
        seed=options.seed,
        max_tokens=options.max_tokens,
        diffusion_steps=options.steps,
        batch_size=options.batch,
        repeats=options.repeats,
    )
