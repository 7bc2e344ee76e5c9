"""Judges speech by ears that were trained elsewhere: words, speaker, quality.

    python -m training.judge LIST.tsv --json REPORT.json --references REFERENCES.tsv

LIST.tsv begins with a row of column names: ``file`` (a path, from the list's folder), ``text``, ``voice``, and
``seconds`` if the natural length is known. REFERENCES.tsv has ``file`` and ``voice``: what each voice should sound
like; without it a voice is compared with its other files. Prints a table by voice and one by length.

- Words: Whisper tiny.en and base, each text and what was heard made plain by Whisper's English normaliser.
- Speaker: the cosine of Resemblyzer's embeddings. By it, one voice in two sentences has 0.90, two voices 0.58; 0.82
  tells same from other best. ``nearest`` is the share of files that are nearer to their own voice than to any other.
- Quality: DistillMOS, and DNSMOS's overall score, of every `--mos`-th file.
- Pitch range: semitones between the 10th and the 90th percentile, by `training.pitch`.

The extra `judge` and the packages that README.md names beside it bring all of them with their weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import types
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from chatterbox_vllm.audio.features import HOP_24K, RATE_24K
from chatterbox_vllm.errors import ChatterboxError
from chatterbox_vllm.evaluation.whisper import RATE, Whisper, package_folder, whisper_folder

LENGTHS = (("short", 4), ("medium", 14), ("long", 10_000))  # at most so many words
_VOICED_FRAMES = 10  # 0.2 s, for a range of the pitch


class JudgeError(ChatterboxError):
    """The list cannot be judged: a file, column or package is missing."""


@dataclass(frozen=True)
class Item:
    """One file to judge; `seconds` is how long its sentence naturally takes, if known."""

    file: Path
    text: str
    voice: str
    seconds: float | None = None


def read_list(path: Path) -> list[Item]:
    """The rows of a list or of references, as the module's description says."""
    if not path.is_file():
        raise JudgeError(f"there is no list {path}")
    with path.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"file", "voice"} <= set(rows[0]):
        raise JudgeError(f"{path} needs a first row with the columns file and voice, and a row for each file")
    items = []
    for row in rows:
        file = path.parent / row["file"]
        if not file.is_file():
            raise JudgeError(f"{path} names {row['file']}, but there is no file {file}")
        seconds = row.get("seconds")
        items.append(Item(file, row.get("text") or "", row["voice"], float(seconds) if seconds else None))
    return items


def load(path: Path) -> tuple[np.ndarray, float]:
    """(samples,) float32 at 16,000 Hz, and its seconds."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = wave.mean(1)
    return soxr.resample(mono, rate, RATE).astype(np.float32), len(mono) / rate


def word_errors(text: str, heard: str) -> dict[str, int]:
    """Errors, words, and whether the end is missing (``cut``), both texts made plain first."""
    import jiwer

    said, hypothesis = plain(text), plain(heard)
    if not said:
        raise JudgeError(f"the text {text!r} has no word to judge")
    aligned = jiwer.process_words(said, hypothesis)
    errors = aligned.substitutions + aligned.deletions + aligned.insertions
    return {
        "errors": errors,
        "words": len(said.split()),
        "cut": int(aligned.alignments[0][-1].type == "delete"),
    }


@cache
def _normalizer() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def plain(text: str) -> str:
    """Whisper's own normal form: no case, no punctuation, numbers in digits, one spelling."""
    return _normalizer()(text)


class Quality:
    """Predicted opinion scores, 1 to 5."""

    def __init__(self, threads: int):
        self.threads = threads

    @cached_property
    def _distillmos(self) -> Any:
        import torch

        # distillmos imports torchaudio for its command line alone.
        sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
        import distillmos

        torch.set_num_threads(self.threads)
        return distillmos.ConvTransformerSQAModel().eval()

    @cached_property
    def _dnsmos(self) -> Any:
        import onnxruntime
        from speechmos import dnsmos

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        folder = package_folder("speechmos") / "dnsmos_models"
        made = dnsmos.DNSMOS.__new__(dnsmos.DNSMOS)  # what its constructor does, which takes all threads
        for name, file in (("onnx_sess", "sig_bak_ovr.onnx"), ("p808_onnx_sess", "model_v8.onnx")):
            setattr(made, name, onnxruntime.InferenceSession(str(folder / file), options))
        return made

    def score(self, wave: np.ndarray) -> dict[str, float]:
        import torch

        with torch.inference_mode():
            distillmos = float(self._distillmos(torch.from_numpy(wave)[None])[0])
        return {
            "distillmos": distillmos,
            "dnsmos": float(self._dnsmos(np.clip(wave, -1, 1), RATE, False)["ovrl_mos"]),
        }


class Speakers:
    """Resemblyzer's embeddings, of unit length."""

    def __init__(self) -> None:
        from resemblyzer import VoiceEncoder

        self.encoder = VoiceEncoder("cpu", verbose=False)

    def embed(self, wave: np.ndarray) -> np.ndarray:
        from resemblyzer import preprocess_wav

        return self.encoder.embed_utterance(preprocess_wav(wave))


def likeness(voices: Sequence[str], embeddings: np.ndarray, references: Mapping[str, np.ndarray]) -> list[dict]:
    """For each file its cosine to its own voice, and whether that is the nearest of all voices.

    Args:
        voices: the voice of each file.
        embeddings: (files, size), of unit length.
        references: the summed embeddings of each voice's references; empty to compare with the voice's other files.
    """
    own_sums: dict[str, np.ndarray] = dict(references)
    if not references:
        for voice, embedding in zip(voices, embeddings, strict=True):
            own_sums[voice] = own_sums.get(voice, 0) + embedding
    names = sorted(own_sums)
    rows: list[dict] = []
    for voice, embedding in zip(voices, embeddings, strict=True):
        if voice not in own_sums:
            raise JudgeError(f"the voice {voice!r} has no reference")
        table = np.stack([own_sums[name] - (embedding if not references and name == voice else 0) for name in names])
        norms = np.linalg.norm(table, axis=1)
        if norms[names.index(voice)] < 1e-6:
            rows.append({})  # its only file: there is nothing to compare it with
            continue
        cosines = table @ embedding / np.maximum(norms, 1e-9)
        rows.append(
            {
                "similarity": float(cosines[names.index(voice)]),
                "nearest": int(names[int(cosines.argmax())] == voice),
            }
        )
    return rows


class Judge:
    """All ears of one process; see the module's description for what they hear.

    Args:
        recognisers: folders of CTranslate2 Whisper models by name.
        threads: for each file.
    """

    def __init__(self, recognisers: Mapping[str, Path], threads: int = 1):
        self.ears = {name: Whisper(folder, threads) for name, folder in recognisers.items()}
        self.speakers, self.quality = Speakers(), Quality(threads)

    def embedding(self, file: Path) -> np.ndarray:
        """Whose voice it is."""
        return self.speakers.embed(load(file)[0])

    def scores(self, item: Item, quality: bool) -> dict[str, Any]:
        """A row of scores, and the voice's `embedding`."""
        wave, seconds = load(item.file)
        row: dict[str, Any] = {"file": str(item.file), "voice": item.voice, "text": item.text, "seconds": seconds}
        for name, ear in self.ears.items():
            heard = ear.hear(wave)
            row[name] = {"heard": heard} | word_errors(item.text, heard)
            row["words"] = row[name]["words"]
        if item.seconds:
            row["stretch"] = seconds / item.seconds
        if quality:
            row |= self.quality.score(wave)
        if (pitch := pitch_range(item.file)) is not None:
            row["pitch range"] = pitch
        return row | {"embedding": self.speakers.embed(wave)}


def pitch_range(file: Path) -> float | None:
    """Semitones between the 10th and the 90th percentile of the pitch; None where too little is voiced."""
    import torch

    from training.pitch import pitch_of

    wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
    samples = soxr.resample(wave.mean(1), rate, RATE_24K)
    frames = len(samples) // HOP_24K
    if not frames:
        return None
    hertz = pitch_of(torch.from_numpy((samples[: frames * HOP_24K] * 32_767).astype(np.int16)), [frames]).numpy()
    voiced = 12 * np.log2(hertz[hertz > 0])
    if len(voiced) < _VOICED_FRAMES:
        return None
    low, high = np.percentile(voiced, (10, 90))
    return float(high - low)


_judge: Judge  # of a process of its own


def _begin(recognisers: Mapping[str, Path], threads: int) -> None:
    global _judge
    _judge = Judge(recognisers, threads)


def _embedding(file: Path) -> np.ndarray:
    return _judge.embedding(file)


def _scores(asked: tuple[Item, bool]) -> dict[str, Any]:
    return _judge.scores(*asked)


def judge(
    items: Sequence[Item],
    recognisers: Mapping[str, Path],
    references: Sequence[Item] = (),
    mos: int = 1,
    threads: int = 1,
    processes: int = 1,
    progress: int = 20,
) -> list[dict[str, Any]]:
    """A row of scores for each item; see the module's description for what they mean.

    Args:
        items: what to judge; each needs a text if there are recognisers.
        recognisers: folders of CTranslate2 Whisper models by name.
        references: what the voices should sound like.
        mos: predict the quality of every so many files; 0 for none.
        threads: of each process.
        progress: print a line after so many files; 0 for none.
    """
    sums: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    with get_context("spawn").Pool(processes, _begin, (recognisers, threads)) as pool:
        embedded = pool.imap(_embedding, [reference.file for reference in references])
        for reference, embedding in zip(references, embedded, strict=True):
            sums[reference.voice] = sums.get(reference.voice, 0) + embedding
        for row in pool.imap(_scores, [(item, bool(mos) and n % mos == 0) for n, item in enumerate(items)]):
            rows.append(row)
            if progress and len(rows) % progress == 0:
                print(f"{len(rows)} of {len(items)} files judged", file=sys.stderr, flush=True)
    embeddings = np.stack([row.pop("embedding") for row in rows])
    for row, like in zip(rows, likeness([i.voice for i in items], embeddings, sums), strict=True):
        row |= like
    return rows


def length_of(row: Mapping[str, Any]) -> str:
    return next(name for name, most in LENGTHS if row.get("words", 0) <= most)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means of some rows; word errors are summed over their words before they are divided."""
    out: dict[str, float] = {"files": len(rows)}
    for name in [key for key, value in rows[0].items() if isinstance(value, dict)]:
        out[f"wer {name}"] = 100 * sum(r[name]["errors"] for r in rows) / sum(r[name]["words"] for r in rows)
        out[f"cut {name}"] = sum(r[name]["cut"] for r in rows)
    for name, scale in (
        ("similarity", 1), ("nearest", 100), ("distillmos", 1), ("dnsmos", 1), ("pitch range", 1), ("seconds", 1),
        ("stretch", 1),
    ):  # fmt: skip
        values = [row[name] for row in rows if name in row]
        if values:
            out[name] = scale * float(np.mean(values))
    if any("stretch" in row for row in rows):
        out["over twice"] = sum(row.get("stretch", 0) > 2 for row in rows)
    return out


def grouped(rows: Sequence[Mapping[str, Any]], key: Any) -> dict[str, dict[str, float]]:
    groups: dict[str, list] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: summary(groups[name]) for name in groups}


def table(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Groups as a Markdown table."""
    columns = list(dict.fromkeys(column for group in groups.values() for column in group))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, group in groups.items():
        lines.append(f"| {name} | {' | '.join(_cell(column, group.get(column)) for column in columns)} |")
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    whole = column in ("files", "over twice") or column.startswith("cut")
    digits = 0 if whole else 1 if column.startswith("wer") or column == "nearest" else 2
    return f"{value:.{digits}f}"


def recognisers(names: Iterable[str]) -> dict[str, Path]:
    """`tiny.en` and `base` out of packages, or NAME=FOLDER."""
    return {
        name.partition("=")[0]: Path(name.partition("=")[2]) if "=" in name else whisper_folder(name) for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--json", type=Path, help="write all rows and both tables here")
    parser.add_argument("--whisper", nargs="*", default=["tiny.en", "base"], help="tiny.en, base or NAME=FOLDER")
    parser.add_argument("--mos", type=int, default=1, help="predict the quality of every so many files; 0: of none")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    references = read_list(given.references) if given.references else []
    heard = recognisers(given.whisper)
    rows = judge(read_list(given.list), heard, references, given.mos, given.threads, given.processes)
    voices = grouped(rows, lambda row: row["voice"]) | {"all": summary(rows)}
    lengths = grouped(rows, length_of)
    lengths = {name: lengths[name] for name, _ in LENGTHS if name in lengths}
    print(table("voice", voices) + "\n\n" + table("length", lengths))
    if given.json:
        given.json.write_text(json.dumps({"voices": voices, "lengths": lengths, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
