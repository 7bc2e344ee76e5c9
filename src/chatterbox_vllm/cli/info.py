"""`chatterbox-vllm info`: versions, device, sizes."""

from __future__ import annotations

import argparse
import json

from chatterbox_vllm.cli.options import add_model


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_info)
    add_model(parser, None)
    parser.add_argument("--json", action="store_true", help="as JSON")


def _info(options: argparse.Namespace) -> int:
    from chatterbox_vllm.setup.machine import collect, render

    facts = collect(options.model, options.device)
    print(json.dumps(facts, indent=1) if options.json else render(facts))
    return 0
