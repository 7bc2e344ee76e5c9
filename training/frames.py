"""A whole corpus as tensors on the training device: audio, mels, pitch, one after the other without padding.

Frame i of an utterance is centred on its sample 480 i + 240, and an utterance has two frames for every speech token,
whatever its last part of a token: its audio ends in silence or is cut by less than 10 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.audio.features import HOP_24K, RATE_24K, mel_filterbank
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from training.codes import tokens_of
from training.data import Corpus

MEL_FFT = 1920
_MEL_MAX_HZ = 8000.0
_FRAMES_AT_ONCE = 16_384
_FULL_SCALE = 32_768.0


@dataclass(frozen=True, eq=False)
class Features:
    """Of all utterances of a corpus, or of the first so many.

    Attributes:
        audio: int16 [samples], 480 for each frame.
        mels: float16 [frames, bins], see `chatterbox_vllm.audio.features.prompt_mel`.
        counts: int64 [utterances] on the CPU, tokens of each; frames are twice as many.
    """

    audio: torch.Tensor
    mels: torch.Tensor
    counts: np.ndarray

    @property
    def begins(self) -> np.ndarray:
        """int64 [utterances], the token at which each begins."""
        return np.cumsum(self.counts) - self.counts

    @classmethod
    def of(cls, corpus: Corpus, device: torch.device, num_mels: int) -> Features:
        """Compute the mels of `corpus` on `device`; an hour of speech takes 0.2 GB there."""
        counts = np.array([tokens_of(u.samples) for u in corpus.utterances], dtype=np.int64)
        frames = UPSAMPLING * counts
        audio = np.zeros(int(frames.sum()) * HOP_24K, dtype=np.int16)
        begin = 0
        for i, count in enumerate(frames):
            wave = corpus.audio(i)[: count * HOP_24K]
            audio[begin : begin + len(wave)] = wave
            begin += count * HOP_24K
        on_device = torch.from_numpy(audio).to(device)
        mels = torch.empty(int(frames.sum()), num_mels, dtype=torch.float16, device=device)
        filters = mel_filterbank(RATE_24K, MEL_FFT, num_mels, _MEL_MAX_HZ).to(device)
        hann = torch.hann_window(MEL_FFT, device=device)
        for first, windows in windows_of(on_device, frames, MEL_FFT):
            spectrum = torch.view_as_real(torch.fft.rfft(windows * hann))
            magnitude = (spectrum.square().sum(-1) + 1e-9).sqrt()
            mels[first : first + len(windows)] = (magnitude @ filters.T).clamp(min=1e-5).log().half()
        return cls(on_device, mels, counts)


def windows_of(audio: torch.Tensor, frames: Sequence[int], size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The samples around every frame, some frames at a time: (number of the first frame, float32 [n, size]).

    The window of a frame is centred on the middle of its 480 samples. Past the ends of an utterance it sees the
    utterance mirrored about its first or last sample.

    Args:
        audio: int16 [480 * all frames].
        frames: of each utterance.
    """
    device = audio.device
    counts = torch.as_tensor(np.asarray(frames), device=device)
    ends = counts.cumsum(0)
    inside = torch.arange(size, device=device) - (size - HOP_24K) // 2
    for first in range(0, int(ends[-1]), _FRAMES_AT_ONCE):
        frame = torch.arange(first, min(first + _FRAMES_AT_ONCE, int(ends[-1])), device=device)
        utterance = torch.searchsorted(ends, frame, right=True)
        begin = (ends[utterance] - counts[utterance]) * HOP_24K
        last = counts[utterance] * HOP_24K - 1
        place = ((frame * HOP_24K - begin)[:, None] + inside).abs()
        place = last[:, None] - (last[:, None] - place).abs()
        place.clamp_(min=0)  # of an utterance shorter than a window
        yield first, audio[begin[:, None] + place].float() / _FULL_SCALE
