"""Speech in files, and the list of them that `training.judge` takes."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.data import RATE, Corpus


def write_list(out: Path, kind: str, spoken: Mapping[int, np.ndarray], corpus: Corpus) -> None:
    """Write `out/kind/*.wav` and `out/kind.tsv`.

    Args:
        spoken: by the index of the utterance whose text it says, samples on the scale of int16, at 24 kHz.
    """
    (out / kind).mkdir(parents=True, exist_ok=True)
    lines = ["file\ttext\tvoice\tseconds\n"]
    for i, samples in spoken.items():
        utterance = corpus.utterances[i]
        name = f"{kind}/{utterance.id:06}-{utterance.speaker:04}.wav"
        with wave.open(str(out / name), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        voice = corpus.speakers[utterance.speaker].name
        lines.append(f"{name}\t{utterance.text}\t{voice}\t{utterance.seconds:.2f}\n")
    (out / f"{kind}.tsv").write_text("".join(lines), encoding="utf-8")
