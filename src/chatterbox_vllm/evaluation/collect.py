"""Run one model over a plan and write down what it does.

As a process, `python -m chatterbox_vllm.evaluation.collect PARENT`, with the job as JSON on standard input; it ends
when the process of the id PARENT, which started it, does.

Every model runs in a process of its own: vLLM has settings that only the first model of a process chooses, peaks of
memory are a process's, and a candidate that brings its process down must not take the evaluation with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from chatterbox_vllm.errors import ChatterboxError, ConfigError, GenerationError
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.lifetime import end_with
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.evaluation.preflight import check_options
from chatterbox_vllm.evaluation.stages import enrol, force, speak, write_clips
from chatterbox_vllm.evaluation.voicing import voice_tokens
from chatterbox_vllm.families.fingerprint import model_identity
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.probe import Probe
from chatterbox_vllm.setup.provenance import provenance
from chatterbox_vllm.tts import ChatterboxTTS
from chatterbox_vllm.voices.voice import Voice

_FAILED = 2
_SECONDS_TO_END = 10


@dataclass(frozen=True)
class CollectionJob:
    """One model's part of an evaluation.

    Attributes:
        model: a name, directory or hub id.
        options: for `ChatterboxTTS.from_pretrained`, over the defaults here: no watermark, no guard, the plan's
            batch size.
        output: directory of the collection.
        baseline: the baseline's collection, whose tokens and voices are used; None where this is the baseline.
        name: what its user called the model, for the report; `model` where empty.
    """

    model: str
    plan: EvaluationPlan
    output: Path
    baseline: Path | None = None
    device: str = "auto"
    options: Mapping[str, Any] | None = None
    name: str = ""


_JOB: pydantic.TypeAdapter[CollectionJob] = pydantic.TypeAdapter(CollectionJob)


def collect(job: CollectionJob) -> RunFacts:
    """Load the job's model, let it do everything, shut it down.

    Raises:
        ChatterboxError: the model cannot be loaded or its engine failed; single cases that fail are facts.
    """
    plan, into = job.plan, Collection.create(job.output)
    baseline = into if job.baseline is None else Collection(job.baseline)
    device = resolve_device(job.device)
    facts = RunFacts(job.model, job.name or job.model, dict(job.options or {}), provenance(device))
    with Probe(device) as probe:
        start = time.perf_counter()
        with _load(job) as tts:
            facts.load_seconds = time.perf_counter() - start
            facts.machine |= {**model_identity(tts.directory), **tts.settings}
            if job.baseline is None:
                into.save_voices(_voices(tts, plan))
            config = config_of(tts.directory)
            voices = [Voice.load(baseline.voice_path(i), config) for i in range(plan.voices)]
            facts.repeats = plan.repeats
            facts.cases, facts.speaking_seconds = speak(tts, plan, voices, into)
            said = facts.cases if job.baseline is None else baseline.facts().cases
            if job.baseline is None:
                write_clips(plan, said, into)
            force(tts, plan, voices, said, into)
            voice_tokens(tts.s3gen_stage, plan, voices, said, facts.cases, baseline, into)
            facts.enrolments = enrol(tts, plan, baseline, into)
    facts.peak_device_bytes, facts.counted_by = probe.usage.peak_device_bytes, probe.usage.counted_by
    facts.peak_host_bytes = probe.usage.peak_host_bytes
    into.write_facts(facts)
    return facts


def _load(job: CollectionJob) -> ChatterboxTTS:
    check_options(job.options or {})
    options = {
        "max_batch_size": job.plan.batch_size,
        "watermark": False,
        "guard": False,  # whatever the model says is judged
        **(job.options or {}),
        "teacher_forcing": True,
    }
    return ChatterboxTTS.from_pretrained(job.model, job.device, **options)


def _voices(tts: ChatterboxTTS, plan: EvaluationPlan) -> list[Voice]:
    if plan.clips:
        return [tts.enrol(clip) for clip in plan.clips]
    if tts.conds is None:
        raise ConfigError(f"{tts.directory} has no built-in voice: give a reference clip with --voice")
    return [tts.conds]


def collect_in_process(job: CollectionJob) -> RunFacts:
    """`collect` in a new process.

    Raises:
        OutputError: the collection's directory cannot be written.
        GenerationError: the process failed; the message is its last line.
    """
    into = Collection.create(job.output)
    command = [sys.executable, "-m", __name__, str(os.getpid())]
    tail: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace"
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            # One that died at once cannot be told, and says why on standard error.
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(_JOB.dump_json(job).decode())
            for line in process.stderr:
                tail.append(line.rstrip())
            process.wait()
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        last = next((line for line in reversed(tail) if line.strip()), "no message")
        raise GenerationError(
            f"{job.model} could not be evaluated: its process ended with status {process.returncode} ({last})"
        )
    return into.facts()


def _end(process: subprocess.Popen[str]) -> None:
    """Give it time to put its things away, then none."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        try:
            process.wait(_SECONDS_TO_END)
        finally:
            process.kill()


def _interrupt_once(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _main(parent: int) -> int:
    # Ctrl-C and a terminal that closes go to both processes; the one that waits for this one passes it on, once.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt_once)
    end_with(parent)
    try:
        collect(_JOB.validate_json(sys.stdin.read()))
    except ChatterboxError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1])))
