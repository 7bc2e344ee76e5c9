"""The vocoder in stretches: for the same mel, the waveforms of stretches together are that of the whole.

A sample depends on so many frames around it and on all the phase before it. So each stretch is computed with the frames
that its edges see, the source that was made once is kept, and the phase is carried on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm.checkpoint.config import HiFTConfig
from chatterbox_vllm.s3gen.noise import NoiseSource
from chatterbox_vllm.s3gen.vocoder.batch import MelToWave, fade_in

# Frames on each side that HiFT's decoder sees from a frame: 13.1 of the mel and 14.3 of the source (measured by
# perturbation in float64, at the published kernels and rates).
SEEN_BY_DECODER = 15


@dataclass(frozen=True)
class VocoderState:
    """What is kept between two stretches, on the model's device.

    Attributes:
        taken: mel frames taken in.
        mel: [n, mels], the last of them.
        sourced: frames that the source is made of.
        source: [m], its last samples.
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
        mel, source = torch.empty(0, config.num_mels, device=device), torch.empty(0, device=device)
        return cls(0, mel, 0, source, torch.zeros(config.harmonics + 1, dtype=torch.float64, device=device), 0)

    def mel_from(self, frame: int) -> torch.Tensor:
        """The mel from a frame on."""
        return self.mel[len(self.mel) - self.taken + frame :]


@dataclass(frozen=True)
class MelStretch:
    """The next frames of an utterance's mel, [n, mels] float32; `last` where nothing follows them."""

    state: VocoderState
    mel: torch.Tensor
    last: bool
    seed: int


def held_back(config: HiFTConfig) -> int:
    """Frames at the end of what is known whose samples have to wait for what follows."""
    return config.f0_layers + SEEN_BY_DECODER  # each of the pitch's layers sees a frame on each side


class VocoderInStretches:
    """Many utterances together, a stretch of each; one comes out as it would alone."""

    def __init__(self, mel_to_wave: MelToWave, noise: NoiseSource):
        self.mel_to_wave, self.hift, self.noise = mel_to_wave, mel_to_wave.hift, noise
        self.config = mel_to_wave.config

    def __call__(self, stretches: Sequence[MelStretch]) -> list[tuple[torch.Tensor, VocoderState]]:
        """For each stretch the samples [n] float32 that are certain now, perhaps none, and the state after it."""
        states = [self._took(stretch) for stretch in stretches]
        states = self._with_source(stretches, states)
        return self._spoken(stretches, states)

    def _took(self, stretch: MelStretch) -> VocoderState:
        old = stretch.state
        mel = torch.cat([old.mel, stretch.mel])
        return VocoderState(old.taken + len(stretch.mel), mel, old.sourced, old.source, old.cycles, old.spoken)

    def _with_source(self, stretches: Sequence[MelStretch], states: Sequence[VocoderState]) -> list[VocoderState]:
        """Make the source of the frames whose pitch is certain."""
        seen, rate = self.config.f0_layers, self.config.samples_per_frame
        ends = [s.taken if stretch.last else s.taken - seen for stretch, s in zip(stretches, states, strict=True)]
        new, done = [i for i, end in enumerate(ends) if end > states[i].sourced], list(states)
        if not new:
            return done
        firsts = [max(0, states[i].sourced - seen) for i in new]
        mels = [states[i].mel_from(first) for i, first in zip(new, firsts, strict=True)]
        pitch = self.hift.pitch(pad_sequence(mels, batch_first=True).transpose(1, 2), [len(mel) for mel in mels])
        f0 = [
            row[states[i].sourced - first : ends[i] - first] for i, first, row in zip(new, firsts, pitch, strict=True)
        ]
        seeds = [stretches[i].seed for i in new]
        noise = [
            self.noise.source(seed, states[i].sourced, len(own)).T for i, seed, own in zip(new, seeds, f0, strict=True)
        ]
        source, cycles = self.hift.m_source.continued(
            pad_sequence(f0, batch_first=True),
            torch.stack([self.noise.phase(seed) for seed in seeds]),
            pad_sequence(noise, batch_first=True).transpose(1, 2),
            torch.stack([states[i].cycles for i in new]),
        )
        for n, i in enumerate(new):
            old, made = states[i], source[n, : rate * len(f0[n])]
            whole = torch.cat([old.source, made])
            done[i] = VocoderState(old.taken, old.mel, ends[i], whole, cycles[n], old.spoken)
        return done

    def _spoken(
        self, stretches: Sequence[MelStretch], states: Sequence[VocoderState]
    ) -> list[tuple[torch.Tensor, VocoderState]]:
        """Decode the frames whose surroundings are certain, and forget what no later frame sees."""
        rate = self.config.samples_per_frame
        ends = [
            s.taken if stretch.last else max(s.spoken, s.sourced - SEEN_BY_DECODER)
            for stretch, s in zip(stretches, states, strict=True)
        ]
        waves = [state.source[:0] for state in states]
        new = [i for i, end in enumerate(ends) if end > states[i].spoken]
        firsts = {i: max(0, states[i].spoken - SEEN_BY_DECODER) for i in new}
        lengths = [states[i].sourced - firsts[i] for i in new]
        for group in self.mel_to_wave.groups(lengths, self.noise.device):
            rows = [new[n] for n in group]
            mels = [states[i].mel_from(firsts[i])[: states[i].sourced - firsts[i]] for i in rows]
            sources = [states[i].source[-rate * len(mel) :] for i, mel in zip(rows, mels, strict=True)]
            decoded = self.mel_to_wave.decode(
                pad_sequence(mels, batch_first=True).transpose(1, 2),
                [len(mel) for mel in mels],
                pad_sequence(sources, batch_first=True),
            )
            for i, row in zip(rows, decoded, strict=True):
                state, first = states[i], firsts[i]
                waves[i] = fade_in(row[rate * (state.spoken - first) : rate * (ends[i] - first)], rate * state.spoken)
        return [(wave, self._shortened(state, end)) for wave, state, end in zip(waves, states, ends, strict=True)]

    def _shortened(self, state: VocoderState, spoken: int) -> VocoderState:
        first = max(0, min(spoken - SEEN_BY_DECODER, state.sourced - self.config.f0_layers))
        samples = self.config.samples_per_frame * (state.sourced - max(0, spoken - SEEN_BY_DECODER))
        # Copies: views would hold all of a batch.
        source = state.source[len(state.source) - samples :].clone()
        return VocoderState(
            state.taken, state.mel_from(first).clone(), state.sourced, source, state.cycles.clone(), spoken
        )
