"""`chatterbox-vllm quantize`: a model into a directory of it with quantized weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from chatterbox_vllm.cli.arguments import Strategy, from_settings
from chatterbox_vllm.cli.options import VoicesOption, check_voice
from chatterbox_vllm.cli.progress import progress_bar
from chatterbox_vllm.cli.texts import read_texts
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig

ModuleMethod = Literal["bnb-4bit", "bnb-8bit"]


@from_settings()
def quantize(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as --model of say")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="must not be there yet", show_default=False)
    ],
    quantization_method: Annotated[
        Literal["bnb-4bit", "bnb-8bit", "awq"] | None,
        typer.Option("--quantization-method", "--method", help="of T3's linear layers", show_default="none"),
    ] = None,
    quantize_s3gen: Annotated[
        ModuleMethod | None,
        typer.Option("--quantize-s3gen", "--s3gen", help="of the layers of S3Gen's flow", show_default="none"),
    ] = None,
    quantize_voice_encoder: Annotated[
        ModuleMethod | None,
        typer.Option(
            "--quantize-voice-encoder", "--voice-encoder", help="of the voice encoder's layers", show_default="none"
        ),
    ] = None,
    quantization_strategy: Annotated[
        Strategy | None,
        typer.Option(
            "--quantization-strategy", "--strategy", help="of all three, instead of naming them", show_default="none"
        ),
    ] = None,
    double_quant: Annotated[
        bool, typer.Option("--double-quant/--no-double-quant", help="bnb-4bit: whether the scales are quantized, too")
    ] = True,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            "--texts",
            metavar="FILE",
            help="awq's calibration: a text a line, UTF-8",
            show_default="a dozen of our own",
        ),
    ] = None,
    voice: VoicesOption = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="awq's calibration: auto, cpu, cuda or cuda:N", show_default="auto"),
    ] = None,
    quiet: bool,
) -> None:
    """Write MODEL with quantized layers to DIR, which then serves as a model like any other (--model DIR).

    That is a smaller download and a faster start than quantizing while loading. Name the parts to quantize one by one,
    or all by a strategy. DIR appears whole or not at all; files that stay as they are become hard links where the file
    system can. bnb-4bit needs the library bitsandbytes, and so does T3 in bnb-8bit to run; awq is calibrated on what
    the model itself says to the texts, with the voice of the clips.
    """
    # Whatever can be refused is refused before the model is read.
    named = QuantizationConfig(quantization_method, quantize_s3gen, quantize_voice_encoder)
    quantization = _asked(named, quantization_strategy, double_quant)
    if quantization.t3 != "awq" and (file is not None or voice or device is not None):
        raise ConfigError(
            f"--file, --voice and --device are for --quantization-method awq: {quantization} is not calibrated; "
            "leave them out"
        )
    from chatterbox_vllm.families.registry import family_of
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.setup.quantize import CALIBRATION_TEXTS, quantize_model
    from chatterbox_vllm.setup.quantized_directory import check_output

    check_output(output)
    texts = CALIBRATION_TEXTS if file is None else read_texts(file)
    clips = [clip for name in voice or () if (clip := check_voice(name, {"model": model})) is not None]
    directory = resolve_model(model)
    with progress_bar("layer") as progress:
        config = quantize_model(
            directory, output, quantization, texts=texts, clips=clips, device=device or "auto", progress=progress
        )
    for part, method in quantization.methods.items():
        if method is not None and not quiet:
            name = getattr(family_of(config.family), part)
            before, after = ((d / name).stat().st_size / 2**20 for d in (directory, output))
            print(f"{output}: {part} in {method}, {name} {after:.1f} MiB (was {before:.1f} MiB)")


def _asked(named: QuantizationConfig, strategy: str | None, double_quant: bool) -> QuantizationConfig:
    if strategy is not None and named.active:
        raise ConfigError(f"--quantization-strategy {strategy} says every part's method: leave out those that name one")
    if strategy == AUTO:
        raise ConfigError("--quantization-strategy auto goes by the machine that loads a model; name a strategy")
    if strategy is not None:
        named = QuantizationConfig.from_strategy(strategy)
    if not named.active:
        raise ConfigError(
            "there is nothing to quantize: give --quantization-method, --quantize-s3gen, --quantize-voice-encoder, or "
            "--quantization-strategy"
        )
    if not double_quant and "bnb-4bit" not in named.methods.values():
        raise ConfigError(f"--no-double-quant is for bnb-4bit, not for {named}: leave it out")
    return replace(named, double_quant=double_quant)
