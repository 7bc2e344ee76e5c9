"""`chatterbox-vllm bench`: how fast this machine speaks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.cli.options import add_engine, add_model, check_clip, load
from chatterbox_vllm.cli.outputs import check_writable, write_json
from chatterbox_vllm.errors import ConfigError

if TYPE_CHECKING:
    from chatterbox_vllm.bench.upstream import UpstreamRun, Workload

PARTS = ("t3", "s3gen", "latency", "end-to-end")
UPSTREAM = "upstream"
_DESCRIPTION = """\
Measure how fast this machine speaks. The part "upstream", which runs only where it is named, speaks the same texts with
the published package (chatterbox-tts) and with this one, and prints both: one text at a time, as that package does, and
all together. The package pins other versions than vLLM needs: install it in an environment of its own and name that
environment's Python with --upstream-python.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command to `parser`."""
    parser.set_defaults(command=run)
    parser.description = _DESCRIPTION
    add_model(parser, "english")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*PARTS, UPSTREAM),
        default=list(PARTS),
        help="parts to run (default: all but upstream)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        metavar="N",
        help="batch sizes of T3 and S3Gen (default: 1 and the engine's own, which a tier may say)",
    )
    parser.add_argument(
        "--lengths", type=float, nargs="+", metavar="S", default=[10.0], help="seconds of speech, S3Gen"
    )
    parser.add_argument("--tokens", type=int, metavar="N", default=250, help="speech tokens a request, T3 and latency")
    parser.add_argument("--steps", type=int, metavar="N", default=10, help="diffusion steps")
    parser.add_argument("--repeats", type=int, metavar="N", default=3, help="runs after the first, which warms up")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text of end-to-end and of upstream (UTF-8; default: ours)"
    )
    parser.add_argument("--voice", type=Path, metavar="CLIP", help="reference clip (default: the built-in voice)")
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="the weights do not know when to stop: give every text the tokens that reading it takes",
    )
    parser.add_argument(
        "--upstream-python",
        metavar="PYTHON",
        default=sys.executable,
        help="interpreter that can import chatterbox-tts (default: this one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    if min(options.batch or [1]) < 1 or options.repeats < 1 or min(options.lengths) <= 0:
        raise ConfigError("--batch, --repeats and --lengths must be positive")
    text = "" if options.text is None else _read(options.text)
    if options.json is not None:
        check_writable(options.json)

    from chatterbox_vllm.bench.end_to_end import end_to_end_row
    from chatterbox_vllm.bench.stages import latency_row, s3gen_rows, t3_rows
    from chatterbox_vllm.bench.table import table
    from chatterbox_vllm.bench.texts import batch_sizes, text_for
    from chatterbox_vllm.bench.upstream import side_by_side_rows, side_by_side_table
    from chatterbox_vllm.setup.provenance import provenance

    # Before our model loads, so that each side has the machine to itself.
    workload, upstream = _run_upstream(options, text) if UPSTREAM in options.only else (None, None)
    with load(options, max_batch_size=max(options.batch) if options.batch else None) as tts:
        if options.voice is not None:
            tts.prepare_conditionals(options.voice)
        sizes = batch_sizes(options.batch, tts)
        facts: dict[str, Any] = provenance(tts.device, str(options.model), tts.directory)
        facts["settings"] = {
            **tts.settings,
            "steps": options.steps,
            "synthetic": options.synthetic,
            "reference tokens": len(tts.conds.prompt.tokens) if tts.conds is not None else None,
        }
        if upstream is not None:
            facts["published package"] = upstream.facts
        print(table([facts]), end="\n\n", flush=True)
        rows: list[dict[str, Any]] = []
        for part in options.only:
            if part == "t3":
                found = t3_rows(tts, sizes, options.tokens, options.repeats)
            elif part == "s3gen":
                found = s3gen_rows(tts, sizes, options.lengths, options.steps, options.repeats)
            elif part == "latency":
                found = [latency_row(tts, options.tokens, options.repeats)]
            elif part == "end-to-end":
                spoken = text or text_for(tts)
                found = [end_to_end_row(tts, spoken, options.synthetic, options.steps, _tick, options.repeats)]
            elif workload is not None and upstream is not None:
                found = side_by_side_rows(tts, upstream, workload)
            rows += found
            print((side_by_side_table if part == UPSTREAM else table)(found), end="\n\n", flush=True)
    if options.json is not None:
        write_json(options.json, {**facts, "results": rows})
    return 0


def _run_upstream(options: argparse.Namespace, text: str) -> tuple[Workload, UpstreamRun]:
    """The published package's half of the side-by-side part."""
    from chatterbox_vllm.bench.upstream import TEXTS, Workload, run_upstream
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.text.split import split_text

    check_clip(options.voice)
    texts = [segment.text for segment in split_text(text)] if text else TEXTS
    workload = Workload.of(texts, options.synthetic, options.steps, options.repeats)
    directory, device = resolve_model(options.model), resolve_device(options.device)
    return workload, run_upstream(options.upstream_python, directory, device, options.voice, workload, _tick)


def _tick(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} texts", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the text in {path} cannot be read as UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError(f"{path} holds no text; give at least one word")
    return text
