"""Writes trained parts as a checkpoint in the published layout, which `ChatterboxTTS.from_local` loads.

    python -m training.export --parts OUT --corpus CORPUS --out MODEL [--voice SPEAKER ...] [--untrained t3]

OUT holds what the training scripts wrote: `tokenizer`, `speakers`, `flow`, `hift` and `t3` with their weights, and
`text` with the text tokenizer. MODEL gets the model's three files in float16, `config.json`, `tokenizer.json`, the
built-in voice and, in `voices`, the other ones. Beside them stands `packed`: the same in 8 bits, in files of at most
15 MB, of which `python -m training.export --unpack MODEL/packed --out MODEL` makes the files again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from chatterbox_vllm.checkpoint import packed
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.checkpoint.packed import pack, read_packed
from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.families.babble import build_babble
from chatterbox_vllm.families.english import ENGLISH, TOKENIZER
from chatterbox_vllm.families.layout import check_parts
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.voices import VOICES
from chatterbox_vllm.s3gen.networks import S3GenNetworks
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder
from chatterbox_vllm.voices.nets.xvector import CAMPPlus
from training.codes import CODEBOOK
from training.data import RATE, Corpus
from training.flow import load_flow
from training.loop import load_checkpoint
from training.reference import reference_utterances
from training.small import SMALL
from training.t3 import published_t3
from training.weights import WEIGHTS, load_weights

FILES = {"t3": ENGLISH.t3, "s3gen": ENGLISH.s3gen, "voice_encoder": ENGLISH.voice_encoder}
PACKED = "packed"
_PART_BYTES = 15_000_000
_PAUSE_SECONDS = 0.25
# Pitch is summed over samples, the tokenizer's mel has to be the very one, and rounding decides about tokens.
_DELICATE = ("f0_predictor.", "m_source.", "_mel_filters", "project_down.", "conv_post.", "final_proj.")

Tensors = dict[str, torch.Tensor]


def published_tensors(module: nn.Module, prefix: str) -> Tensors:
    """A module's tensors under their published names: what `load_module` reads back.

    Fused layers are parted again, and weights that the published files hold weight-normed are, with their own norms.
    """
    tensors: Tensors = {}
    for module_name, submodule in module.named_modules():
        base = f"{prefix}{module_name}." if module_name else prefix
        beside = base[: base.rstrip(".").rfind(".") + 1]
        own = [*submodule.named_parameters(recurse=False), *submodule.named_buffers(recurse=False)]
        for name, value in own:
            if name in submodule._non_persistent_buffers_set:
                continue
            value = value.detach().cpu()
            if name in getattr(submodule, "fused", {}):
                parts = submodule.fused[name]
                for part, chunk in zip(parts, value.chunk(len(parts)), strict=True):
                    tensors[beside + part.removeprefix("../")] = chunk.contiguous()
            elif name == "weight" and getattr(submodule, "weight_normed", False):
                stem = f"{base}parametrizations.weight."
                norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
                tensors[stem + "original0"], tensors[stem + "original1"] = norm, value.contiguous()
            else:
                tensors[base + name] = value.contiguous()
    return tensors


def _tokenizer(config: ModelConfig, parts: Path) -> Tensors:
    return _loaded(SpeechTokenizer(config.s3gen.tokenizer), parts / "tokenizer", "tokenizer.", "tokenizer.")


def _xvector(config: ModelConfig, parts: Path) -> Tensors:
    return _loaded(CAMPPlus(config.s3gen.xvector), parts / "speakers", "xvector.", "speaker_encoder.")


def _voice_encoder(config: ModelConfig, parts: Path) -> Tensors:
    return _loaded(VoiceEncoder(config.voice_encoder), parts / "speakers", "voice_encoder.", "")


def _flow(config: ModelConfig, parts: Path) -> Tensors:
    model = S3GenNetworks(config.s3gen)
    model.load_state_dict(load_flow(parts / "flow", config.s3gen).published_state(), strict=False)
    trained = {prefix: part for prefix, part in model.published_parts().items() if prefix.startswith("flow.")}
    return {key: value for prefix, part in trained.items() for key, value in published_tensors(part, prefix).items()}


def _hift(config: ModelConfig, parts: Path) -> Tensors:
    return _loaded(HiFT(config.s3gen.hift), parts / "hift", "", "mel2wav.")


def _t3(config: ModelConfig, parts: Path) -> Tensors:
    return published_t3(parts / "t3")


def _loaded(module: nn.Module, directory: Path, prefix: str, published: str) -> Tensors:
    state = load_weights(directory, prefix)
    wanted = module.state_dict().keys()
    module.load_state_dict({name: value for name, value in state.items() if name in wanted})
    return published_tensors(module, published)


# By name: the file that a part goes to, and how it is read.
PARTS: dict[str, tuple[str, Callable[[ModelConfig, Path], Tensors]]] = {
    "tokenizer": ("s3gen", _tokenizer),
    "xvector": ("s3gen", _xvector),
    "flow": ("s3gen", _flow),
    "hift": ("s3gen", _hift),
    "voice_encoder": ("voice_encoder", _voice_encoder),
    "t3": ("t3", _t3),
}


def export(parts: Path, out: Path, config: ModelConfig, untrained: list[str]) -> None:
    """Write the three files, configuration and text tokenizer to `out`.

    Args:
        untrained: parts (see `PARTS`, and "text") whose weights are the babbling model's.

    Raises:
        FileNotFoundError: a part was not trained and is not among `untrained`.
    """
    if "tokenizer" not in untrained:
        config = replace(config, codebook=codebook_of(parts))
    out.mkdir(parents=True, exist_ok=True)
    build_babble(out, config)
    for file, name in FILES.items():
        tensors = load_file(out / name)
        for part, (home, read) in PARTS.items():
            if home == file and part not in untrained:
                tensors.update(read(config, parts))
        save_file({key: _halved(key, value) for key, value in tensors.items()}, out / name)
    if "text" not in untrained:
        (out / TOKENIZER).write_bytes((parts / "text" / TOKENIZER).read_bytes())
    check_parts(config, {part: Weights(out / name) for part, name in FILES.items()})


def codebook_of(parts: Path) -> str:
    """A name for the trained tokenizer's tokens: other weights give other tokens. A model's are called as there."""
    of_model = load_checkpoint(parts / "tokenizer" / WEIGHTS)["config"].get(CODEBOOK)
    if of_model is not None:
        return str(of_model)
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(load_weights(parts / "tokenizer", "tokenizer.").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return f"small-{digest.hexdigest()}"


def _halved(key: str, value: torch.Tensor) -> torch.Tensor:
    """Vectors take little, and the filters of a mel are no weights."""
    matrix = value.is_floating_point() and sum(size > 1 for size in value.shape) > 1
    half = value.half() if matrix and not key.endswith("_mel_filters") else value
    if not half.isfinite().all():
        raise CheckpointError(f"{key} does not fit into float16; train with more decay or a lower rate")
    return half


def enrol_voices(corpus: Corpus, names: list[str], out: Path, config: ModelConfig, seconds: float) -> None:
    """Make voices of some speakers of the corpus, from clips of `seconds`; the first is the built-in one."""
    enroller = VoiceEnroller(config, Weights(out / ENGLISH.s3gen), Weights(out / ENGLISH.voice_encoder))
    by_name = {speaker.name: i for i, speaker in enumerate(corpus.speakers)}
    for i, name in enumerate(names):
        if name not in by_name:
            raise KeyError(f"no speaker {name!r} in {corpus.directory}; it has {', '.join(by_name)}")
        path = out / VOICES / f"{name}.pt" if i else out / ENGLISH.builtin_voice
        path.parent.mkdir(exist_ok=True)
        enroller.enrol(reference_clip(corpus, by_name[name], seconds), RATE).save(path)


def reference_clip(corpus: Corpus, speaker: int, seconds: float) -> np.ndarray:
    """Whole utterances of a speaker, `seconds` or a little more, float32 at 24 kHz, with pauses between them."""
    pause = np.zeros(int(_PAUSE_SECONDS * RATE), np.float32)
    clip: list[np.ndarray] = []
    for i in reference_utterances(corpus, speaker, seconds):
        clip += [corpus.audio(i).astype(np.float32) / 32_768, pause]
    return np.concatenate(clip[:-1])


def write_packed(model: Path) -> None:
    """Write `model/packed/part.*` from the files in `model`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=9) as tar:  # a tenth less
        for path in sorted(path for path in model.rglob("*") if path.is_file() and PACKED not in path.parts):
            data = path.read_bytes()
            if path.suffix == ".safetensors":
                data = save(pack(load_file(path), lambda key: any(part in key for part in _DELICATE)))
            entry = tarfile.TarInfo(str(path.relative_to(model)))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    directory = model / PACKED
    directory.mkdir(exist_ok=True)
    for old in directory.glob(packed.PARTS):
        old.unlink()
    data = archive.getvalue()
    for number, begin in enumerate(range(0, len(data), _PART_BYTES)):
        (directory / f"part.{number:03}").write_bytes(data[begin : begin + _PART_BYTES])
    print(f"{directory}: {len(data) / 1e6:.2f} MB", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="directory of the model")
    arguments.add_argument("--parts", type=Path, help="directory of the trained parts")
    arguments.add_argument("--corpus", type=Path, help="whose speakers the voices are")
    arguments.add_argument("--voice", action="append", default=[], help="name of a speaker; the first is built in")
    arguments.add_argument("--voice-seconds", type=float, default=10.0, help="of the clips that the voices are made of")
    arguments.add_argument("--untrained", action="append", default=[], choices=[*PARTS, "text"])
    arguments.add_argument("--unpack", type=Path, help="make the files of this directory of packed parts instead")
    given = arguments.parse_args()
    if given.unpack is not None:
        read_packed(given.unpack, given.out)
        return
    if given.parts is None or given.corpus is None:
        arguments.error("give --parts and --corpus, or --unpack")
    export(given.parts, given.out, SMALL, given.untrained)
    corpus = Corpus(given.corpus)
    names = given.voice or [corpus.speakers[0].name]
    enrol_voices(corpus, names, given.out, config_of(given.out), given.voice_seconds)
    write_packed(given.out)


if __name__ == "__main__":
    main()
