"""Speaks a plan into a corpus directory; what was interrupted goes on where it stopped.

    python -m training.corpus.make PLAN WEIGHTS OUT --device cuda --processes 2 --seconds 480

Several processes share a device: while one waits for its launches, another computes. With `cuda` they share all GPUs
of the machine. They take turns at rounds of lines in the plan's order; this process writes what they speak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from training.corpus.plan import Line, Plan
from training.corpus.store import CorpusWriter
from training.data import RATE, CorpusError


@dataclass(frozen=True)
class Options:
    """How to speak: see `main` for each."""

    weights: Path
    device: str
    processes: int
    seconds: float
    batch_seconds: float
    round_lines: int


def work(rank: int, options: Options, plan: Path, rounds: Sequence[Sequence[int]], out: Queue, end: Event) -> None:
    """One process: speaks its rounds (indices into the plan's lines) into `out`; None means that it is done."""
    import torch

    from training.corpus.teacher import Teacher

    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.set_float32_matmul_precision("high")  # TF32, as convolutions have it already
    whole = Plan.read(plan)
    if options.device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    teacher = Teacher(options.weights, whole.speakers, options.device, options.batch_seconds)
    for lines in rounds:
        for batch in teacher.speak([whole.lines[i] for i in lines], end.is_set):
            out.put([(line, audio.tobytes()) for line, audio in batch])
    out.put(None)


def make(plan: Path, directory: Path, options: Options) -> None:
    """Speaks all lines of the plan that the corpus lacks, or as many as fit into `options.seconds`.

    Raises:
        CorpusError: the directory holds another corpus, or a process died.
    """
    began = time.monotonic()
    whole = Plan.read(plan)
    with CorpusWriter(directory, whole.speakers) as writer:
        todo = [i for i, line in enumerate(whole.lines) if line.id not in writer.ids]
        print(f"{len(whole.lines)} lines, {len(writer.ids)} of them spoken already", flush=True)
        rounds = [todo[i : i + options.round_lines] for i in range(0, len(todo), options.round_lines)]
        context = multiprocessing.get_context("spawn")
        out, end = context.Queue(maxsize=4 * options.processes), context.Event()
        processes = [
            context.Process(
                target=work, args=(rank, options, plan, rounds[rank :: options.processes], out, end), daemon=True
            )
            for rank in range(options.processes)
        ]
        for process in processes:
            process.start()
        write(writer, out, end, processes, began, options.seconds)
        for process in processes:
            process.join()
        print(f"{directory}: {len(writer.ids)} utterances, {writer.samples / RATE / 3600:.2f} h", flush=True)


def write(
    writer: CorpusWriter, out: Queue, end: Event, processes: Sequence[multiprocessing.process.BaseProcess],
    began: float, seconds: float,
) -> None:  # fmt: skip
    """Writes what comes until every process is done, and tells them to end when the time is up."""
    running, told, before = len(processes), began, writer.samples
    while running:
        if time.monotonic() - began > seconds:
            end.set()
        try:
            batch: list[tuple[Line, bytes]] | None = out.get(timeout=1)
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode]
            if dead:
                raise CorpusError(f"a teacher process ended with exit code {dead[0]}; its message is above") from None
            continue
        if batch is None:
            running -= 1
            continue
        for line, audio in batch:
            writer.add(
                id=line.id, speaker=line.speaker, text=line.text, phonemes=line.phonemes, held_out=line.held_out,
                movement=line.movement, audio=np.frombuffer(audio, np.int16),
            )  # fmt: skip
        if time.monotonic() - told > 5:
            told = time.monotonic()
            writer.flush()
            report(writer, before, began)


def report(writer: CorpusWriter, before: int, began: float) -> None:
    seconds = time.monotonic() - began
    print(
        f"{seconds:6.1f} s: {len(writer.ids)} utterances, {writer.samples / RATE / 3600:.2f} h, "
        f"{(writer.samples - before) / RATE / seconds:.0f} x real time",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="what training.corpus.build wrote")
    parser.add_argument("weights", type=Path, help="what training.corpus.kokoro_weights wrote")
    parser.add_argument("out", type=Path, help="the corpus directory, new or begun")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--processes", type=int, default=2, help="how many share the devices (default: 2)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end by itself after so long")
    parser.add_argument("--batch-seconds", type=float, default=240, help="audio in one pass (default: 240, CPU: 20)")
    parser.add_argument("--round-lines", type=int, default=3072, help="lines that are sorted by length together")
    given = parser.parse_args()
    options = Options(
        given.weights, given.device, given.processes, given.seconds, given.batch_seconds, given.round_lines
    )
    make(given.plan, given.out, options)


if __name__ == "__main__":
    main()
