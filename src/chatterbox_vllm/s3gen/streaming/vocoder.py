"""The vocoder in stretches: for the same mel, the waveforms of stretches together are that of the whole.

A sample depends on so many frames around it and on all the phase before it. So each stretch is computed with the frames
that its edges see, the source that was made once is kept, and the phase is carried on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.checkpoint.config import HiFTConfig
from chatterbox_vllm.cuda.graphs import GraphedFunction, GraphPool
from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.noise import NoiseSource
from chatterbox_vllm.s3gen.streaming.buckets import ROWS, Buckets
from chatterbox_vllm.s3gen.streaming.stretch import COLUMNS, SEEN_BY_DECODER, SOURCE_FRAMES, StretchToWave
from chatterbox_vllm.s3gen.vocoder.batch import MelToWave

# Frames at the end of the mel that are kept: the decoder's surroundings, and the second that the flow goes on from.
KEPT_FRAMES = 50
# Frames of stretches, with those kept before them: of 16, 24 to 30, 50, 100 and 125 tokens.
FRAMES = Buckets((48, 96, 144, 240, 288), most=16 * 144)


@dataclass(frozen=True)
class VocoderState:
    """What is kept between two stretches, on the model's device.

    Attributes:
        taken: mel frames taken in.
        mel: [KEPT_FRAMES, mels], the last of them; zeros before the first.
        sourced: frames that the source is made of.
        source: [SOURCE_FRAMES * samples a frame], its last samples, from the first frame that the next stretch begins
            with; those behind the last mean nothing.
        cycles: [harmonics + 1] float64, those that the harmonics went through so far.
        spoken: frames whose samples are out.
    """

    taken: int
    mel: torch.Tensor
    sourced: int
    source: torch.Tensor
    cycles: torch.Tensor
    spoken: int

    @classmethod
    def start(cls, config: HiFTConfig, device: torch.device) -> VocoderState:
        """Before the first frame."""
        mel = torch.zeros(KEPT_FRAMES, config.num_mels, device=device)
        source = torch.zeros(SOURCE_FRAMES * config.samples_per_frame, device=device)
        return cls(0, mel, 0, source, torch.zeros(config.harmonics + 1, dtype=torch.float64, device=device), 0)


@dataclass(frozen=True)
class MelStretch:
    """The next frames of an utterance's mel, [n, mels] float32; `last` where nothing follows them."""

    state: VocoderState
    mel: torch.Tensor
    last: bool
    seed: int


@dataclass(frozen=True)
class Stretched:
    """What came of a stretch.

    Attributes:
        wave: samples [n] float32 on the model's device that are certain now, perhaps none.
        state: after it.
        finite: [2] bool on the device, whether the mel and the waveform are.
    """

    wave: torch.Tensor
    state: VocoderState
    finite: torch.Tensor


def held_back(config: HiFTConfig) -> int:
    """Frames at the end of what is known whose samples have to wait for what follows."""
    return config.f0_layers + SEEN_BY_DECODER  # each of the pitch's layers sees a frame on each side


@dataclass(frozen=True)
class _Place:
    """Where a stretch stands, in frames of its utterance: `first` of those that are computed, and what is there after.

    Attributes:
        taken, sourced, spoken: see `VocoderState`, after the stretch.
    """

    first: int
    taken: int
    sourced: int
    spoken: int

    @classmethod
    def of(cls, stretch: MelStretch, config: HiFTConfig) -> _Place:
        old = stretch.state
        taken = old.taken + len(stretch.mel)
        sourced = taken if stretch.last else max(old.sourced, taken - config.f0_layers)
        spoken = taken if stretch.last else max(old.spoken, sourced - SEEN_BY_DECODER)
        return cls(max(0, old.spoken - SEEN_BY_DECODER), taken, sourced, spoken)

    @property
    def frames(self) -> int:
        """That are computed."""
        return self.taken - self.first

    def columns(self, old: VocoderState, seed: int) -> tuple[int, ...]:
        """The stretch's row of `StretchToWave`'s table."""
        kept_from = max(0, self.spoken - SEEN_BY_DECODER) - self.first
        return seed, self.first, self.frames, old.sourced - self.first, self.sourced - self.first, kept_from


class VocoderInStretches:
    """Many utterances together, a stretch of each; one comes out as it would alone.

    Reads the weights as they are now; make a new one after they were cast or moved.
    """

    def __init__(self, mel_to_wave: MelToWave, noise: NoiseSource, pool: GraphPool):
        self.config, self.noise = mel_to_wave.config, noise
        function = StretchToWave(mel_to_wave, noise)
        self._bucketed = mel_to_wave.execution.cuda_graphs
        most = len(ROWS) * len(FRAMES.sizes)
        self._graphs = GraphedFunction(function, most, pool) if self._bucketed else None
        self._speak: Callable[..., tuple[torch.Tensor, ...]] = self._graphs or function

    def __call__(self, stretches: Sequence[MelStretch]) -> list[Stretched]:
        places = [_Place.of(stretch, self.config) for stretch in stretches]
        found: dict[int, Stretched] = {}
        groups = [list(range(len(stretches)))]
        if self._bucketed:
            groups = FRAMES.groups([place.frames for place in places])
        for group in groups:
            some = self._together([stretches[i] for i in group], [places[i] for i in group])
            found |= zip(group, some, strict=True)
        return [found[i] for i in range(len(stretches))]

    def record_graphs(self, most_rows: int) -> int:
        """Record now the graphs for batches of so many rows, the largest first; nothing without CUDA graphs.

        Returns:
            How many there are.
        """
        if self._graphs is None:
            return 0
        device = self.noise.device
        state = VocoderState.start(self.config, device)
        for rows, frames in FRAMES.shapes(most_rows):
            self._graphs.record(
                state.mel.new_zeros(rows, frames, self.config.num_mels),
                state.source.expand(rows, -1),
                state.cycles.expand(rows, -1),
                torch.zeros(COLUMNS, rows, dtype=torch.int64, device=device),
            )
        return self._graphs.count

    def _together(self, stretches: Sequence[MelStretch], places: Sequence[_Place]) -> list[Stretched]:
        count, lengths = len(stretches), [place.frames for place in places]
        rows, frames = FRAMES.shape(lengths) if self._bucketed else (count, max(lengths))
        states = [stretch.state for stretch in stretches]
        filled = [*states, *[states[-1]] * (rows - count)]  # rows that nobody hears
        mels = torch.cat([*(state.mel for state in states), *(stretch.mel for stretch in stretches)])
        mels = torch.cat([mels, mels.new_zeros(1, mels.shape[1])])
        table, computed, kept = self._tables(stretches, places, rows, frames)
        rate = self.config.samples_per_frame
        wave, source, cycles, finite = self._speak(
            mels.index_select(0, computed).view(rows, frames, -1),
            torch.stack([state.source for state in filled]),
            torch.stack([state.cycles for state in filled]),
            table,
        )
        # Copies, each of its own: a graph's memory is the next call's, and a view would hold all of a batch.
        of_state = zip(
            torch.ops.aten.unbind_copy(mels.index_select(0, kept).view(count, KEPT_FRAMES, -1)),
            torch.ops.aten.unbind_copy(source[:count]),
            torch.ops.aten.unbind_copy(cycles[:count]),
            strict=True,
        )
        cuts: list[int] = []  # of each row: what is out, what comes out now, what is not certain
        for old, place in zip(states, places, strict=True):
            begin, end = (rate * (spoken - place.first) for spoken in (old.spoken, place.spoken))
            cuts += begin, end - begin, rate * frames - end
        waves = wave[:count].clone().flatten().split(cuts)[1::3]
        return [
            Stretched(own, VocoderState(place.taken, mel, place.sourced, source, cycles, place.spoken), fine)
            for own, place, (mel, source, cycles), fine in zip(
                waves, places, of_state, finite[:count].clone().unbind(0), strict=True
            )
        ]

    def _tables(
        self, stretches: Sequence[MelStretch], places: Sequence[_Place], rows: int, frames: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """On the device: `StretchToWave`'s table, and where the frames that are computed and kept lie.

        They lie in the kept frames of all states, then the new ones of all stretches, then one of zeros.
        """
        new = np.array([len(stretch.mel) for stretch in stretches])
        old = np.array([stretch.state.taken for stretch in stretches])
        first = np.array([place.first for place in places])
        behind = KEPT_FRAMES * (1 + np.arange(len(stretches)))  # what is kept of a row ends here
        begins = KEPT_FRAMES * len(stretches) + new.cumsum() - new
        nothing = KEPT_FRAMES * len(stretches) + int(new.sum())

        def place_of(frame: np.ndarray) -> np.ndarray:
            """[rows, n] numbers of frames in their utterances to their places."""
            ahead = frame - old[:, None]
            place = np.where(ahead < 0, behind[:, None] + ahead, begins[:, None] + ahead)
            return np.where((frame < 0) | (ahead >= new[:, None]), nothing, place)

        computed = np.full((rows, frames), nothing)
        computed[: len(stretches)] = place_of(first[:, None] + np.arange(frames))
        kept = place_of((old + new)[:, None] + np.arange(-KEPT_FRAMES, 0))
        table = np.zeros((COLUMNS, rows), dtype=np.int64)
        for i, (stretch, place) in enumerate(zip(stretches, places, strict=True)):
            table[:, i] = place.columns(stretch.state, stretch.seed)
        parts = [table.ravel(), computed.ravel(), kept.ravel()]
        sent = to_device(torch.from_numpy(np.concatenate(parts)), self.noise.device)
        on_device, computed_at, kept_at = sent.split([len(part) for part in parts])
        return on_device.view(COLUMNS, rows), computed_at, kept_at
