"""`chatterbox-vllm quantize`: a model into a directory of it with quantized weights."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from chatterbox_vllm.cli.options import check_clip
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import MODULE_METHODS, STRATEGIES, QuantizationConfig

_DESCRIPTION = """\
Write MODEL with quantized layers to DIR, which then serves as a model like any other (--model DIR): a smaller download
and a faster start than quantizing while loading. Name the parts to quantize one by one, or all by a strategy. DIR
appears whole or not at all; files that stay as they are become hard links where the file system can. bnb-4bit needs the
library bitsandbytes, and so does T3 in bnb-8bit to run; awq is calibrated on what the model itself says to the texts,
with the voice of the clips.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_quantize)
    parser.description = _DESCRIPTION
    parser.add_argument("model", metavar="MODEL", help="english, demo, a directory, or a hub id")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="must not be there yet")
    parser.add_argument("--method", choices=("bnb-4bit", "bnb-8bit", "awq"), help="of T3's linear layers")
    parser.add_argument("--s3gen", choices=MODULE_METHODS, help="of the layers of S3Gen's flow")
    parser.add_argument("--voice-encoder", choices=MODULE_METHODS, help="of the voice encoder's layers")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), help="of all three, instead of naming them")
    parser.add_argument("--no-double-quant", action="store_true", help="bnb-4bit: keep the scales in float32")
    awq = parser.add_argument_group("awq's calibration")
    awq.add_argument("--texts", type=Path, metavar="FILE", help="a text a line, UTF-8 (default: a dozen of our own)")
    awq.add_argument(
        "--voice",
        type=Path,
        metavar="CLIP",
        action="append",
        default=[],
        help="reference clip; may be given several times (default: the model's own voice)",
    )
    awq.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")


def _quantize(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from chatterbox_vllm.families.registry import FAMILIES
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.setup.quantize import CALIBRATION_TEXTS, quantize_model
    from chatterbox_vllm.setup.quantized_directory import check_output

    # Whatever can be refused is refused before the model is read.
    quantization = _asked(options)
    check_output(options.output)
    texts = CALIBRATION_TEXTS if options.texts is None else _texts(options.texts)
    for clip in options.voice:
        check_clip(clip)
    directory = resolve_model(options.model)
    with tqdm(unit="layer", disable=None) as bar:

        def progress(part: str, done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
                bar.set_description(part, refresh=False)
            bar.update(done - bar.n)

        config = quantize_model(
            directory,
            options.output,
            quantization,
            texts=texts,
            clips=options.voice,
            device=options.device or "auto",
            progress=progress,
        )
    for part, method in quantization.methods.items():
        if method is not None:
            file = getattr(FAMILIES[config.family], part)
            before, after = ((d / file).stat().st_size / 2**20 for d in (directory, options.output))
            print(f"{options.output}: {part} in {method}, {file} {after:.1f} MiB (was {before:.1f} MiB)")
    return 0


def _asked(options: argparse.Namespace) -> QuantizationConfig:
    named = QuantizationConfig(options.method, options.s3gen, options.voice_encoder)
    if options.strategy is not None and named.active:
        raise ConfigError(f"--strategy {options.strategy} says every part's method: leave out those that name one")
    if options.strategy is not None:
        named = QuantizationConfig.from_strategy(options.strategy)
    if not named.active:
        raise ConfigError("there is nothing to quantize: give --method, --s3gen, --voice-encoder, or --strategy")
    if options.no_double_quant and "bnb-4bit" not in named.methods.values():
        raise ConfigError(f"--no-double-quant is for bnb-4bit, not for {named}: leave it out")
    if named.t3 != "awq" and (options.texts is not None or options.voice or options.device is not None):
        raise ConfigError(
            f"--texts, --voice and --device are for --method awq: {named} is not calibrated; leave them out"
        )
    return replace(named, double_quant=not options.no_double_quant)


def _texts(path: Path) -> list[str]:
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); give a text a line") from error
    if not texts:
        raise ConfigError(f"{path}: holds no text; give a text a line")
    return texts
