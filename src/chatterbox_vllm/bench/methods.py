"""Every quantization method on every component: bytes on the live modules against theory, error, speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from chatterbox_vllm.bench.measure import Row, Workload
from chatterbox_vllm.bench.methods_s3gen import S3GenMethods
from chatterbox_vllm.bench.methods_t3 import T3Methods
from chatterbox_vllm.bench.methods_voice_encoder import VoiceEncoderMethods
from chatterbox_vllm.checkpoint.config import QuantizedParts
from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.config import COMPONENTS

NOT_HERE = "not here"  # what a row holds, with the reason, instead of figures


def method_rows(
    directory: Path,
    device: torch.device,
    component: str,
    methods: Sequence[str],
    workload: Workload,
    work: Path,
) -> Iterator[Row]:
    """A row for the component as it is, which all errors refer to by way of float32, then one for each method.

    A method that this machine cannot do has the reason in its row.

    Args:
        directory: an unquantized model.
        component: one of `COMPONENTS`; of `methods`, those it has are measured.
        work: an empty directory for quantized files.

    Raises:
        ConfigError: the model is quantized already, or `workload.awq` is not in AWQ.
        CheckpointError: a file is not what it should be.
        DeviceError: the component as it is cannot be measured.
    """
    if config_of(directory).quantized != QuantizedParts():
        raise ConfigError(f"{directory} is quantized already; give the model that it was made from")
    made = None if workload.awq is None else config_of(workload.awq).quantized.t3
    if workload.awq is not None and (made is None or made.method != "awq"):
        raise ConfigError(f"{workload.awq} holds no T3 in AWQ; make one with `chatterbox-vllm quantize --method awq`")
    measured: S3GenMethods | T3Methods | VoiceEncoderMethods
    if component == "t3":
        measured = T3Methods(directory, device, workload, work)
    elif component == "s3gen":
        measured = S3GenMethods(directory, device, workload)
    else:
        measured = VoiceEncoderMethods(directory, device, workload)
    yield {"component": component, "method": "none", **measured.row(None)}
    for method in (m for m in COMPONENTS[component] if m in methods):
        try:
            row = measured.row(method)
        except (ConfigError, DeviceError) as error:
            row = {NOT_HERE: str(error)}
        yield {"component": component, "method": method, **row}
