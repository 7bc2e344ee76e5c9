"""`chatterbox-vllm methods`: what each quantization method does to each component on this machine."""

from __future__ import annotations

import math
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chatterbox_vllm.cli.arguments import DType, Keywords, from_settings
from chatterbox_vllm.cli.options import JsonOption
from chatterbox_vllm.cli.outputs import beside, check_writable, write_json
from chatterbox_vllm.cli.progress import progress_bar
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import COMPONENTS, METHODS
from chatterbox_vllm.settings import MODEL

Component = StrEnum("Component", {"t3": "t3", "s3gen": "s3gen", "voice_encoder": "voice_encoder"})
Method = StrEnum("Method", {"bnb-4bit": "bnb-4bit", "bnb-8bit": "bnb-8bit", "awq": "awq", "fp8": "fp8"})


@from_settings(MODEL)
def methods(
    *,
    components: Annotated[
        list[Component] | None, typer.Option(metavar="NAME…", help=", ".join(COMPONENTS), show_default="all")
    ] = None,
    methods: Annotated[
        list[Method] | None, typer.Option(metavar="NAME…", help=", ".join(METHODS), show_default="all")
    ] = None,
    awq: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="the model with T3 in AWQ, from the command quantize", show_default=False),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="T3's; auto is as it is served")] = "auto",
    seconds: Annotated[float, typer.Option(metavar="S", help="of speech at each measurement")] = 5.0,
    batch_sizes: Annotated[
        list[int], typer.Option("--batch-sizes", "--batch", metavar="N…", help="requests at once, T3's speed")
    ] = [1],  # noqa: B006 - Typer copies it
    repeats: Annotated[int, typer.Option(metavar="N", help="runs after the first; the median counts")] = 3,
    json: JsonOption = None,
    given: Keywords,
) -> None:
    """Quantize each component of a model by each method and print what that does.

    That is: the layers quantized, bytes of a weight on the live modules and in theory, the error of the output against
    float32 on the published weights, and the speed. T3's output is the logits of its next token, teacher-forced in the
    engine; "of the kernels" is their error against the same quantized weights in plain float32. S3Gen's output is the
    mel, the voice encoder's the embedding. Errors are relative (L2). AWQ is calibrated on the way, which takes minutes,
    unless --awq names a directory that has it.
    """
    if not 0 < seconds < math.inf or repeats < 1 or min(batch_sizes) < 1:
        raise ConfigError("--seconds, --repeats and --batch-sizes must be positive")
    if awq is not None and not awq.is_dir():
        raise ConfigError(f"{awq}: no such directory; make one with `chatterbox-vllm quantize`, AWQ being T3's method")
    if json is not None:
        check_writable(json)

    import torch

    from chatterbox_vllm.bench.measure import Row, Workload
    from chatterbox_vllm.bench.methods import NOT_HERE, method_rows
    from chatterbox_vllm.cli.tables import of_rows, show
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.setup.provenance import provenance

    model = given.get("model")
    directory = resolve_model(model, given.get("revision"))
    device = resolve_device(given.get("device", "auto"))
    kind = None if dtype == "auto" else getattr(torch, dtype)
    workload = Workload(seconds, tuple(batch_sizes), repeats, awq, kind)
    rows: list[Row] = []
    for component in dict.fromkeys(components or COMPONENTS):
        found: list[Row] = []
        # Quantized files are as large as the model's; they go with each component.
        with tempfile.TemporaryDirectory(prefix="chatterbox-methods-") as work, progress_bar("method") as progress:
            asked = methods or list(Method)
            for row in method_rows(directory, device, component, asked, workload, Path(work)):
                found.append(row)
                progress(f"{component}: {row['method']}", len(found), 1 + len({*asked} & {*COMPONENTS[component]}))
        out = beside(json)
        show(of_rows([row for row in found if NOT_HERE not in row]), file=out)
        for row in found:
            if NOT_HERE in row:
                print(f"not here: {row['method']}: {row[NOT_HERE]}", file=out)
        for method in methods or ():
            if method not in COMPONENTS[component]:
                print(f"not here: {method}: it is no method of {component}", file=out)
        print(file=out, flush=True)
        rows += found
    if json is not None:
        facts = {**provenance(device, model, directory), "seconds": seconds}
        write_json(json, {**facts, "results": rows})
