"""The voice encoder: a clip of any length to one speaker embedding, which conditions T3.

A GE2E-style LSTM (Wan et al., 2018, "Generalized End-to-End Loss for Speaker Verification") over overlapping pieces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import trim_silence, voice_encoder_mel
from chatterbox_vllm.checkpoint.config import VoiceEncoderConfig

PARTIAL_FRAMES = 160
# 1.3 partials a second at 16 kHz: round(16000 / 1.3 / 160).
PARTIAL_STEP = 77
# A last partial counts if this share of it is speech; else its frames are left out.
MIN_COVERAGE = 0.8
_BATCH = 64


class VoiceEncoder(nn.Module):
    """Parameters as in `ve.safetensors`, without prefix."""

    def __init__(self, config: VoiceEncoderConfig):
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(config.num_mels, config.hidden_size, config.num_layers, batch_first=True)
        self.proj = nn.Linear(config.hidden_size, config.embedding_size)
        # The training loss's scale and offset; kept so that the file is read whole.
        self.similarity_weight = nn.Parameter(torch.empty(1), requires_grad=False)
        self.similarity_bias = nn.Parameter(torch.empty(1), requires_grad=False)

    def quantizable_layers(self) -> list[str]:
        """Names of the layers whose weights may be quantized."""
        return ["lstm", "proj"]

    def forward(self, partials: torch.Tensor) -> torch.Tensor:
        """Embeddings of unit length, [n, embedding_size], of mel pieces [n, 160, num_mels]."""
        _, (hidden, _) = self.lstm(partials)
        return F.normalize(F.relu(self.proj(hidden[-1])))

    @torch.no_grad()
    def embed(self, wave: torch.Tensor) -> torch.Tensor:
        """Speaker embedding of a whole clip.

        Args:
            wave: float32 [samples] at 16 kHz, on this module's device.

        Returns:
            float32 [1, embedding_size], of unit length: the mean over partials of the clip without its silent ends.
        """
        start, end = trim_silence(wave)
        mel = voice_encoder_mel(wave[start:end], self.config.num_mels)
        embeddings = torch.cat([self(batch) for batch in split_partials(mel).split(_BATCH)])
        return F.normalize(embeddings.mean(0, keepdim=True))


def split_partials(mel: torch.Tensor) -> torch.Tensor:
    """Cut a mel [frames, bins] into overlapping pieces [n, 160, bins], 77 frames apart; the last is zero-padded."""
    frames = mel.shape[0]
    count, rest = divmod(max(frames - PARTIAL_FRAMES + PARTIAL_STEP, 0), PARTIAL_STEP)
    if count == 0 or (rest + PARTIAL_FRAMES - PARTIAL_STEP) / PARTIAL_FRAMES >= MIN_COVERAGE:
        count += 1
    length = PARTIAL_FRAMES + PARTIAL_STEP * (count - 1)
    padded = F.pad(mel, (0, 0, 0, max(0, length - frames)))[:length]
    return padded.unfold(0, PARTIAL_FRAMES, PARTIAL_STEP).transpose(1, 2).contiguous()
