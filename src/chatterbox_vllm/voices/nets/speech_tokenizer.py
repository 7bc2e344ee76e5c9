"""The S3 speech tokenizer (v2, 25 Hz): audio at 16 kHz to ids in 0..6560.

A transformer with rotary positions and an FSMN memory beside each attention, then finite scalar quantization
(CosyVoice 2, Du et al., 2024; FSQ, Mentzer et al., 2023): eight values of three levels make one id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import (
    HOP_16K,
    RATE_16K,
    mel_filterbank,
    scaled_as_whisper,
    speech_tokenizer_log,
    speech_tokenizer_mel,
)
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig
from chatterbox_vllm.cpu.linear import Linear

FRAMES_PER_TOKEN = 4
_FRAMES_PER_SECOND = RATE_16K // HOP_16K
# Longer audio than a window is tokenized in windows that overlap; each gives up half the overlap on an inner side.
WINDOW_FRAMES = 30 * _FRAMES_PER_SECOND
OVERLAP_FRAMES = 4 * _FRAMES_PER_SECOND
_WINDOW_BATCH = 8

_FFT_BINS = 201
_ROPE_THETA = 10_000.0
_LEVELS = 3
# Keeps tanh away from the next level; the value is float32's nearest to 0.999.
_FSQ_LIMIT = 0.9990000128746033


class SpeechTokenizer(nn.Module):
    """Parameters as in `s3gen.safetensors` under `tokenizer.`."""

    # Some published files lack it.
    computed: ClassVar = {
        "_mel_filters": lambda shape: mel_filterbank(RATE_16K, 2 * (_FFT_BINS - 1), shape[0], RATE_16K / 2)
    }

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.encoder = _Encoder(config)
        self.quantizer = _Quantizer(config)
        self.register_buffer("_mel_filters", torch.empty(config.num_mels, _FFT_BINS))

    @torch.no_grad()
    def tokens(self, wave: torch.Tensor, max_tokens: int | None = None) -> torch.Tensor:
        """Speech tokens of a clip; one above 30 s is cut into `windows`.

        Args:
            wave: float32 [samples] at 16 kHz, longer than 200 samples, on this module's device.
            max_tokens: only so much audio is tokenized; the mel's floor is still that of the whole `wave`.

        Returns:
            int64 [ceil(frames / 4)], where frames = samples // 160.
        """
        frames = len(wave) // HOP_16K
        if max_tokens is not None:
            frames = min(frames, max_tokens * FRAMES_PER_TOKEN)
        if frames <= WINDOW_FRAMES:
            return self.tokenize_mels([self.mel(wave)[:, :frames]])[0]
        return torch.cat(list(self.windows(wave, frames)))

    @torch.no_grad()
    def windows(self, wave: torch.Tensor, frames: int) -> Iterator[torch.Tensor]:
        """Speech tokens of the first `frames` of a clip of any length, in parts, with the memory of one of them.

        As published, the clip is cut into windows of 30 s that overlap by 4 s, of which each gives up half. No window
        begins within the last 4 s, which the one before it has heard: the published merging loses up to 2 s there.
        """
        step, shared = WINDOW_FRAMES - OVERLAP_FRAMES, OVERLAP_FRAMES // FRAMES_PER_TOKEN // 2
        everything = len(wave) // HOP_16K
        blocks = range(0, everything, WINDOW_FRAMES)
        loudest = torch.stack(
            [
                speech_tokenizer_log(wave, self._mel_filters, start, min(start + WINDOW_FRAMES, everything)).max()
                for start in blocks
            ]
        ).max()
        starts = range(0, max(1, frames - OVERLAP_FRAMES), step)
        for start in starts:
            end = min(start + WINDOW_FRAMES, frames)
            log = speech_tokenizer_log(wave, self._mel_filters, start, end)
            (tokens,) = self.tokenize_mels([scaled_as_whisper(log, loudest)])
            yield tokens[shared if start else 0 : -shared if start != starts[-1] else None]

    def mel(self, wave: torch.Tensor) -> torch.Tensor:
        """The log mel [num_mels, samples // 160] that this net hears (see `features.speech_tokenizer_mel`)."""
        return speech_tokenizer_mel(wave, self._mel_filters)

    @torch.no_grad()
    def tokenize_mels(self, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        """Tokens, int64 [ceil(frames / 4)] each, of log mels [num_mels, frames] of any lengths, batched."""
        tokens: list[torch.Tensor] = []
        for first in range(0, len(mels), _WINDOW_BATCH):
            part = mels[first : first + _WINDOW_BATCH]
            lengths = torch.tensor([mel.shape[1] for mel in part], device=part[0].device)
            longest = int(lengths.max())
            batch = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in part])
            hidden, lengths = self.encoder(batch, lengths)
            ids = self.quantizer(hidden)
            tokens += [row[:n] for row, n in zip(ids, lengths.tolist(), strict=True)]
        return tokens


class _Encoder(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        size = config.hidden_size
        self.head_dim = size // config.num_heads
        self.conv1 = nn.Conv1d(config.num_mels, size, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(size, size, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mel [B, num_mels, frames] and frame counts [B] to hidden states [B, tokens, size] and token counts [B].

        Rows are independent of the padding behind them.
        """
        x = mel
        for conv in (self.conv1, self.conv2):
            x = F.gelu(conv(x * _within(lengths, x.shape[2])[:, None]))
            lengths = (lengths + 1) // 2
        x = x.transpose(1, 2)
        inside = _within(lengths, x.shape[1])
        rotation = _rotation(x.shape[1], self.head_dim, x.device)
        for block in self.blocks:
            x = block(x, inside, rotation)
        return x, lengths


class _Block(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        size = config.hidden_size
        self.attn = _MemoryAttention(config)
        self.attn_ln = nn.LayerNorm(size)
        self.mlp = nn.Sequential(Linear(size, 4 * size), nn.GELU(), Linear(4 * size, size))
        self.mlp_ln = nn.LayerNorm(size)

    def forward(self, x: torch.Tensor, inside: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attn_ln(x), inside, rotation)
        return x + self.mlp(self.mlp_ln(x))


class _MemoryAttention(nn.Module):
    """Self-attention, plus a depthwise convolution over the values (FSMN) that is added after the output layer."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.query = Linear(size, size)
        self.key = Linear(size, size, bias=False)
        self.value = Linear(size, size)
        self.out = Linear(size, size)
        self.fsmn_block = nn.Conv1d(
            size, size, config.memory_kernel, padding=(config.memory_kernel - 1) // 2, groups=size, bias=False
        )

    def forward(self, x: torch.Tensor, inside: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        kept = value * inside[:, :, None]
        memory = self.fsmn_block(kept.transpose(1, 2)).transpose(1, 2) + kept
        query, key, value = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(
            _rotate(query, rotation), _rotate(key, rotation), value, attn_mask=inside[:, None, None]
        )
        return self.out(mixed.transpose(1, 2).flatten(2)) + memory


class _Quantizer(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.project_down = nn.Linear(config.hidden_size, config.code_size)

    def levels(self, hidden: torch.Tensor) -> torch.Tensor:
        """The values in (-1, 1) that are rounded to -1, 0 or 1: [..., code_size]."""
        return self._codebook.project_down(hidden).tanh() * _FSQ_LIMIT

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Ids, int64 [...], of hidden states [..., size]: the rounded values as digits to base 3, lowest first."""
        digits = self.levels(hidden).round().long() + 1
        return (digits * _LEVELS ** torch.arange(digits.shape[-1], device=digits.device)).sum(-1)


def _within(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """True where a row of a padded batch holds data: bool [B, longest]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def _rotation(length: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Cosines and sines of the rotary angles, float32 [2, length, head_dim]; the halves of a head turn together."""
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    angles = torch.outer(torch.arange(length, device=device).float(), 1.0 / _ROPE_THETA**exponents)
    angles = torch.cat((angles, angles), dim=1)
    return torch.stack((angles.cos(), angles.sin()))


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]
