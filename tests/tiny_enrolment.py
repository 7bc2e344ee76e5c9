"""Nets of enrolment of a few weights each, for tests in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from chatterbox_vllm.audio.features import mel_filterbank
from chatterbox_vllm.checkpoint.config import (
    FlowConfig,
    ModelConfig,
    S3GenConfig,
    SpeechTokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
    XVectorConfig,
)
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder
from chatterbox_vllm.voices.nets.xvector import CAMPPlus

from .made_up_clips import babble

TINY = ModelConfig(
    t3=T3Config(speaker_embedding_size=8),
    voice_encoder=VoiceEncoderConfig(num_mels=10, hidden_size=16, num_layers=2, embedding_size=8),
    s3gen=S3GenConfig(
        tokenizer=SpeechTokenizerConfig(num_mels=16, hidden_size=32, num_heads=2, num_layers=2, memory_kernel=5),
        xvector=XVectorConfig(16, 2, 8, 4, 2, (2, 2), (1, 2), embedding_size=6),
        flow=FlowConfig(num_mels=20),
    ),
)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        centred = "norm" in name or "_ln" in name or "bn" in name or "shortcut.1" in name
        if centred and "bias" not in name:
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(noise * (0.05 if tensor.dim() == 1 else 1.5 / tensor[0].numel() ** 0.5))
    return module


def tiny_tokenizer() -> SpeechTokenizer:
    """One whose tokens differ from place to place."""
    net = randomised(SpeechTokenizer(TINY.s3gen.tokenizer))
    net._mel_filters.copy_(mel_filterbank(16_000, 400, 16, 8000.0))
    # Codes spread over all levels, so that tokens differ from place to place.
    project = net.quantizer._codebook.project_down
    with torch.no_grad():
        hidden, _ = net.encoder(net.mel(torch.from_numpy(babble(4, 16_000)))[None], torch.tensor([400]))
        project.weight /= project(hidden).std((0, 1))[:, None]
        project.bias -= project(hidden).mean((0, 1))
    return net


def tiny_enroller(tokenizer: SpeechTokenizer, directory: Path) -> VoiceEnroller:
    """Of files that are written into a directory."""
    nets = {"tokenizer.": tokenizer, "speaker_encoder.": randomised(CAMPPlus(TINY.s3gen.xvector))}
    s3gen = {prefix + key: value for prefix, net in nets.items() for key, value in net.state_dict().items()}
    save_file(s3gen, directory / "s3gen.safetensors")
    save_file(randomised(VoiceEncoder(TINY.voice_encoder)).state_dict(), directory / "ve.safetensors")
    return VoiceEnroller(TINY, Weights(directory / "s3gen.safetensors"), Weights(directory / "ve.safetensors"))
