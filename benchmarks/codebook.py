"""Makes made-up T3 weights keep to the codebook.

    python benchmarks/codebook.py CHECKPOINT OUT

Random weights draw a fifth of their tokens among ids that no sound belongs to. These cost T3's time like others and are
dropped, so that figures measured with such weights are too low, and a first chunk waits for tokens that it does not
need. Here the head is changed so that these ids, the end of speech among them, are never drawn: where it has a bias, by
the bias; else by rows that point away from the direction that all hidden states of these weights have in common. The
other files are linked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.setup.quantize import calibration_voices
from chatterbox_vllm.t3.plain import PlainT3

BIAS, NORM, HEAD = "speech_head.bias", "tfmr.norm.weight", "speech_head.weight"
FAR = -40.0  # a logit at least this low is never drawn: the highest are about 10
TEXTS = ("Nobody in the village remembered when the clock had stopped.", "Tomorrow will be cloudy at first, with rain.")
TOKENS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    keep_to_codebook(options.checkpoint, options.out)


def keep_to_codebook(directory: Path, out: Path) -> None:
    """Write the checkpoint `out`.

    Raises:
        ConfigError: the hidden states have no direction in common.
    """
    config = config_of(directory)
    file = family_of(config.family).t3
    tensors = load_file(directory / file)
    codebook = config.s3gen.flow.vocab_size
    if BIAS in tensors:
        tensors[BIAS][codebook:] = FAR
    else:
        hidden = hidden_states(directory)
        direction = F.normalize(hidden.mean(0), dim=0)
        least = float((hidden @ direction).min())
        if least <= 0:
            raise ConfigError("the hidden states of these weights have no direction in common; use others")
        tensors[HEAD][codebook:] = (FAR / least * direction).to(tensors[HEAD].dtype)
    out.mkdir(parents=True, exist_ok=True)
    for own in directory.iterdir():
        if own.name != file and not (out / own.name).exists():
            (out / own.name).symlink_to(own.resolve())
    save_file(tensors, out / file)


def hidden_states(directory: Path) -> torch.Tensor:
    """[N, H] float32 after T3's last norm, of texts and random speech; guided ones are among them."""
    config = config_of(directory)
    family = family_of(config.family)
    weights = Weights(directory / family.t3)
    builder = family.read_prompt_builder(config.t3, weights)
    maker = PromptMaker(config, family.read_tokenizer(directory), builder, 2 * TOKENS + 1000)
    (voice,) = calibration_voices(directory, config, (), torch.device("cpu"))
    parameters = SpeechParameters(max_tokens=TOKENS)
    model = PlainT3(config.t3, weights)
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in TEXTS:
        prompt, values = maker.prompt_of(text, voice, parameters, family.language_of_english)
        tokens = torch.randint(config.s3gen.flow.vocab_size, (TOKENS,), generator=generator).tolist()
        x = model.embed(builder, prompt, tokens)
        for layer in model.layers():
            x = model.run_layer(layer, x)
        norm = weights.get(NORM)
        normed = F.rms_norm(x[:, -TOKENS:].float(), norm.shape, norm.float(), config.t3.rms_norm_eps)
        conditional, unconditional = normed
        weight = values.sampling.cfg_weight
        found += [conditional, conditional + weight * (conditional - unconditional)]
    return torch.cat(found)


if __name__ == "__main__":
    main()
