"""Voices: what a reference clip becomes, and how it is kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from typing_extensions import Self

from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.errors import CheckpointError, OutputError

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
