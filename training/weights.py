"""The averaged weights of a training, small enough to be carried: float16, in files of at most 15 MB.

A checkpoint of the loop (weights, averages and the optimizer's state in float32) is eight times as large. It is for
going on where a run was interrupted; these are for the nets trained afterwards, for export and for a warm start.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.loop import CHECKPOINT, load_checkpoint, save_checkpoint

WEIGHTS = "weights"


def keep_weights(out: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write a module's state and the dimensions that it has to `out/weights`."""
    kept = {name: tensor.half() if _may_be_half(name, tensor) else tensor for name, tensor in state.items()}
    save_checkpoint(out / WEIGHTS, {"state": kept, "config": config})


def _may_be_half(name: str, tensor: torch.Tensor) -> bool:
    """Biases, norms and statistics take little, and the filters of a mel are no weights."""
    return tensor.is_floating_point() and tensor.dim() > 1 and not name.endswith("_mel_filters")


def load_weights(out: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The kept tensors whose names start with `prefix`, without it; float32, on the CPU."""
    state = load_checkpoint(out / WEIGHTS)["state"]
    return {
        k.removeprefix(prefix): v.float() if v.is_floating_point() else v
        for k, v in state.items()
        if k.startswith(prefix)
    }


def warm_start(arguments: argparse.Namespace, module: nn.Module) -> None:
    """With --resume, where there are kept weights but no checkpoint to go on from: start from the weights.

    What has another shape, such as the speakers of another corpus, starts afresh and is named.
    """
    if not arguments.resume or (arguments.out / CHECKPOINT).is_dir() or not (arguments.out / WEIGHTS).is_dir():
        return
    own = module.state_dict()
    kept = {k: v for k, v in load_weights(arguments.out).items() if k in own and v.shape == own[k].shape}
    module.load_state_dict(kept, strict=False)
    fresh = ", ".join(k for k in own if k not in kept) or "nothing"
    print(f"starts from the weights in {arguments.out / WEIGHTS}; afresh: {fresh}", flush=True)
