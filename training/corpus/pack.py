"""A corpus as a few files that are small enough to carry, and back.

    python -m training.corpus.pack CORPUS SHARDS --hours 6 --kbits 28
    python -m training.corpus.pack --unpack SHARDS CORPUS

A shard is a zip file of ``audio.ogg`` (Opus, all its utterances one after the other), ``utterances.jsonl`` and
``speakers.json``. The utterances come back with their ids and exact lengths; the audio is what the codec leaves of it.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np

from training.corpus.store import CorpusWriter
from training.data import RATE, Corpus, CorpusError, Speaker

BLOCK = RATE  # samples to the encoder at once
EFFORT = "5"  # of the encoder's 10: five times as fast, and the difference is small at these rates


def encode(audio: np.ndarray, kbits: float) -> bytes:
    """(samples,) int16 at 24,000 Hz to Ogg Opus."""
    target = io.BytesIO()
    options = {"vbr": "constrained", "compression_level": EFFORT}
    with av.open(target, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono", options=options)
        stream.bit_rate = int(1000 * kbits)
        for begin in range(0, len(audio), BLOCK):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(audio[None, begin : begin + BLOCK]), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def decode(blob: bytes) -> np.ndarray:
    parts = []
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(io.BytesIO(blob)) as container:
        for frame in container.decode(audio=0):
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.concatenate(parts)


def write_shard(directory: Path, indices: Sequence[int], path: Path, kbits: float) -> int:
    """Writes one shard of the corpus's utterances `indices`; returns its bytes."""
    corpus = Corpus(directory)
    audio = encode(np.concatenate([corpus.audio(i) for i in indices]), kbits)
    lines = [json.dumps(asdict(corpus.utterances[i]), ensure_ascii=False) for i in indices]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as shard:
        shard.writestr("audio.ogg", audio, zipfile.ZIP_STORED)
        shard.writestr("utterances.jsonl", "\n".join(lines))
        shard.writestr("speakers.json", json.dumps([asdict(speaker) for speaker in corpus.speakers]))
    return path.stat().st_size


def pack(
    directory: Path, out: Path, kbits: float, hours: float = float("inf"), megabytes: float = 15, jobs: int = 1
) -> list[Path]:
    """Packs the first `hours` of a corpus, by ids, into shards of at most `megabytes`.

    Raises:
        CorpusError: a shard came out larger than `megabytes`.
    """
    corpus = Corpus(directory)
    # An utterance's line takes about 120 bytes compressed, and the encoder may overshoot a little.
    budget = 0.93 * 1e6 * megabytes / (kbits * 1000 / 8 + 120 / 4) * RATE
    shards: list[list[int]] = [[]]
    size = total = 0
    for i in sorted(range(len(corpus.utterances)), key=lambda i: corpus.utterances[i].id):
        samples = corpus.utterances[i].samples
        if total + samples > hours * 3600 * RATE:
            break
        if shards[-1] and size + samples > budget:
            shards.append([])
            size = 0
        shards[-1].append(i)
        size, total = size + samples, total + samples
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"corpus.{number:03d}.zip" for number in range(len(shards))]
    with ProcessPoolExecutor(jobs) as pool:
        sizes = list(
            pool.map(write_shard, [directory] * len(shards), shards, paths, [kbits] * len(shards), chunksize=1)
        )
    for path, written in zip(paths, sizes, strict=True):
        if written > 1e6 * megabytes:
            raise CorpusError(f"{path} has {written / 1e6:.1f} MB, more than {megabytes}; pack at fewer kbits")
    return paths


def unpack(shards: Path, directory: Path) -> int:
    """Adds the utterances of all shards in a folder to a corpus, those left out that it has; returns how many."""
    paths = sorted(shards.glob("corpus.*.zip"))
    if not paths:
        raise CorpusError(f"{shards} holds no corpus.*.zip")
    added = 0
    for path in paths:
        with zipfile.ZipFile(path) as shard:
            speakers = [Speaker(**row) for row in json.loads(shard.read("speakers.json"))]
            lines = [json.loads(line) for line in shard.read("utterances.jsonl").decode().split("\n")]
            audio = decode(shard.read("audio.ogg"))
        if len(audio) < sum(line["samples"] for line in lines):
            raise CorpusError(f"{path} holds less audio than its utterances name; pack it again")
        with CorpusWriter(directory, speakers) as writer:
            begin = 0
            for line in lines:
                end = begin + line["samples"]
                if line["id"] not in writer.ids:
                    said = {key: value for key, value in line.items() if key not in ("begin", "samples")}
                    writer.add(**said, audio=audio[begin:end])
                    added += 1
                begin = end
    return added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unpack", action="store_true", help="from shards to a corpus")
    parser.add_argument("--kbits", type=float, default=28, help="kbit/s; an hour takes 0.45 MB a kbit (default: 28)")
    parser.add_argument("--hours", type=float, default=float("inf"), help="pack so much, the lowest ids first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    if given.unpack:
        print(f"{unpack(given.source, given.out)} utterances added to {given.out}")
    else:
        for path in pack(given.source, given.out, given.kbits, given.hours, jobs=given.jobs):
            print(f"{path} {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
