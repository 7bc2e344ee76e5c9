"""The file of a voice: the published `conds.pt` structure, read with distrust."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import CheckpointError, OutputError
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.contents import digest_of, promised_digest

# A voice takes 0.2 MB, and 0.8 MB with the prompt embedding that the published implementation caches.
MOST_BYTES = 8 << 20
# A tensor in the file may claim to be larger than its stored values.
_MOST_VALUES = 1 << 20
# What a file of tensors calls while it is read. torch.load allows more, among it functions that take any memory.
_CALLS = re.compile(r"torch\._utils _rebuild_tensor_v2|collections OrderedDict|torch [A-Za-z0-9]+Storage")
_ZIP = b"PK\x03\x04"
# The published format stores an emotion beside the voice; here it is a parameter of a request.
_STORED_EMOTION = 0.5
_CODEBOOK, _RECIPE = "codebook", "recipe"  # beside the published parts, which the published implementation passes over
# The published files say nothing of how they were made. No other recipe than Turbo's makes a longer prompt for T3.
_LONGEST_UNSAID, _LONGER = 150, "turbo"


def is_saved_voice(path: Path) -> bool:
    """Whether a file looks like a saved voice rather than a clip, by its first bytes: no audio format begins so.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def read_voice(path: Path) -> tuple[SpeakerConditioning, FlowPrompt, str | None, str | None]:
    """The two parts of a saved voice, its codebook and its recipe, as they are in the file: whether a model can use
    them is for `check` to say.

    Raises:
        CheckpointError: the file is missing, damaged or too large, or a value is absent or of another kind.
    """
    stored = _StoredVoice(path)
    speaker = SpeakerConditioning(
        speaker_embedding=stored.floats("t3", "speaker_emb"),
        speech_prompt=stored.ids("t3", "cond_prompt_speech_tokens"),
    )
    prompt = FlowPrompt(
        tokens=stored.ids("gen", "prompt_token"),
        mel=stored.first(stored.floats("gen", "prompt_feat"), "gen", "prompt_feat"),
        xvector=stored.first(stored.floats("gen", "embedding"), "gen", "embedding"),
    )
    recipe = stored.name(_RECIPE)
    if recipe is None and len(speaker.speech_prompt) > _LONGEST_UNSAID:
        recipe = _LONGER
    return speaker, prompt, stored.name(_CODEBOOK), recipe


def voice_bytes(speaker: SpeakerConditioning, prompt: FlowPrompt, codebook: str | None, recipe: str | None) -> bytes:
    """The file of a voice; equal voices have equal files.

    Args:
        codebook, recipe: what the speech tokens, and the way in which they were made of a clip, are called; the file of
            the first Chatterbox's voice says nothing of either.
    """
    # Clones: torch.save would write the whole storage that a slice is cut from.
    data: dict[str, Any] = {
        "t3": {
            "speaker_emb": speaker.speaker_embedding.clone(),
            "clap_emb": None,
            "cond_prompt_speech_tokens": speaker.speech_prompt[None].clone(),
            "cond_prompt_speech_emb": None,
            "emotion_adv": torch.full((1, 1, 1), _STORED_EMOTION),
        },
        "gen": {
            "prompt_token": prompt.tokens[None].clone(),
            "prompt_token_len": torch.tensor([len(prompt.tokens)]),
            "prompt_feat": prompt.mel[None].clone(),
            "prompt_feat_len": None,
            "embedding": prompt.xvector[None].clone(),
        },
    }
    data |= {key: value for key, value in ((_CODEBOOK, codebook), (_RECIPE, recipe)) if value is not None}
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def write_voice(
    path: Path,
    speaker: SpeakerConditioning,
    prompt: FlowPrompt,
    codebook: str | None,
    recipe: str | None,
    overwrite: bool,
) -> None:
    """Write a voice, whole or not at all.

    Args:
        codebook, recipe: as for `voice_bytes`.
        overwrite: whether a file in that place is replaced; where not, it is an error.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        with whole_file(path, overwrite) as file:
            file.write(voice_bytes(speaker, prompt, codebook, recipe))
    except FileExistsError as error:
        raise OutputError(f"{path}: there is a file already; choose another name, or delete it first") from error
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: the voice could not be written ({error}); choose a writable path") from error


class _StoredVoice:
    """A file's values, asked for one by one."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: no such voice file; give the path of a saved voice")
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES >> 20} MB, a voice takes less than one")
            if promised_digest(path) not in (None, digest_of(data)):
                raise ValueError("its content is not the one that its name promises")
            _require_tensors_only(data)
            self._data: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # zip and pickle raise many kinds for a file that is not a voice
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"{path}: damaged, or not a voice file ({reason}); download it again or enrol the voice anew"
            ) from error

    def floats(self, part: str, name: str) -> torch.Tensor:
        """Floating-point values as float32."""
        value = self._tensor(part, name)
        if not value.is_floating_point():
            self._fail(part, name, f"({value.dtype}) is not of floating-point numbers")
        return value.detach().float().clone()

    def name(self, key: str) -> str | None:
        """A text of the file's top level; None where there is none."""
        value = self._data.get(key) if isinstance(self._data, dict) else None
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.path}: {key} is a {type(value).__name__}, not a text; enrol the clip anew")
        return value

    def ids(self, part: str, name: str) -> torch.Tensor:
        """Whole numbers stored as [1, n], in whatever dtype: int64 [n]."""
        value = self.first(self._tensor(part, name), part, name)
        numbers = value.detach().double()
        # Beyond 2**53 a float64 is no longer exact, and far from any speech token.
        if not bool(((numbers.round() == numbers) & (numbers.abs() < 2.0**53)).all()):
            self._fail(part, name, "holds something else than speech tokens, which are whole numbers")
        return numbers.long()

    def first(self, value: torch.Tensor, part: str, name: str) -> torch.Tensor:
        """The only row of a tensor."""
        if value.dim() < 2 or len(value) != 1:
            self._fail(part, name, f"has shape {list(value.shape)}, a voice has one row [1, n]")
        return value[0]

    def _tensor(self, part: str, name: str) -> torch.Tensor:
        section = self._data.get(part) if isinstance(self._data, dict) else None
        value = section.get(name) if isinstance(section, dict) else None
        if not isinstance(value, torch.Tensor):
            self._fail(part, name, "is missing" if value is None else f"is a {type(value).__name__}, not a tensor")
        if not 0 < value.numel() <= _MOST_VALUES:
            self._fail(part, name, f"has shape {list(value.shape)}, a voice holds 1 to {_MOST_VALUES} values")
        return value

    def _fail(self, part: str, name: str, fault: str) -> NoReturn:
        raise CheckpointError(
            f"{self.path}: {part}.{name} {fault}; use a voice made for this model, or enrol the clip anew"
        )


def _require_tensors_only(data: bytes) -> None:
    """Raise ValueError, or what zip and pickle raise, where a file would unpack to much or call more than it needs."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_BYTES:
            raise ValueError(f"it unpacks to {unpacked >> 20} MB, a voice takes less than one")
        for entry in archive.infolist():
            if not entry.filename.endswith("data.pkl"):
                continue
            for code, argument, _ in pickletools.genops(archive.read(entry)):
                if code.name == "GLOBAL" and not _CALLS.fullmatch(str(argument)):
                    raise ValueError(f"it calls {argument}, which no voice needs")
