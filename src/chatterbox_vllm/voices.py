"""Voices: what a reference clip becomes, how it is kept on disk, and how it is made."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from typing_extensions import Self

from chatterbox_vllm.audio.resample import resample, sinc_resample
from chatterbox_vllm.checkpoint import Weights, load_module
from chatterbox_vllm.config import ModelConfig
from chatterbox_vllm.errors import AudioError, CheckpointError, OutputError
from chatterbox_vllm.models.features import RATE_16K, RATE_24K, prompt_mel
from chatterbox_vllm.models.precision import ieee_float32
from chatterbox_vllm.models.s3gen.graphs import recording
from chatterbox_vllm.models.s3gen.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.models.s3gen.xvector import CAMPPlus
from chatterbox_vllm.models.voice_encoder import VoiceEncoder
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import Scheme

# What a clip must be to serve as a reference.
MIN_REFERENCE_SECONDS = 0.5
MAX_REFERENCE_SECONDS = 600.0
MIN_REFERENCE_PEAK_DB = -60.0

# How much of it each part hears; the voice encoder hears all of it.
_FLOW_SECONDS = 10
_T3_SECONDS = 6

# The published format stores an emotion beside the voice; here it is a parameter of a request.
_STORED_EMOTION = 0.5


@dataclass(frozen=True, eq=False)
class Voice:
    """The conditioning values of one speaker, on the CPU. Treat the tensors as constants: `key` stands for them.

    Attributes:
        speaker_embedding: T3's speaker, float32 [1, 256], of unit length.
        speech_prompt: T3's prompt, speech tokens, int64 [n], 1 <= n <= 150.
        prompt_tokens: the flow's prompt, speech tokens, int64 [p].
        prompt_mel: the flow's prompt, log mel at 50 frames/s, float32 [f, 80]; f is 2p or 2p + 1.
        xvector: the flow's speaker, float32 [192].
    """

    speaker_embedding: torch.Tensor
    speech_prompt: torch.Tensor
    prompt_tokens: torch.Tensor
    prompt_mel: torch.Tensor
    xvector: torch.Tensor

    @cached_property
    def key(self) -> str:
        """A hash of the contents: equal for equal voices, so that caches can be keyed by it."""
        digest = hashlib.blake2b(digest_size=16)
        for field in fields(self):
            array = getattr(self, field.name).contiguous().numpy()
            digest.update(f"{field.name}{array.dtype}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    @classmethod
    def load(cls, path: Path | str, config: ModelConfig | None = None) -> Self:
        """Read a voice in the published `conds.pt` structure, without executing anything in the file.

        Files that the published implementation saved after speaking hold ids as floats and a cached prompt embedding;
        both are accepted. The stored emotion is not read.

        Args:
            config: the model that the voice is for; the published sizes by default.

        Raises:
            CheckpointError: the file is missing or damaged, or a value is absent or not what the model needs.
        """
        config = config or ModelConfig()
        stored = _StoredVoice(Path(path))
        vocab = config.s3gen.flow.vocab_size
        speaker = stored.floats("t3", "speaker_emb", (1, config.t3.speaker_embedding_size))
        prompt = stored.ids("t3", "cond_prompt_speech_tokens", vocab)
        if len(prompt) > config.t3.speech_prompt_tokens:
            stored.fail(
                "t3",
                "cond_prompt_speech_tokens",
                f"holds {len(prompt)} tokens, the model takes at most {config.t3.speech_prompt_tokens}",
            )
        tokens = stored.ids("gen", "prompt_token", vocab)
        mel = stored.floats("gen", "prompt_feat", (1, None, config.s3gen.flow.num_mels))[0]
        if len(mel) not in (2 * len(tokens), 2 * len(tokens) + 1):
            stored.fail(
                "gen", "prompt_feat", f"holds {len(mel)} frames, which is not twice its {len(tokens)} prompt tokens"
            )
        xvector = stored.floats("gen", "embedding", (1, config.s3gen.xvector.embedding_size))[0]
        return cls(speaker, prompt, tokens, mel, xvector)

    def save(self, path: Path | str) -> None:
        """Write the voice in the published `conds.pt` structure; `path` is replaced whole or not at all.

        Raises:
            OutputError: the file could not be written.
        """
        # Clones: torch.save would write the whole storage that a slice is cut from.
        data = {
            "t3": {
                "speaker_emb": self.speaker_embedding.clone(),
                "clap_emb": None,
                "cond_prompt_speech_tokens": self.speech_prompt[None].clone(),
                "cond_prompt_speech_emb": None,
                "emotion_adv": torch.full((1, 1, 1), _STORED_EMOTION),
            },
            "gen": {
                "prompt_token": self.prompt_tokens[None].clone(),
                "prompt_token_len": torch.tensor([len(self.prompt_tokens)]),
                "prompt_feat": self.prompt_mel[None].clone(),
                "prompt_feat_len": None,
                "embedding": self.xvector[None].clone(),
            },
        }
        path = Path(path)
        partial: str | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                partial = file.name
                torch.save(data, file)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            if partial is not None:
                Path(partial).unlink(missing_ok=True)
            raise OutputError(f"{path}: the voice could not be written ({error}); choose a writable path") from error


class _StoredVoice:
    """A `conds.pt` file, its values checked one by one."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: no such voice file; give the path of a saved voice")
        try:
            self._data: Any = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises many kinds for a file that is not a voice
            raise CheckpointError(
                f"{path}: damaged, or not a voice file ({error}); download it again or enrol the voice anew"
            ) from error

    def fail(self, part: str, name: str, fault: str) -> NoReturn:
        raise CheckpointError(
            f"{self.path}: {part}.{name} {fault}; use a voice made for this model, or enrol the clip anew"
        )

    def floats(self, part: str, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Finite float32 values of `shape`, in which None stands for any size but 0."""
        value = self._tensor(part, name)
        fits = value.dim() == len(shape) and all(
            size > 0 if wanted is None else size == wanted for size, wanted in zip(value.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("n" if size is None else str(size) for size in shape)
            self.fail(part, name, f"has shape {list(value.shape)}, the model needs [{wanted}]")
        if not value.is_floating_point() or not value.isfinite().all():
            self.fail(part, name, f"({value.dtype}) is not all finite floating-point numbers")
        return value.detach().float().clone()

    def ids(self, part: str, name: str, vocab: int) -> torch.Tensor:
        """Speech tokens stored as [1, n], n > 0, in whatever dtype: int64 [n]."""
        value = self._tensor(part, name)
        if value.dim() != 2 or value.shape[0] != 1 or value.shape[1] == 0:
            self.fail(part, name, f"has shape {list(value.shape)}, the model needs [1, n] with n > 0")
        ids = value[0].double()
        if not (ids.round() == ids).all() or ids.min() < 0 or ids.max() >= vocab:
            self.fail(part, name, f"holds something else than speech tokens, which are integers in 0..{vocab - 1}")
        return ids.long()

    def _tensor(self, part: str, name: str) -> torch.Tensor:
        section = self._data.get(part) if isinstance(self._data, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if not isinstance(value, torch.Tensor):
            self.fail(part, name, "is missing" if value is None else f"is a {type(value).__name__}, not a tensor")
        return value


@dataclass(frozen=True)
class _EnrolmentNets:
    voice_encoder: VoiceEncoder
    speech_tokenizer: SpeechTokenizer
    xvector: CAMPPlus


class VoiceEnroller:
    """Makes voices from reference audio, in float32.

    The nets (132 M parameters, 0.5 GB) are loaded at the first use and serve nothing else: `release` frees them.
    Safe to use from several threads.

    Args:
        config: dimensions of the checkpoint.
        weights_s3gen: its `s3gen` file.
        weights_ve: its `ve` file.
        device: where the nets run; the CPU by default, so that they take no accelerator memory.
        quantization: of the voice encoder's weights.
        keep: whether the nets stay loaded after an enrolment.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights_s3gen: Weights,
        weights_ve: Weights,
        device: torch.device | str = "cpu",
        quantization: Scheme | None = None,
        keep: bool = True,
    ):
        self.config = config
        self.quantization = quantization
        self.keep = keep
        self.device = torch.device(device)
        self._weights_s3gen = weights_s3gen
        self._weights_ve = weights_ve
        self._nets: _EnrolmentNets | None = None
        self._lock = threading.Lock()

    @torch.no_grad()
    @ieee_float32()
    def enrol(self, wave: np.ndarray, rate: int) -> Voice:
        """The voice of a reference clip.

        As published: the clip goes to 24 kHz and from there to 16 kHz. The flow's prompt and x-vector come from its
        first 10 s, T3's speech prompt from its first 6 s, the speaker embedding from all of it.

        Args:
            wave: floating-point mono [samples], in -1..1.
            rate: its rate in Hz.

        Raises:
            AudioError: the clip is no such wave, is shorter than 0.5 s or longer than 600 s, or is silent.
            CheckpointError: the nets could not be loaded.
        """
        wave = check_reference(wave, rate)
        nets = self._load()
        try:
            return self._enrolled(nets, wave, rate)
        finally:
            if not self.keep:
                self.release()

    def _enrolled(self, nets: _EnrolmentNets, wave: np.ndarray, rate: int) -> Voice:
        wave_24k = resample(wave, rate, RATE_24K)
        wave_16k = self._tensor(resample(wave_24k, RATE_24K, RATE_16K))
        flow_24k = self._tensor(wave_24k[: _FLOW_SECONDS * RATE_24K])
        flow_16k = sinc_resample(flow_24k, RATE_24K, RATE_16K)

        mel = prompt_mel(flow_24k, self.config.s3gen.flow.num_mels)
        # The tokenizer rounds a last part of a token up; the flow's prompt has two mel frames for every token.
        prompt_tokens = nets.speech_tokenizer.tokens(flow_16k)[: mel.shape[0] // 2]
        speech_prompt = nets.speech_tokenizer.tokens(
            wave_16k[: _T3_SECONDS * RATE_16K], max_tokens=self.config.t3.speech_prompt_tokens
        )
        return Voice(
            speaker_embedding=nets.voice_encoder.embed(wave_16k).cpu(),
            speech_prompt=speech_prompt.cpu(),
            prompt_tokens=prompt_tokens.cpu(),
            prompt_mel=mel.cpu().contiguous(),
            xvector=nets.xvector.embed(flow_16k)[0].cpu(),
        )

    @property
    def loaded_voice_encoder(self) -> VoiceEncoder | None:
        """The voice encoder as it runs, where the nets are in memory."""
        return None if self._nets is None else self._nets.voice_encoder

    @property
    def is_loaded(self) -> bool:
        """Whether the nets are in memory."""
        return self._nets is not None

    def release(self) -> None:
        """Free the nets; the next use loads them again."""
        with self._lock:
            self._nets = None
        if self.device.type == "cuda":
            with recording:  # no memory may be given back while another thread records a graph
                torch.cuda.empty_cache()

    def _load(self) -> _EnrolmentNets:
        with self._lock:
            if self._nets is None:
                with torch.device("meta"):
                    nets = _EnrolmentNets(
                        VoiceEncoder(self.config.voice_encoder),
                        SpeechTokenizer(self.config.s3gen.tokenizer),
                        CAMPPlus(self.config.s3gen.xvector),
                    )
                if self.quantization is not None:
                    encoder = nets.voice_encoder
                    quantize_layers(encoder, encoder.quantizable_layers(), self.quantization)
                load_module(nets.voice_encoder, self._weights_ve, "", self.device)
                load_module(nets.speech_tokenizer, self._weights_s3gen, "tokenizer.", self.device)
                load_module(nets.xvector, self._weights_s3gen, "speaker_encoder.", self.device)
                self._nets = nets
            return self._nets

    def _tensor(self, wave: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(wave).to(self.device)


def check_reference(wave: np.ndarray, rate: int) -> np.ndarray:
    """The clip as contiguous float32, if it can serve as a reference.

    Raises:
        AudioError: it cannot; the message says why and what to do.
    """
    if type(rate) is not int or rate <= 0:
        raise AudioError(f"reference audio: the rate must be a positive integer in Hz, not {rate!r}")
    wave = np.asarray(wave)
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(
            f"reference audio: expected a mono wave of floats in -1..1, shape [samples], not {wave.dtype} "
            f"{list(wave.shape)}; average the channels, or scale integers by their maximum"
        )
    if len(wave) == 0:
        raise AudioError("reference audio: the clip is empty; give one of 5 to 15 seconds of clear speech")
    seconds = len(wave) / rate
    if seconds < MIN_REFERENCE_SECONDS:
        raise AudioError(
            f"reference audio: the clip lasts {seconds:.2f} s, at least {MIN_REFERENCE_SECONDS} s is needed; "
            "5 to 15 seconds of clear speech serve best"
        )
    if seconds > MAX_REFERENCE_SECONDS:
        raise AudioError(
            f"reference audio: the clip lasts {seconds:.0f} s, at most {MAX_REFERENCE_SECONDS:.0f} s is taken; "
            "cut out 5 to 15 seconds of clear speech"
        )
    with np.errstate(over="ignore"):
        wave = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise AudioError(
            f"reference audio: the clip ({seconds:.2f} s) holds NaN or infinite samples; export it anew from its source"
        )
    peak = float(np.abs(wave).max())
    if peak < 10 ** (MIN_REFERENCE_PEAK_DB / 20):
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital silence"
        raise AudioError(
            f"reference audio: the clip ({seconds:.2f} s) is silent (peak {level}, at least "
            f"{MIN_REFERENCE_PEAK_DB:.0f} dBFS is needed); record it louder"
        )
    return wave
