"""`chatterbox-vllm bench`: how fast this machine speaks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from chatterbox_vllm.cli.options import add_engine, add_model, load
from chatterbox_vllm.errors import ConfigError, OutputError

PARTS = ("t3", "s3gen", "latency", "end-to-end")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command to `parser`."""
    parser.set_defaults(command=run)
    add_model(parser, "english")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", default=[1, 8], help="batch sizes of T3 and S3Gen")
    parser.add_argument(
        "--lengths", type=float, nargs="+", metavar="S", default=[10.0], help="seconds of speech, S3Gen"
    )
    parser.add_argument("--tokens", type=int, metavar="N", default=250, help="speech tokens a request, T3 and latency")
    parser.add_argument("--steps", type=int, metavar="N", default=10, help="diffusion steps")
    parser.add_argument("--repeats", type=int, metavar="N", default=3, help="runs after the first, which warms up")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text of the end-to-end part (UTF-8)")
    parser.add_argument("--voice", type=Path, metavar="CLIP", help="reference clip (default: the built-in voice)")
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="the weights do not know when to stop: give every text the tokens that reading it takes",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    if "end-to-end" in options.only and options.text is None:
        raise ConfigError("give the end-to-end part a text with --text FILE, or leave it out with --only")
    if min(options.batch) < 1 or options.repeats < 1 or min(options.lengths) <= 0:
        raise ConfigError("--batch, --repeats and --lengths must be positive")
    text = "" if options.text is None else _read(options.text)

    from chatterbox_vllm.bench.end_to_end import end_to_end_row
    from chatterbox_vllm.bench.probe import machine
    from chatterbox_vllm.bench.stages import latency_row, s3gen_rows, t3_rows

    with load(options, max_batch_size=max(options.batch)) as tts:
        if options.voice is not None:
            tts.prepare_conditionals(options.voice)
        facts: dict[str, Any] = machine(tts.device)
        facts["model"] = str(options.model)
        facts["settings"] = {
            "T3 dtype": str(tts.t3_stage.options.dtype),
            "CUDA graphs": tts.t3_stage.options.cuda_graphs,
            "S3Gen dtype": options.s3gen_dtype,
            "steps": options.steps,
            "max batch": max(options.batch),
            "watermark": not options.no_watermark,
            "synthetic": options.synthetic,
            "reference tokens": len(tts.conds.prompt_tokens) if tts.conds is not None else None,
        }
        rows: list[dict[str, Any]] = []
        for part in options.only:
            if part == "t3":
                found = t3_rows(tts, options.batch, options.tokens, options.repeats)
            elif part == "s3gen":
                found = s3gen_rows(tts, options.batch, options.lengths, options.steps, options.repeats)
            elif part == "latency":
                found = [latency_row(tts, options.tokens, options.repeats)]
            else:
                found = [end_to_end_row(tts, text, options.synthetic, options.steps, _tick)]
            rows += found
            for row in found:
                print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    if options.json is not None:
        _write(options.json, {**facts, "results": rows})
    return 0


def _tick(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} chunks", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the text in {path} cannot be read as UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError(f"{path} holds no text; give at least one word")
    return text


def _write(path: Path, results: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file") from error
