"""Pitch of a whole corpus at once, on a GPU or a CPU: what the vocoder's pitch predictor is taught.

Boersma 1993, Accurate short-term analysis of the fundamental frequency: peaks of the windowed autocorrelation divided
by that of the window are candidates, and a shortest path through them is the contour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_24K
from training.frames import windows_of

LOWEST_HZ, HIGHEST_HZ = 60.0, 550.0
_PERIODS = 3  # of the lowest pitch in a window
_CANDIDATES = 8
# Costs, as in the article, a frame being 20 ms rather than 10.
_SILENCE, _VOICING = 0.03, 0.45
_OCTAVE, _JUMP, _SWITCH = 0.01, 0.2, 0.1
_IMPOSSIBLE = -1e3
_PATHS_AT_ONCE = 4096


@torch.no_grad()
def pitch_of(audio: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """Fundamental frequency of every frame, float32 [all frames] in Hz, 0 where there is none.

    Args:
        audio: int16 [480 * all frames].
        frames: of each utterance.
    """
    candidates = [_candidates(windows) for _, windows in windows_of(audio, frames, _window_size())]
    hertz, strength, peak = (torch.cat(part) for part in zip(*candidates, strict=True))
    counts = np.asarray(frames)
    owner = torch.arange(len(counts), device=audio.device).repeat_interleave(
        torch.as_tensor(counts, device=audio.device)
    )
    loudest = torch.zeros(len(counts), device=audio.device).scatter_reduce_(0, owner, peak, "amax")
    loudness = peak / loudest.clamp(min=1e-6)[owner]
    unvoiced = _VOICING + (2 - loudness / (_SILENCE / (1 + _VOICING))).clamp(min=0)
    height = strength + _OCTAVE * torch.log2(hertz.clamp(min=LOWEST_HZ) / LOWEST_HZ)
    scores = torch.where(hertz > 0, height, _IMPOSSIBLE)
    hertz = torch.cat([hertz, torch.zeros_like(hertz[:, :1])], dim=1)
    scores = torch.cat([scores, unvoiced[:, None]], dim=1)
    return _contours(hertz, scores, counts)


def _window_size() -> int:
    return int(_PERIODS * RATE_24K / LOWEST_HZ) // 2 * 2


def _candidates(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of windows [n, size]: pitches [n, candidates] in Hz (0: none), their strengths, and the peak [n] of each."""
    size = windows.shape[1]
    windows = windows - windows.mean(1, keepdim=True)
    middle = windows[:, size // 3 : 2 * size // 3]
    hann = torch.hann_window(size, device=windows.device)
    shortest, longest = int(RATE_24K / HIGHEST_HZ), int(RATE_24K / LOWEST_HZ)
    length = 1 << (size + longest + 2 - 1).bit_length()

    def correlation(x: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(x, n=length).abs().square()
        r = torch.fft.irfft(power, n=length)[..., : longest + 2]
        return r / r[..., :1].clamp(min=1e-9)

    r = correlation(windows * hann) / correlation(hann)
    inner = r[:, shortest : longest + 1]
    before, after = r[:, shortest - 1 : longest], r[:, shortest + 1 : longest + 2]
    is_peak = (inner > before) & (inner >= after) & (inner > 0.5 * _VOICING)
    strength, index = torch.where(is_peak, inner, -1.0).topk(_CANDIDATES, dim=1)
    # The top of the parabola through a peak and its neighbours.
    a, b, c = (part.gather(1, index) for part in (before, inner, after))
    bend = (a - 2 * b + c).clamp(max=-1e-9)
    shift = (0.5 * (a - c) / bend).clamp(-0.5, 0.5)
    height = b - 0.25 * (a - c) * shift
    found = strength > 0
    hertz = RATE_24K / (index + shortest + shift)
    # Above one is what noise does to short lags.
    height = torch.where(height > 1, 1 / height.clamp(min=1e-6), height)
    return hertz.where(found, 0), height.where(found, 0), middle.abs().amax(1)


def _contours(hertz: torch.Tensor, scores: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """The best path of every utterance through its frames' candidates, utterances of like lengths side by side."""
    device = hertz.device
    begins = np.cumsum(counts) - counts
    result = torch.zeros(len(hertz), device=device)
    order = np.argsort(counts)
    for some in np.split(order, range(_PATHS_AT_ONCE, len(order), _PATHS_AT_ONCE)):
        count = torch.as_tensor(counts[some], device=device)
        longest = int(counts[some].max())
        step = torch.arange(longest, device=device)
        inside = step < count[:, None]
        place = torch.as_tensor(begins[some], device=device)[:, None] + torch.minimum(step, count[:, None] - 1)
        path = _best_path(hertz[place], scores[place], inside)
        result[place[inside]] = path[inside]
    return result


def _best_path(hertz: torch.Tensor, scores: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Viterbi's path [rows, frames] through candidates [rows, frames, n]; frames past the end cost nothing."""
    octaves = torch.log2(hertz.clamp(min=1.0))
    voiced = hertz > 0
    total = scores[:, 0]
    choices = []
    for t in range(1, hertz.shape[1]):
        jump = _JUMP * (octaves[:, t, :, None] - octaves[:, t - 1, None, :]).abs()
        both = voiced[:, t, :, None] & voiced[:, t - 1, None, :]
        switch = _SWITCH * (voiced[:, t, :, None] ^ voiced[:, t - 1, None, :])
        best, choice = (total[:, None, :] - torch.where(both, jump, switch)).max(-1)
        stay = torch.arange(total.shape[1], device=total.device).expand_as(choice)
        here = inside[:, t, None]
        total = torch.where(here, best + scores[:, t], total)
        choices.append(torch.where(here, choice, stay))
    last = total.argmax(-1, keepdim=True)
    path = [last]
    for choice in reversed(choices):
        path.append(choice.gather(1, path[-1]))
    picked = torch.stack(path[::-1], dim=1)
    return hertz.gather(2, picked)[..., 0]
