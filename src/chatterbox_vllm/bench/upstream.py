"""The published package and this one, side by side: same machine, checkpoint, texts, voice and parameters.

The published package pins versions of its own (PyTorch 2.6), so it usually lives in another environment than vLLM. It
runs in a process of its own, by any interpreter, before our engine starts: memory and time are each one's alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from chatterbox_vllm.bench import upstream_worker
from chatterbox_vllm.bench.end_to_end import most_tokens
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.setup.probe import BatchWatch, Probe, Stopwatch
from chatterbox_vllm.t3.options import T3Output
from chatterbox_vllm.tts import ChatterboxTTS

TEXTS = (
    "The ferry leaves at half past nine.",
    "She had forgotten her umbrella again, and it was raining hard.",
    "Could you tell me which of these two roads goes down to the harbour?",
    "Nobody in the village remembered when the clock had stopped, or why.",
    "Bread, butter, a little salt.",
    "When the last guests had gone, he opened all the windows and sat down by the fire.",
    "It is not far.",
    "The measurements were taken twice, on different days, and agreed to the third digit.",
)
UPSTREAM, OURS = "published package", "chatterbox-vllm"
ALONE, TOGETHER = "one at a time", "all together"
COMPARED = ("x real time", "a text, median s", "T3 tokens/s", "S3Gen x real time", "peak device MiB", "peak host MiB")
Row = dict[str, Any]


@dataclass(frozen=True)
class Utterance:
    """One text to speak, by either side.

    Attributes:
        max_tokens: most speech tokens.
    """

    text: str
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Workload:
    """What both sides speak, with default parameters.

    Attributes:
        rounds: the utterances of each repeat: the same texts, other seeds.
        steps: diffusion steps.
    """

    rounds: tuple[tuple[Utterance, ...], ...]
    steps: int

    def __post_init__(self) -> None:
        SpeechParameters(diffusion_steps=self.steps)  # refused before anything loads

    @classmethod
    def of(cls, texts: Sequence[str], synthetic: bool, steps: int, repeats: int) -> Workload:
        """Each text `repeats` times.

        Args:
            synthetic: as for `end_to_end_row`; the bound on tokens holds for both sides.
        """
        rounds = tuple(
            tuple(Utterance(text, most_tokens(text, synthetic), k * len(texts) + i) for i, text in enumerate(texts))
            for k in range(repeats)
        )
        return cls(rounds, steps)

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        """Those of all rounds."""
        return tuple(utterance for utterances in self.rounds for utterance in utterances)


@dataclass(frozen=True)
class Measured:
    """Sums over the utterances that one side spoke; times in seconds, memory in bytes.

    Attributes:
        each: seconds of every text, from request to audio; empty where texts went together.
        tokens: that T3 drew, special ones included.
        failed: texts and their errors.
        device_bytes: most that PyTorch's allocator held; None on a CPU.
        host_bytes: the process's largest resident size.
    """

    audio: float
    elapsed: float
    each: list[float]
    tokens: int
    talking: float
    voicing: float
    failed: list[str]
    device_bytes: int | None
    host_bytes: int

    def row(self, engine: str, how: str) -> Row:
        """The table's column.

        Raises:
            GenerationError: there is nothing to compare, as no text was spoken.
        """
        if not self.audio:
            raise GenerationError(f"{engine} could speak none of the texts ({'; '.join(self.failed[:3])})")
        return {
            "stage": "side by side",
            "engine": engine,
            "how": how,
            "audio s": round(self.audio, 2),
            "elapsed s": round(self.elapsed, 3),
            "x real time": round(self.audio / self.elapsed, 4),
            "a text, median s": round(statistics.median(self.each), 3) if self.each else None,
            "T3 tokens": self.tokens,
            "T3 tokens/s": round(self.tokens / self.talking, 2),
            "S3Gen x real time": round(self.audio / self.voicing, 4),
            "peak device MiB": None if self.device_bytes is None else self.device_bytes >> 20,
            "peak host MiB": self.host_bytes >> 20,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class UpstreamRun:
    """What the published package did: a row as `side_by_side_rows` has them, and its versions."""

    row: Row
    facts: dict[str, Any]


def run_upstream(
    python: str | os.PathLike[str],
    directory: Path,
    device: torch.device,
    voice: Path | None,
    workload: Workload,
    on_text: Callable[[int, int], None] | None = None,
) -> UpstreamRun:
    """Speak the workload with the published package, one text after the other: it has no other way.

    Seconds of a stage are those of its `t3.inference` and `s3gen.inference`, the device's work included; those of a
    text run from the call of `generate` to the audio, watermark included. One text is spoken before, to warm up.

    Args:
        python: interpreter of the environment in which the package is installed.
        directory: checkpoint.
        voice: reference clip, or None for the checkpoint's built-in voice.
        on_text: called with the number of texts done and of all.

    Raises:
        ConfigError: no such interpreter, or the package cannot be imported or cannot load the checkpoint there; or it
            has no such family.
        GenerationError: its process died, or it could speak none of the texts.
    """
    family = family_of(config_of(directory).family, directory).name
    if family not in upstream_worker.PUBLISHED:
        known = ", ".join(upstream_worker.PUBLISHED)
        raise ConfigError(f"{directory} is a {family} model; the published package is compared for {known}")
    spoken = [workload.utterances[0], *workload.utterances]
    job = {
        "family": family,
        "directory": str(directory),
        "device": str(device),
        "voice": None if voice is None else str(voice),
        "steps": workload.steps,
        "utterances": [asdict(utterance) for utterance in spoken],
    }
    facts: dict[str, Any] = {}
    peaks: dict[str, Any] = {}
    measured: list[dict[str, Any]] = []
    for event in _events(python, job):
        kind = event.pop("event")
        if kind == "not importable":
            raise ConfigError(
                f"{python} cannot import the published package ({event['error']}); install chatterbox-tts in an "
                "environment of its own, with the versions that it pins (torch and torchaudio 2.6; vLLM here needs "
                "another torch), and name that environment's interpreter with --upstream-python"
            )
        if kind == "not loadable":
            raise ConfigError(
                f"the published package cannot load {directory} on {device} ({event['error']}); it takes "
                "checkpoints of the published sizes, and a voice: --voice, or conds.pt in the checkpoint"
            )
        if kind == "loaded":
            facts = event
        elif kind == "done":
            peaks = event
        else:
            measured.append(event)
            if on_text is not None:
                on_text(len(measured), len(spoken))
    done = list(zip(workload.utterances, measured[1:], strict=True))
    good = [entry for _, entry in done if "error" not in entry]
    sums = {key: sum(entry[key] for entry in good) for key in ("audio", "elapsed", "tokens", "talking", "voicing")}
    return UpstreamRun(
        Measured(
            **sums,
            each=[entry["elapsed"] for entry in good],
            failed=[_failure(utterance, entry["error"]) for utterance, entry in done if "error" in entry],
            **peaks,
        ).row(UPSTREAM, ALONE),
        facts,
    )


def _failure(utterance: Utterance, error: object) -> str:
    return f"{utterance.text[:40]!r}: {error}"


def _events(python: str | os.PathLike[str], job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the worker; yield its events as they come, the last of which says that it ended well."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        try:
            process = subprocess.Popen(
                [os.fspath(python), upstream_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise ConfigError(f"--upstream-python {python}: cannot be run ({error.strerror})") from error
        kind = None
        with process:
            try:
                _give(process.stdin, job)
                for line in process.stdout or ():
                    event = json.loads(line)
                    kind = event["event"]
                    yield event
            except BaseException:  # of our caller, too
                process.kill()
                raise
        if kind != "done":
            noise.seek(0)
            last = " ".join(noise.read()[-500:].split())
            raise GenerationError(f"the published package's process ended early (status {process.returncode}): {last}")


def _give(stdin: IO[str] | None, job: dict[str, Any]) -> None:
    # Where it died before it read, its status and last words are reported.
    with contextlib.suppress(BrokenPipeError), stdin or contextlib.nullcontext():
        json.dump(job, cast("IO[str]", stdin))


def our_row(tts: ChatterboxTTS, workload: Workload, together: bool) -> Row:
    """Speak the workload with our engine, one text after the other or each round's all submitted at once.

    Seconds of a stage are those of T3's steps and of S3Gen's batches; on a GPU they overlap where texts go together.
    Before, one text is spoken to warm up; on a GPU a round, which records CUDA graphs.
    """
    utterances = workload.utterances
    warm_up = workload.rounds[0] if tts.device.type == "cuda" else utterances[:1]
    for batch in [warm_up] if together else [(utterance,) for utterance in warm_up]:
        list(tts.run(_requests(tts, batch, workload.steps)))
    each, failed, samples = [], [], 0
    with (
        Probe(tts.device) as probe,
        Stopwatch(tts.t3_stage, "step", count=_tokens) as talking,
        BatchWatch(tts.s3gen_stage) as voicing,
    ):
        for batch in workload.rounds if together else [(utterance,) for utterance in utterances]:
            start = time.perf_counter()
            results = list(tts.run(_requests(tts, batch, workload.steps)))
            each.append(time.perf_counter() - start)
            samples += sum(len(result.audio) for result in results if result.audio is not None)
            failed += [_failure(batch[result.index], result.error) for result in results if result.error is not None]
    return Measured(
        audio=samples / tts.sr,
        elapsed=sum(each),
        each=[] if together else each,
        tokens=talking.counted,
        talking=talking.seconds,
        voicing=voicing.seconds,
        failed=failed,
        device_bytes=torch.cuda.max_memory_reserved(tts.device) if tts.device.type == "cuda" else None,
        host_bytes=probe.usage.peak_host_bytes,
    ).row(OURS, TOGETHER if together else ALONE)


def _tokens(outputs: list[T3Output]) -> int:
    return sum(len(output.token_ids) for output in outputs)


def _requests(tts: ChatterboxTTS, utterances: Sequence[Utterance], steps: int) -> list[SpeechRequest]:
    return [
        SpeechRequest(
            utterance.text,
            tts.voice,
            SpeechParameters(seed=utterance.seed, diffusion_steps=steps, max_tokens=utterance.max_tokens),
            language=tts.language_of_english,
        )
        for utterance in utterances
    ]


def side_by_side_rows(tts: ChatterboxTTS, upstream: UpstreamRun, workload: Workload) -> list[Row]:
    """The published package's row, ours one at a time and all together, and the ratios of ours to the first."""
    theirs = upstream.row
    ours = [our_row(tts, workload, together) for together in (False, True)]
    return [theirs, *ours, *(_ratio(row, theirs) for row in ours)]


def _ratio(row: Row, to: Row) -> Row:
    quotients = {
        name: None if row[name] is None or to[name] is None else round(row[name] / to[name], 3) for name in COMPARED
    }
    return {"stage": row["stage"], "engine": "ratio", "how": row["how"], **quotients}
