"""`chatterbox-vllm quantize`: a model into a directory of it with quantized weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from chatterbox_vllm.cli.options import check_clip
from chatterbox_vllm.errors import ConfigError

_DESCRIPTION = """\
Write MODEL with T3's linear layers quantized to DIR, which then serves as a model like any other (--model DIR): a
smaller download and a faster start than quantizing while loading. DIR appears whole or not at all; files that stay as
they are become hard links where the file system can. bnb-4bit and bnb-8bit need the library bitsandbytes; awq is
calibrated on what the model itself says to the texts, with the voice of the clips.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_quantize)
    parser.description = _DESCRIPTION
    parser.add_argument("model", metavar="MODEL", help="english, demo, a directory, or a hub id")
    parser.add_argument("--method", choices=("bnb-4bit", "bnb-8bit", "awq"), required=True)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="must not be there yet")
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
    awq.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def _quantize(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from chatterbox_vllm.families import FAMILIES
    from chatterbox_vllm.hub import resolve_model
    from chatterbox_vllm.quantization.files import check_output
    from chatterbox_vllm.quantization.make import CALIBRATION_TEXTS, quantize_model

    # Whatever can be refused is refused before the model is read.
    _check_combination(options)
    check_output(options.output)
    texts = CALIBRATION_TEXTS if options.texts is None else _texts(options.texts)
    for clip in options.voice:
        check_clip(clip)
    directory = resolve_model(options.model)
    with tqdm(unit="layer", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        config = quantize_model(
            directory,
            options.output,
            options.method,
            double_quant=not options.no_double_quant,
            texts=texts,
            clips=options.voice,
            device=options.device,
            progress=progress,
        )
    file = FAMILIES[config.family].t3
    before, after = ((d / file).stat().st_size / 2**20 for d in (directory, options.output))
    print(f"{options.output}: T3 in {options.method}, {file} {after:.1f} MiB (was {before:.1f} MiB)")
    return 0


def _check_combination(options: argparse.Namespace) -> None:
    if options.no_double_quant and options.method != "bnb-4bit":
        raise ConfigError(f"--no-double-quant is for bnb-4bit, not for {options.method}: leave it out")
    if options.method != "awq" and (options.texts is not None or options.voice):
        raise ConfigError(f"--texts and --voice are for awq: {options.method} is not calibrated; leave them out")


def _texts(path: Path) -> list[str]:
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); give a text a line") from error
    if not texts:
        raise ConfigError(f"{path}: holds no text; give a text a line")
    return texts
