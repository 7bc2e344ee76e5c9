"""`chatterbox-vllm bench`: how fast this machine speaks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.options import JsonOption, VoiceOption, check_voice, loaded, model_config
from chatterbox_vllm.cli.outputs import beside, check_writable, write_json
from chatterbox_vllm.cli.progress import progress_bar
from chatterbox_vllm.cli.texts import check_text, read_text
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import BY_KEYWORD, ENGINE, LANGUAGE, MODEL, QUANTIZATION, STREAM

if TYPE_CHECKING:
    from chatterbox_vllm.bench.upstream import UpstreamRun, Workload
    from chatterbox_vllm.tts import ChatterboxTTS


class Part(StrEnum):
    """What can be measured."""

    T3 = "t3"
    S3GEN = "s3gen"
    STREAMS = "streams"
    LISTENERS = "listeners"
    END_TO_END = "end-to-end"
    END_TO_END_STREAMS = "end-to-end-streams"
    UPSTREAM = "upstream"


_USUAL: list[Part] = [part for part in Part if part not in (Part.LISTENERS, Part.END_TO_END_STREAMS, Part.UPSTREAM)]
_STEPS = (BY_KEYWORD["diffusion_steps"],)


@dataclass(frozen=True)
class Measured:
    """What to measure: the options of `bench`, checked.

    Raises:
        ConfigError: a number that is not positive.
    """

    parts: Sequence[Part]
    batch_sizes: Sequence[int] | None
    lengths: Sequence[float]
    tokens: int
    steps: int
    repeats: int
    text: str
    language: str | None
    synthetic: bool

    def __post_init__(self) -> None:
        if min(self.batch_sizes or [1]) < 1 or min(self.repeats, self.tokens) < 1 or min(self.lengths) <= 0:
            raise ConfigError("--batch-sizes, --repeats, --tokens and --lengths must be positive")

    def language_of(self, tts: ChatterboxTTS) -> str | None:
        """What its texts are spoken in; ours are English, and None is told from the user's."""
        return self.language or (None if self.text else tts.language_of_english)


@from_settings(MODEL, _STEPS, (LANGUAGE,), ENGINE, STREAM, QUANTIZATION)
def bench(
    *,
    only: Annotated[
        list[Part],
        typer.Option(
            metavar="PART…",
            help="parts to run: t3, s3gen, streams, listeners, end-to-end, end-to-end-streams, upstream",
        ),
    ] = _USUAL,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-sizes",
            "--batch",
            metavar="N…",
            help="batch sizes of T3 and S3Gen, and numbers of streams and listeners",
            show_default="1 and the engine's own, which a tier may say",
        ),
    ] = None,
    lengths: Annotated[list[float], typer.Option(metavar="S…", help="seconds of speech, S3Gen")] = [10.0],  # noqa: B006
    tokens: Annotated[int, typer.Option(metavar="N", help="speech tokens a request, T3, streams and listeners")] = 250,
    repeats: Annotated[int, typer.Option(metavar="N", help="runs after the first, which warms up")] = 3,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            "--text",
            metavar="FILE",
            help="text of streams, listeners, the end-to-end parts and upstream (UTF-8)",
            show_default="one of ours",
        ),
    ] = None,
    voice: VoiceOption = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="the weights do not know when to stop: give every text the tokens that reading it takes",
        ),
    ] = False,
    upstream_python: Annotated[
        str,
        typer.Option(metavar="PYTHON", help="interpreter that can import chatterbox-tts", show_default="this one"),
    ] = sys.executable,
    json: JsonOption = None,
    given: Keywords,
) -> None:
    """Measure how fast this machine speaks.

    The part "streams" keeps so many streams going without a pause; "listeners" has so many people listen, who begin one
    after the other and hear a text to its end before they ask for the next. Both say what share of a core each kind of
    thread was busy. "end-to-end" speaks the pieces of a text as a batch, and "end-to-end-streams" each as a stream.

    The part "upstream", which runs only where it is named, speaks the same texts with the published package
    (chatterbox-tts) and with this one, and prints both: one text at a time, as that package does, and all together. The
    package pins other versions than vLLM needs: install it in an environment of its own and name that environment's
    Python with --upstream-python.
    """
    text = "" if file is None else read_text(file)
    if file is not None:
        check_text(text)
    if json is not None:
        check_writable(json)
    steps = given.pop("diffusion_steps") if "diffusion_steps" in given else _published_steps(given)
    language = given.pop("language", None)
    if language is not None:
        from chatterbox_vllm.families.registry import family_of

        language = family_of(model_config(given).family).language(language)
    measured = Measured(only, batch_sizes, lengths, tokens, steps, repeats, text, language, synthetic)
    clip = check_voice(voice, given)
    # Before our model loads, so that each side has the machine to itself.
    upstream = _run_upstream(measured, given, clip, upstream_python) if Part.UPSTREAM in only else None
    defaults = {"max_batch_size": max(batch_sizes)} if batch_sizes else {}
    with loaded(given, **defaults) as tts:
        if clip is not None:
            tts.prepare_conditionals(clip)
        facts = _facts(tts, measured, given)
        if upstream is not None:
            facts["published package"] = upstream[1].facts
        rows = _measure(tts, measured, facts, upstream, json)
    if json is not None:
        write_json(json, {**facts, "results": rows})


def _published_steps(given: Keywords) -> int:
    """Diffusion steps of the family, one figure for all its models, comparable with the published package's."""
    from chatterbox_vllm.families.registry import family_of

    return family_of(model_config(given).family).defaults.diffusion_steps


def _facts(tts: ChatterboxTTS, measured: Measured, given: Keywords) -> dict[str, Any]:
    """The machine, and the settings in force."""
    from chatterbox_vllm.setup.provenance import provenance

    return {
        **provenance(tts.device, given.get("model"), tts.directory),
        "settings": {
            **tts.settings,
            "steps": measured.steps,
            "synthetic": measured.synthetic,
            "reference tokens": len(tts.conds.prompt.tokens) if tts.conds is not None else None,
        },
    }


def _measure(
    tts: ChatterboxTTS,
    measured: Measured,
    facts: Mapping[str, Any],
    upstream: tuple[Workload, UpstreamRun] | None,
    json: Path | None,
) -> list[dict[str, Any]]:
    """All parts in turn, each printed when it is done."""
    from chatterbox_vllm.bench.stages import SENTENCE, s3gen_rows, t3_rows
    from chatterbox_vllm.bench.streams import stream_rows, streamed_text_row
    from chatterbox_vllm.bench.texts import batch_sizes, text_for
    from chatterbox_vllm.bench.upstream import side_by_side_rows
    from chatterbox_vllm.cli.tables import of_rows, show, side_by_side

    m, sizes = measured, batch_sizes(measured.batch_sizes, tts)
    language = m.language_of(tts)
    parts: dict[Part, Callable[[], list[dict[str, Any]]]] = {
        Part.T3: lambda: t3_rows(tts, sizes, m.tokens, m.repeats),
        Part.S3GEN: lambda: s3gen_rows(tts, sizes, m.lengths, m.steps, m.repeats),
        Part.STREAMS: lambda: stream_rows(tts, sizes, m.text or SENTENCE, language, m.tokens, m.repeats),
        Part.LISTENERS: lambda: stream_rows(
            tts, sizes, m.text or SENTENCE, language, m.tokens, m.repeats, listening=True
        ),
        Part.END_TO_END: lambda: [_end_to_end(tts, m)],
        Part.END_TO_END_STREAMS: lambda: [
            streamed_text_row(tts, m.text or text_for(tts), language, m.synthetic, m.steps, m.repeats)
        ],
    }
    if upstream is not None:
        workload, theirs = upstream
        parts[Part.UPSTREAM] = lambda: side_by_side_rows(tts, theirs, workload)
    show(of_rows([facts]), file=beside(json))
    rows = []
    for part in m.parts:
        found = parts[part]()
        rows += found
        print(file=beside(json))
        show(side_by_side(found) if part is Part.UPSTREAM else of_rows(found), file=beside(json))
    return rows


def _end_to_end(tts: ChatterboxTTS, measured: Measured) -> dict[str, Any]:
    from chatterbox_vllm.bench.end_to_end import end_to_end_row
    from chatterbox_vllm.bench.texts import text_for

    text, m = measured.text or text_for(tts), measured
    with progress_bar("text") as progress:
        return end_to_end_row(
            tts, text, m.language_of(tts), m.synthetic, m.steps, partial(progress, "end to end"), m.repeats
        )


def _run_upstream(measured: Measured, given: Keywords, clip: Path | None, python: str) -> tuple[Workload, UpstreamRun]:
    """The published package's half of the side-by-side part."""
    from chatterbox_vllm.bench.upstream import TEXTS, Workload, run_upstream
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.text.split import split_text

    texts = [segment.text for segment in split_text(measured.text)] if measured.text else TEXTS
    workload = Workload.of(texts, measured.synthetic, measured.steps, measured.repeats)
    directory = resolve_model(given.get("model"), given.get("revision"))
    device = resolve_device(given.get("device", "auto"))
    with progress_bar("text") as progress:
        return workload, run_upstream(python, directory, device, clip, workload, partial(progress, "published package"))
