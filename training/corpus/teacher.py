"""Speaks the lines of a plan with Kokoro, many at once, and brings them to the corpus's level and edges.

Lines of one phoneme count go through the text side together; then lines of like duration go through the sounding side
together. On a GPU this is several hundred times faster than real time.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.corpus import kokoro_weights
from training.corpus.kokoro import RATE, SAMPLES_PER_FRAME, STYLE, expand
from training.corpus.plan import TWENTIETHS, Line
from training.data import CorpusError, Speaker

LONGEST = 509  # phonemes; the style tables have 510 rows
LEVEL_DB, PEAK = -23.0, 0.95
EDGE = RATE // 20  # silence that is left at both ends
FRAME = RATE // 100
TRIM_DB, LOUD_DB = -50.0, -30.0  # below the loudest 10 ms: where speech begins, and what its level is measured over


@dataclass
class Heard:
    """A line after the text side, on the device; `total` is its frames."""

    line: Line
    durations: Tensor
    states: Tensor
    said: Tensor
    style: Tensor
    total: int


class Teacher:
    """Kokoro with a plan's speakers.

    Args:
        folder: what `training.corpus.kokoro_weights` wrote.
        speakers: recipes of voices and blends, as `training.corpus.speakers` makes them.
        device: where to compute.
        batch_seconds: audio in one pass of the sounding side, padding included; about 20 MB of memory a second.

    Raises:
        CorpusError: a recipe names a voice that the folder does not hold, or cannot be followed.
    """

    def __init__(self, folder: str | Path, speakers: Sequence[Speaker], device: str = "cpu", batch_seconds: float = 30):
        self.device = torch.device(device)
        tables = kokoro_weights.load_voices(folder)
        names = sorted(tables)
        timbre = [_mixture(speaker, speaker.recipe["timbre"], names) for speaker in speakers]
        prosody = [_mixture(s, s.recipe.get("prosody") or s.recipe["timbre"], names) for s in speakers]
        self.twentieths = [_twentieths(speaker) for speaker in speakers]
        self.timbre, self.prosody = (torch.tensor(rows, device=self.device) for rows in (timbre, prosody))
        self.tables = torch.from_numpy(np.stack([tables[name] for name in names])).to(self.device)
        self.symbols: dict[str, int] = json.loads((Path(folder) / kokoro_weights.VOCAB).read_text(encoding="utf-8"))
        self.network = kokoro_weights.load(folder, self.device)
        self.batch_frames = int(batch_seconds * RATE / SAMPLES_PER_FRAME)

    @torch.inference_mode()
    def speak(
        self, lines: Sequence[Line], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[list[tuple[Line, np.ndarray]]]:
        """Speaks the lines, in an order of its own, a batch at a time, until `stop` says so.

        Yields:
            Lines and their audio, (samples,) int16 at 24,000 Hz.
        """
        groups: dict[int, list[Heard]] = defaultdict(list)
        for batch in _of_equal_count(lines):
            if stop():
                return
            for heard in self._text(batch):
                groups[self.twentieths[heard.line.speaker]].append(heard)
        batches = [(ratio, batch) for ratio in sorted(groups) for batch in self._of_like_duration(groups[ratio])]
        # So that a run which is stopped has not spoken the short ones alone.
        random.Random(0).shuffle(batches)
        for ratio, batch in batches:
            if stop():
                return
            yield self._sound(batch, ratio)

    def tokens(self, line: Line) -> list[int]:
        """The phonemes' numbers, with the 0 at both ends that the network expects."""
        unknown = set(line.phonemes) - set(self.symbols)
        if unknown or not 1 <= len(line.phonemes) <= LONGEST:
            what = f"holds {sorted(unknown)}" if unknown else f"has {len(line.phonemes)} phonemes, not 1 to {LONGEST}"
            raise CorpusError(f"line {line.id} {what}; the teacher cannot say it")
        return [0, *(self.symbols[symbol] for symbol in line.phonemes), 0]

    def _text(self, lines: Sequence[Line]) -> list[Heard]:
        tokens = torch.tensor([self.tokens(line) for line in lines], device=self.device)
        speakers = torch.tensor([line.speaker for line in lines], device=self.device)
        # What will be played r times as fast is spoken at 1 / r of its pace.
        pace = [line.speed * 20 / self.twentieths[line.speaker] for line in lines]
        rows = self.tables[:, len(lines[0].phonemes)]
        style = torch.cat([(self.timbre[speakers] @ rows)[:, :STYLE], (self.prosody[speakers] @ rows)[:, STYLE:]], 1)
        durations, states, said = self.network.text(tokens, style, torch.tensor(pace, device=self.device))
        totals = durations.sum(1).tolist()
        return [Heard(*parts) for parts in zip(lines, durations, states, said, style, totals, strict=True)]

    def _of_like_duration(self, heard: list[Heard]) -> Iterator[list[Heard]]:
        batch: list[Heard] = []
        for one in sorted(heard, key=lambda one: one.total):
            if batch and one.total * (len(batch) + 1) > self.batch_frames:
                yield batch
                batch = []
            batch.append(one)
        yield batch

    def _sound(self, batch: list[Heard], twentieths: int) -> list[tuple[Line, np.ndarray]]:
        durations = pad_sequence([one.durations for one in batch], batch_first=True)
        frames = max(one.total for one in batch)
        states, said = (
            expand(pad_sequence([getattr(one, name) for one in batch], batch_first=True), durations, frames)
            for name in ("states", "said")
        )
        lengths = durations.sum(1)
        movement = torch.tensor([one.line.movement for one in batch], device=self.device)
        wave = self.network.speak(states, said, torch.stack([one.style for one in batch]), lengths, movement)
        samples = lengths * SAMPLES_PER_FRAME
        if twentieths != 20:
            wave = play_faster(wave, twentieths)
            samples = samples * 20 // twentieths
        pcm, begins, ends = finish(wave, samples)
        audio = pcm.cpu().numpy()
        return [
            (one.line, row[begin:end].copy())
            for one, row, begin, end in zip(batch, audio, begins.tolist(), ends.tolist(), strict=True)
        ]


def play_faster(wave: Tensor, twentieths: int) -> Tensor:
    """(batch, samples) played `twentieths` / 20 times as fast, pitch and all, by cutting or padding the spectrum."""
    block = twentieths * 60
    padded = math.ceil(wave.shape[-1] / block) * block
    samples = padded * 20 // twentieths
    spectrum = torch.fft.rfft(wave, padded)
    return torch.fft.irfft(spectrum, samples) * (samples / padded)


def finish(wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (batch, samples) float and finds where to cut it.

    Args:
        wave: the audio.
        samples: how many of each row's samples belong to it.

    Returns:
        int16 audio of the same shape, its speech at -23 dB RMS and no peak past 0.95; and each row's begin and end,
        50 ms outside its first and last 10 ms that are louder than 50 dB below its loudest.
    """
    count = wave.shape[-1] // FRAME
    inside = torch.arange(wave.shape[-1], device=wave.device) < samples[:, None]
    wave = wave * inside
    power = wave[:, : count * FRAME].unflatten(1, (count, FRAME)).square().mean(-1)
    loudest = power.amax(1, keepdim=True)
    speech = power > loudest * 10 ** (TRIM_DB / 10)
    first = speech.int().argmax(1)
    last = count - 1 - speech.flip(1).int().argmax(1)
    loud = power > loudest * 10 ** (LOUD_DB / 10)
    rms = ((power * loud).sum(1) / loud.sum(1).clamp(min=1)).sqrt()
    gain = torch.minimum(10 ** (LEVEL_DB / 20) / (rms + 1e-9), PEAK / (wave.abs().amax(1) + 1e-9))
    pcm = (wave * gain[:, None] * 32767).round().short()
    begin = (first * FRAME - EDGE).clamp(min=0)
    end = torch.minimum((last + 1) * FRAME + EDGE, samples)
    return pcm, begin, end


def _of_equal_count(lines: Sequence[Line], most: int = 256) -> Iterator[list[Line]]:
    counts: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        counts[len(line.phonemes)].append(line)
    for count in sorted(counts):
        for begin in range(0, len(counts[count]), most):
            yield counts[count][begin : begin + most]


def _mixture(speaker: Speaker, weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    unknown = sorted(set(weights) - set(names))
    if unknown or not weights or abs(sum(weights.values()) - 1) > 1e-3:
        raise CorpusError(
            f"speaker {speaker.name} mixes {dict(weights)}: the weights must sum to 1 and name voices of the teacher"
        )
    return [float(weights.get(name, 0.0)) for name in names]


def _twentieths(speaker: Speaker) -> int:
    ratio = 20 * speaker.recipe.get("resample", 1.0)
    if round(ratio) not in TWENTIETHS or abs(ratio - round(ratio)) > 1e-6:
        raise CorpusError(f"speaker {speaker.name} is resampled by {ratio / 20}, not by 0.80 to 1.25 in steps of 0.05")
    return round(ratio)
