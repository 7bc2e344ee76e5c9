"""`chatterbox-vllm methods`: what each quantization method does to each component on this machine."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from chatterbox_vllm.cli.options import DTYPES, add_model
from chatterbox_vllm.cli.outputs import check_writable, write_json
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import COMPONENTS, METHODS

_DESCRIPTION = """\
Quantize each component of a model by each method and print what that does: the layers quantized, bytes of a weight on
the live modules and in theory, the error of the output against float32 on the published weights, and the speed. T3's
output is the logits of its next token, teacher-forced in the engine; "of the kernels" is their error against the same
quantized weights in plain float32. S3Gen's output is the mel, the voice encoder's the embedding. Errors are relative
(L2). AWQ is calibrated on the way, which takes minutes, unless --awq names a directory that has it.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_methods)
    parser.description = _DESCRIPTION
    add_model(parser, "english")
    parser.add_argument("--components", nargs="+", choices=tuple(COMPONENTS), default=list(COMPONENTS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="(default: all)")
    parser.add_argument("--awq", type=Path, metavar="DIR", help="the model with T3 in AWQ, from the command quantize")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="T3's (default: as it is served)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of speech at each measurement")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="requests at once, T3's speed")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs after the first; the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")


def _methods(options: argparse.Namespace) -> int:
    if not 0 < options.seconds < math.inf or options.repeats < 1 or min(options.batch) < 1:
        raise ConfigError("--seconds, --repeats and --batch must be positive")
    if options.awq is not None and not options.awq.is_dir():
        raise ConfigError(f"{options.awq}: no such directory; make one with `chatterbox-vllm quantize --method awq`")
    if options.json is not None:
        check_writable(options.json)

    import torch

    from chatterbox_vllm.bench.measure import Row, Workload
    from chatterbox_vllm.bench.methods import NOT_HERE, method_rows
    from chatterbox_vllm.bench.table import table
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.setup.provenance import provenance

    directory, device = resolve_model(options.model), resolve_device(options.device)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    workload = Workload(options.seconds, tuple(options.batch), options.repeats, options.awq, dtype)
    rows: list[Row] = []
    methods = options.methods or list(METHODS)
    for component in dict.fromkeys(options.components):
        found: list[Row] = []
        # Quantized files are as large as the model's; they go with each component.
        with tempfile.TemporaryDirectory(prefix="chatterbox-methods-") as work:
            for row in method_rows(directory, device, component, methods, workload, Path(work)):
                found.append(row)
                if sys.stderr.isatty():
                    print(f"{component}: {row['method']} done", file=sys.stderr, flush=True)
        print(table([row for row in found if NOT_HERE not in row]))
        for row in found:
            if NOT_HERE in row:
                print(f"not here: {row['method']}: {row[NOT_HERE]}")
        for method in options.methods or ():
            if method not in COMPONENTS[component]:
                print(f"not here: {method}: it is no method of {component}")
        print(flush=True)
        rows += found
    if options.json is not None:
        facts = {**provenance(device, str(options.model), directory), "seconds": options.seconds}
        write_json(options.json, {**facts, "results": rows})
    return 0
