"""What S3Gen is asked to speak, and what it refuses before any work is done."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.prompt import FlowPrompt


@dataclass(frozen=True)
class S3GenRequest:
    """One utterance: speech tokens [n] int64, the prompt to speak them after, and its noise (`S3Gen.draw_noise`)."""

    speech_tokens: torch.Tensor
    prompt: FlowPrompt
    noise: S3GenNoise


def mel_frames(speech_tokens: int, prompt: FlowPrompt) -> tuple[int, int]:
    """Mel frames of prompt and generation together, and of the generation alone, for that many speech tokens.

    With an odd frame at the prompt's end the generation is one frame shorter.
    """
    total = UPSAMPLING * (len(prompt.tokens) + speech_tokens)
    return total, total - len(prompt.mel)


def require_speech(speech_tokens: int) -> None:
    """Raises `GenerationError` where there is nothing to speak."""
    if speech_tokens < 1:
        raise GenerationError("there are no speech tokens to speak; was the text empty, or did it end at once?")


def check_request(request: S3GenRequest, config: S3GenConfig) -> None:
    """Raises `GenerationError` for no tokens or one outside the codebook, `ConfigError` for noise of another shape."""
    tokens = request.speech_tokens
    require_speech(len(tokens))
    check_ids("speech", tokens, config)
    total, generated = mel_frames(len(tokens), request.prompt)
    hift = config.hift
    expected = {
        "z": (hift.num_mels, total),
        "phase": (hift.harmonics + 1,),
        "source": (hift.harmonics + 1, generated * hift.samples_per_frame),
    }
    for name, shape in expected.items():
        found = tuple(getattr(request.noise, name).shape)
        if found != shape:
            raise ConfigError(f"noise.{name} has shape {found}, this utterance needs {shape}; use S3Gen.draw_noise")


def check_ids(name: str, ids: torch.Tensor, config: S3GenConfig) -> None:
    """Raises `GenerationError` for an id that is none of the codebook's."""
    own = ids.numpy()
    lowest, highest = (int(own.min()), int(own.max())) if len(own) else (0, 0)
    if lowest < 0 or highest >= config.flow.vocab_size:
        raise GenerationError(
            f"{name} token {lowest if lowest < 0 else highest} is outside the codebook "
            f"(0 to {config.flow.vocab_size - 1}); drop control tokens before synthesis"
        )
