"""The small model in a stream, which speaks: the seams of its chunks are as good as the rest."""

from __future__ import annotations

from typing import Any

import torch

from chatterbox_vllm import AudioChunk
from chatterbox_vllm.s3gen.model import S3GenRequest

from .test_s3gen_streaming import log_mel

TEXT = "Every evening the keeper climbed the narrow stairs to light the lamp."
HELD_BACK = 20 * 480  # samples that the vocoder keeps: what the flow made last begins as much after what is out
HOP = 240


def pitch(wave: torch.Tensor) -> torch.Tensor:
    """[frames of 10 ms] in Hz, by autocorrelation; zero where there is no voice."""
    frames = wave.unfold(0, 1200, HOP)
    frames = frames - frames.mean(1, keepdim=True)
    alike = torch.fft.irfft(torch.fft.rfft(frames, 4096).abs().square())[:, :400]
    strength, period = (alike / (alike[:, :1] + 1e-9))[:, 60:].max(1)
    voiced = (strength > 0.6) & (frames.square().mean(1) > 1e-5)
    return torch.where(voiced, 24_000 / (period + 60), 0)


def jumps(wave: torch.Tensor) -> torch.Tensor:
    """[frames] octaves between neighbours, zero where one of them has no voice."""
    f0 = pitch(wave)
    both = (f0[1:] > 0) & (f0[:-1] > 0)
    return torch.where(both, (f0[1:].clamp(min=1).log2() - f0[:-1].clamp(min=1).log2()).abs(), 0)


def test_seams_are_not_heard(speaker: Any) -> None:
    (whole,) = speaker.generate_iter([TEXT], seed=5)
    *chunks, result = speaker.generate_stream(TEXT, seed=5)
    assert all(isinstance(chunk, AudioChunk) for chunk in chunks) and len(chunks) > 2
    assert result.speech_tokens == whole.speech_tokens and result.samples == len(whole.audio)
    assert result.timings.first_audio < result.timings.total / 2
    streamed = torch.cat([chunk.audio for chunk in chunks])
    seams = torch.tensor([(chunk.start + HELD_BACK) // HOP for chunk in chunks[1:]])
    near = (seams[:, None] + torch.arange(-4, 4)).flatten().clamp(max=len(streamed) // HOP - 6)

    model, prompt = speaker.s3gen_stage.model, speaker.voice.prompt
    tokens = torch.tensor(whole.speech_tokens)
    other_noise = S3GenRequest(tokens, prompt, model.draw_noise(6, len(tokens), prompt))
    (other,) = model.synthesize([other_noise])
    from_whole = (log_mel(streamed) - log_mel(whole.audio)).abs().mean(0)[near]
    from_other = (log_mel(other) - log_mel(whole.audio)).abs().mean(0)
    assert from_whole.mean() < from_other.mean() and from_whole.max() < 2 * from_other.mean()
    natural = jumps(whole.audio)
    assert jumps(streamed)[near].max() <= natural[natural > 0].quantile(0.99)
    edges = torch.tensor([chunk.start for chunk in chunks[1:]])
    assert (streamed[edges] - streamed[edges - 1]).abs().max() <= whole.audio.diff().abs().max()
