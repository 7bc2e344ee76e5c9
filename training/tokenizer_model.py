"""The speech tokenizer as it is trained: with heads that are thrown away afterwards."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import RATE_16K, mel_filterbank
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from training.data import CorpusError
from training.loop import load_checkpoint
from training.weights import WEIGHTS, load_weights

MEL_BINS = 80  # of the flow's mel, two frames a token
MEL_FRAMES = 2
PITCH = 2  # numbers for it beside the bins: how high it is, and whether there is any
CTC_STEPS = 2  # a token: 25 steps a second are too few for quick speech, where two alike need a blank between them
# Rounding keeps all three levels in use where tanh sees a deviation of this: a third of a normal distribution lies
# within atanh(0.5) = 0.549 of zero.
DEVIATION = 1.275


class Heads(nn.Module):
    """What the quantized values are taught by.

    Args:
        codes: values of a token.
        phonemes: the blank included.
        speakers: of the corpus.
    """

    def __init__(self, codes: int, phonemes: int, speakers: int, width: int = 256):
        super().__init__()
        self.phonemes = nn.ModuleList([nn.Linear(codes, width), *(_Context(width, 3) for _ in range(2))])
        self.phoneme_logits = nn.Linear(width, CTC_STEPS * phonemes)
        self.speaker = nn.Embedding(speakers, width)
        self.sound = nn.ModuleList([nn.Linear(codes, width), *(_Context(width, 5) for _ in range(3))])
        self.mel = nn.Linear(width, MEL_FRAMES * (MEL_BINS + PITCH))

    def forward(self, codes: torch.Tensor, inside: torch.Tensor, speaker: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """codes [B, T, codes], inside [B, T] -> logits [B, CTC_STEPS * T, phonemes], and by mel frame of the flow
        [B, 2 T, MEL_BINS + 2]: its bins, the pitch in octaves from the speaker's mean, the logit of there being any.
        """
        x = self.phonemes[0](codes)
        for context in self.phonemes[1:]:
            x = context(x, inside)
        logits = self.phoneme_logits(x).unflatten(2, (CTC_STEPS, -1)).flatten(1, 2)
        y = self.sound[0](codes) + self.speaker(speaker)[:, None]
        for context in self.sound[1:]:
            y = context(y, inside)
        return logits, self.mel(y).unflatten(2, (MEL_FRAMES, -1)).flatten(1, 2)


class _Context(nn.Module):
    """A residual convolution over neighbouring tokens: a short one, so that tokens say what happens where they are."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        seen = self.norm(x) * inside[..., None]
        return x + self.out(F.gelu(self.mix(seen.transpose(1, 2)).transpose(1, 2)))


class Trained(nn.Module):
    """The tokenizer with its heads."""

    def __init__(self, config: SpeechTokenizerConfig, phonemes: int, speakers: int):
        super().__init__()
        self.phonemes = phonemes
        self.tokenizer = SpeechTokenizer(config)
        self.tokenizer._mel_filters.copy_(mel_filterbank(RATE_16K, 400, config.num_mels, RATE_16K / 2))
        self.heads = Heads(config.code_size, phonemes, speakers)

    def quantized(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the rounding gets before tanh, its result, both [B, T, codes], and token counts [B].

        The gradient passes the rounding as if it were not there (straight-through).

        Args:
            mel: [B, bins, frames].
            frames: how many of them each has, [B].
        """
        hidden, counts = self.tokenizer.encoder(mel, frames)
        quantizer = self.tokenizer.quantizer
        with torch.autocast(mel.device.type, enabled=False):
            hidden = hidden.float()
            levels = quantizer.levels(hidden)
            raw = quantizer._codebook.project_down(hidden)
        return raw, levels + (levels.round() - levels).detach(), counts

    @torch.no_grad()
    def spread_levels(self, mel: torch.Tensor, frames: torch.Tensor) -> None:
        """Make the layer before the rounding give independent values that use all three levels from the first step on.

        Its rows become the principal components of the hidden states, each scaled to the deviation wanted.
        """
        hidden, counts = self.tokenizer.encoder(mel, frames)
        states = hidden.float()[within(counts, hidden.shape[1])]
        layer = self.tokenizer.quantizer._codebook.project_down
        centred = states - states.mean(0)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(states))
        kept = slice(-layer.out_features, None)
        scale = DEVIATION / variances[kept].clamp(min=1e-8).sqrt()
        layer.weight.copy_(directions[:, kept].T * scale[:, None])
        layer.bias.copy_(-layer.weight @ states.mean(0))


def load_trained(out: Path) -> Trained:
    """The tokenizer and its heads from the weights that a training left in `out`.

    Raises:
        CorpusError: the weights are those of a model, which has no heads.
    """
    state = load_weights(out)
    if "heads.phoneme_logits.bias" not in state:
        raise CorpusError(f"{out} came from a model and has no phoneme heads; train it on, or give T3 --spoken 0")
    config = SpeechTokenizerConfig(**load_checkpoint(out / WEIGHTS)["config"])
    phonemes = len(state["heads.phoneme_logits.bias"]) // CTC_STEPS
    model = Trained(config, phonemes, len(state["heads.speaker.weight"]))
    model.load_state_dict(state)
    return model.eval()


def within(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """True where rows of these lengths hold something, bool [B, longest]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def codes_of(tokens: torch.Tensor, codes: int = 8) -> torch.Tensor:
    """Rounded values, float32 [..., codes], of ids [...]; the reverse of `code_ids`."""
    return (tokens[..., None] // 3 ** torch.arange(codes, device=tokens.device) % 3 - 1).float()


def code_ids(codes: torch.Tensor) -> torch.Tensor:
    """Ids of rounded values [..., codes]: digits to base 3, lowest first, as the quantizer counts them."""
    digits = codes.round().long() + 1
    return (digits * 3 ** torch.arange(codes.shape[-1], device=codes.device)).sum(-1)
