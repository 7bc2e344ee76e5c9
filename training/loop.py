"""What all training scripts share: a budget of seconds, checkpoints in small files, a log, a schedule and an average.

run = Run(arguments, model=model, optimizer=optimizer, average=average)
for step in run.steps():
    ...
    run.note(loss=loss)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from chatterbox_vllm.cuda.precision import ieee_float32

CHECKPOINT = "checkpoint"
_TF32_OPERATORS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
_PART_BYTES = 15_000_000
_LOG_SECONDS = 5.0
_SAVE_SECONDS = 120.0


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options that every training script has."""
    parser.add_argument("--out", type=Path, required=True, help="directory of this part's checkpoint and log")
    parser.add_argument("--seconds", type=float, default=seconds, help="after which it saves and ends by itself")
    parser.add_argument(
        "--horizon",
        type=float,
        help="seconds of the whole training, earlier runs included, at whose end the learning rate is zero; "
        "by default what earlier runs took and --seconds",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out where there is one")
    parser.add_argument("--seed", type=int, default=1)


class Run:
    """One call of a training script.

    The clock starts here: make a `Run` when the data is ready.

    Args:
        arguments: those of `add_arguments`.
        parts: all that a checkpoint keeps.

    Attributes:
        step: steps done, earlier runs included.
    """

    def __init__(self, arguments: argparse.Namespace, **parts: Stateful):
        self.out: Path = arguments.out
        self.seconds: float = arguments.seconds
        self.step, self._before = 0, 0.0
        self._parts = parts
        self._sums: dict[str, tuple[torch.Tensor | float, int]] = {}
        self.out.mkdir(parents=True, exist_ok=True)
        if arguments.resume and (self.out / CHECKPOINT).is_dir():
            state = load_checkpoint(self.out, arguments.device)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.step, self._before = state["step"], state["seconds"]
        self._horizon: float = arguments.horizon or self._before + self.seconds
        self._begin = self._logged = self._saved = time.monotonic()
        self._logged_step = self.step

    @property
    def spent(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self._begin

    @property
    def progress(self) -> float:
        """Share of the whole training that is over, 0 to 1."""
        return min(1.0, (self._before + self.spent) / self._horizon)

    def steps(self) -> Iterator[int]:
        """Step numbers until the seconds are over; logs and saves on the way and at the end."""
        while self.spent < self.seconds:
            yield self.step
            self.step += 1
            now = time.monotonic()
            if now - self._logged >= _LOG_SECONDS:
                self.write_log()
            if now - self._saved >= _SAVE_SECONDS:
                self.save()
                self._saved = time.monotonic()
        self.write_log()
        self.save()

    def note(self, **numbers: torch.Tensor | float) -> None:
        """Numbers of this step; the log has their means. Tensors stay on their device until the next log line."""
        for name, number in numbers.items():
            value = number.detach().float() if isinstance(number, torch.Tensor) else number
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1

    def write_log(self, **more: float) -> None:
        """One line to standard output and to `log.jsonl`: the means since the last one, and `more`."""
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}  # waits for the device
        now = time.monotonic()
        rate = (self.step - self._logged_step) / max(now - self._logged, 1e-6)
        line = {"step": self.step, "seconds": self._before + self.spent, "steps_per_s": rate, **means, **more}
        self._sums, self._logged, self._logged_step = {}, now, self.step
        rounded = {name: float(f"{value:.5g}") for name, value in line.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        print(" ".join(f"{name}={value:g}" for name, value in rounded.items()), flush=True)
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"step {self.step}: {', '.join(broken)} is not finite; lower the learning rate")

    def save(self) -> None:
        """Write the checkpoint now."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        save_checkpoint(self.out, {**state, "step": self.step, "seconds": self._before + self.spent})


def save_checkpoint(out: Path, state: dict[str, Any]) -> None:
    """Write `state` to `out/checkpoint/part.*`, files of at most 15 MB; an older one goes when this one is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    fresh, kept = out / f"{CHECKPOINT}.new", out / CHECKPOINT
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for number, begin in enumerate(range(0, len(data), _PART_BYTES)):
        (fresh / f"part.{number:03}").write_bytes(data[begin : begin + _PART_BYTES])
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)


def load_checkpoint(out: Path, device: str = "cpu") -> dict[str, Any]:
    """What `save_checkpoint` wrote."""
    parts = sorted((out / CHECKPOINT).glob("part.*"))
    if not parts:
        raise FileNotFoundError(f"{out / CHECKPOINT}: no checkpoint here; train this part first")
    state: dict[str, Any] = torch.load(
        io.BytesIO(b"".join(part.read_bytes() for part in parts)), map_location=device, weights_only=True
    )
    return state


def rate_at(progress: float, peak: float, warmup: float = 0.02, last: float = 0.0) -> float:
    """Learning rate: a linear rise over `warmup` of the training, then half a cosine down to `last * peak`."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.01)
    along = (progress - warmup) / (1 - warmup)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * along)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """All groups get `rate`, times their own "scale" where they have one."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):  # which a CUDA graph reads
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def adamw(
    module: nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.98), decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW on all of a module's parameters, without decay for vectors (biases, norms)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, fused=fused)


class Average:
    """The exponential moving average of a module's parameters, and its buffers as they are.

    The average follows faster at the start: its decay at step n is at most (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, decay: float = 0.999):
        self._module, self._decay, self._updates = module, decay, 0
        self._parameters = list(module.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The module with the averages as its parameters."""
        with torch.no_grad():
            own = [p.detach().clone() for p in self._parameters]
            torch._foreach_copy_(self._parameters, self._averages)
        try:
            yield self._module
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, own)

    def module_state(self) -> dict[str, torch.Tensor]:
        """The module's `state_dict` with the averages in it, on the CPU."""
        with self.applied() as module:
            return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self._averages, state["averages"])
        self._updates = state["updates"]


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Seed everything, and let matrix products, convolutions and LSTMs use TF32 on CUDA."""
    torch.manual_seed(arguments.seed)
    for operator in _TF32_OPERATORS:
        operator.fp32_precision = "tf32"
    # It makes a plan for every shape, and batches come in many.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(arguments.device)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 in this block or function, as at inference: for what must equal it."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        with ieee_float32():
            yield
    finally:
        matmul.fp32_precision = before


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 for what is safe in it on CUDA, float32 on the CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
