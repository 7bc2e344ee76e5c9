"""Every way to ask for a quantized model, and what each one holds in memory.

    python example_tts_quantized.py --model small --device cpu     # or --model english on a card
    python example_tts_quantized.py --only strategies directory

Needs the extra `bnb` beside the device's: `pip install ".[cuda,bnb]"`; start.sh installs both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from chatterbox_vllm import ChatterboxError, ChatterboxTTS, QuantizationConfig, check_quantization_support
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.setup.models import default_model, resolve_model
from chatterbox_vllm.setup.quantize import quantize_model

TEXT = "The same sentence, in fewer bits."
MIB = 1 << 20
Load = Callable[..., ChatterboxTTS]


def keywords(model: Path, device: str) -> Iterator[tuple[str, Load]]:
    """Method by method. What is not named stays as it is."""
    plain = partial(ChatterboxTTS.from_pretrained, model, device)
    yield "nothing asked for", plain
    yield (
        'use_quantization=True, quantization_method="bnb-8bit"',
        partial(plain, use_quantization=True, quantization_method="bnb-8bit"),
    )
    yield (
        "use_bnb_quantization=True, quantize_s3gen=True, quantize_voice_encoder=True",
        partial(plain, use_bnb_quantization=True, quantize_s3gen=True, quantize_voice_encoder=True),
    )
    # All of these make a QuantizationConfig, which can be given itself: here INT8 for the flow and nothing else.
    yield (
        'quantization=QuantizationConfig(s3gen="bnb-8bit")',
        partial(plain, quantization=QuantizationConfig(s3gen="bnb-8bit")),
    )


def strategies(model: Path, device: str) -> Iterator[tuple[str, Load]]:
    """Ready-made choices; "auto" goes by the free memory of the card."""
    for name in ("conservative", "mixed", "aggressive", "auto"):
        yield (
            f'quantization_strategy="{name}"',
            partial(ChatterboxTTS.from_pretrained_quantized, model, device, quantization_strategy=name),
        )


def environment(model: Path, device: str) -> Iterator[tuple[str, Load]]:
    """Variables decide where the program says nothing."""
    asked = {"CHATTERBOX_USE_QUANTIZATION": "1", "CHATTERBOX_QUANTIZATION_METHOD": "bnb-4bit"}
    os.environ.update(asked)
    yield (
        " ".join(f"{name}={value}" for name, value in asked.items()),
        partial(ChatterboxTTS.from_pretrained, model, device),
    )
    for name in asked:
        del os.environ[name]


def fallback(model: Path, device: str) -> Iterator[tuple[str, Load]]:
    """AWQ cannot be made while loading. That is an error, unless stepping down is asked for."""
    awq = partial(ChatterboxTTS.from_pretrained, model, device, use_quantization=True, quantization_method="awq")
    try:
        awq().shutdown()
    except ChatterboxError as error:
        print(f"refused: {error}")
    yield 'quantization_method="awq", fallback=True', partial(awq, fallback=True)


def directory(model: Path, device: str) -> Iterator[tuple[str, Load]]:
    """What `chatterbox-vllm quantize` writes loads like any model: a smaller file, and nothing left to quantize."""
    with tempfile.TemporaryDirectory() as home:
        for method in ("bnb-4bit", "awq"):
            made = Path(home) / method
            # AWQ is calibrated on what T3 says: give it more texts, and clips of the voices that will be spoken.
            texts = [TEXT, "And another one to calibrate with."]
            quantize_model(model, made, QuantizationConfig(t3=method), texts=texts, device=device)
            before, after = ((place / ENGLISH.t3).stat().st_size / MIB for place in (model, made))
            print(f"quantize --method {method}: {ENGLISH.t3} takes {after:.1f} MiB, {before:.1f} before")
            yield f"a directory in {method}", partial(ChatterboxTTS.from_pretrained, made, device)


DOORS = {door.__name__: door for door in (keywords, strategies, environment, fallback, directory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="english (the default where it can be had), small, a directory, or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--only", nargs="+", choices=tuple(DOORS), default=tuple(DOORS), metavar="DOOR")
    parser.add_argument("-d", "--directory", type=Path, help="write what each model says there")
    options = parser.parse_args()
    if options.directory is not None:
        try:
            options.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{options.directory} cannot be a directory to write to: {error.strerror}")
    model = resolve_model(options.model or default_model())
    show_support(options.device)
    rows = []
    for door in options.only:
        for name, load in DOORS[door](model, options.device):
            rows.append(speak(name, load, options.directory, len(rows)))
    print(f"\n{'MiB of':<76} {'T3':>9} {'S3Gen':>9}  in force")
    for row in rows:
        print(row)


def show_support(device: str) -> None:
    """What this machine can do, and why not."""
    found = check_quantization_support(device)
    for method, components in found["methods"].items():
        for component, answer in components.items():
            print(f"{method} for {component}: {answer['why_not'] or 'yes'}")


def speak(name: str, load: Load, output: Path | None, number: int) -> str:
    """Load, speak, and return a row of the table: bytes are counted on the live modules."""
    with load(max_batch_size=1, max_model_len=1280) as tts:
        wave = tts.generate(TEXT, seed=1)
        if output is not None:
            write_audio(output / f"{number:02}.wav", wave[0].numpy(), tts.sr)
        info = tts.get_quantization_info()
    t3, s3gen = info["t3"], info["s3gen"]
    methods = ", ".join(f"{part} {info[part]['method'] or '-'}" for part in ("t3", "s3gen"))
    steps = f"; stepped down: {', then '.join(info['steps_down'])}" if info["steps_down"] else ""
    # vLLM keeps unquantized linear layers on a CPU in a form of its own, whose bytes nobody can count.
    least = ">" if t3["unseen_layers"] else ""
    size = f"{least}{t3['total_bytes'] / MIB:.1f}"
    return f"{name:<76} {size:>9} {s3gen['total_bytes'] / MIB:9.1f}  {methods}{steps}"


if __name__ == "__main__":
    try:
        main()
    except ChatterboxError as error:  # every error of the package names its remedy
        raise SystemExit(f"error: {error}") from None
