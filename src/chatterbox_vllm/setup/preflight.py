"""What can be seen to be wrong before an engine starts, which takes a minute on a GPU."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.errors import DeviceError, OutputError
from chatterbox_vllm.setup.device import check_card
from chatterbox_vllm.setup.planning import Settings, check_model_len, estimator_for
from chatterbox_vllm.setup.tiers import GIB, Plan

_MIB = 1 << 20
_COMPILED = 200 * _MIB  # an allowance for the code of one model, not measured


def preflight(settings: Settings, plan: Plan) -> None:
    """Refuse a plan that cannot be loaded here; takes about a second, and no memory of the device.

    The model's files themselves are checked as they are read, which is before the engine starts, too.

    Raises:
        ConfigError: the watermark cannot be made, or the model length leaves no room to speak.
        CheckpointError: a file is missing, damaged or of another layout.
        DeviceError: the card is too old, or has no room for weights and KV cache.
        OutputError: the cache's disk is full.
    """
    check_card(settings.device)
    check_model_len(settings.config.t3, plan.max_model_len)
    if settings.watermark:
        cpu_watermarker()
    check_memory(settings, plan)
    if settings.cuda_graphs:
        check_disk()


@functools.cache
def cpu_watermarker() -> Watermarker:
    """The watermark with its network loaded on the CPU, once for all models of this process.

    Raises:
        ConfigError: resemble-perth or something that it needs cannot be loaded.
    """
    watermarker = Watermarker("cpu")
    watermarker.load()
    return watermarker


def check_memory(settings: Settings, plan: Plan) -> None:
    """Refuse a plan whose weights and KV cache alone are more than what is free.

    Raises:
        DeviceError
    """
    needed, free = estimator_for(settings, plan).estimate(plan).exact, free_bytes(settings.device)
    if needed > free:
        where = "on the card" if settings.device.type == "cuda" else "of the host's memory"
        raise DeviceError(
            f"weights and KV cache take {needed / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free {where}: lower "
            "max_batch_size or max_model_len, quantize (see `chatterbox-vllm estimate`), or end what else runs there"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that a process can still take.

    Of a card it is what the driver says; of the host what the kernel and the container's limit leave, swap included.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    meminfo = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    return min(meminfo["MemAvailable"] + meminfo["SwapFree"], _left_of_the_container())


def _left_of_the_container() -> int:
    """Bytes below the limit of cgroups version 2; file pages that the kernel can drop count as free."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        pages = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:  # none, or another version
        return 1 << 62
    return 1 << 62 if limit == "max" else int(limit) - used + int(pages.get("inactive_file", 0))


def check_disk() -> None:
    """Refuse to start where the code that vLLM compiles for T3 cannot be written.

    Raises:
        OutputError
    """
    place = _vllm_cache()
    there = next((path for path in (place, *place.parents) if path.exists()), place)
    free = shutil.disk_usage(there).free
    if free < _COMPILED:
        raise OutputError(
            f"{place} has {free / _MIB:.0f} MiB free, and vLLM may write {_COMPILED / _MIB:.0f} MiB of compiled code "
            "there: make room, or set VLLM_CACHE_ROOT to a directory on another disk"
        )


def _vllm_cache() -> Path:
    """Where vLLM keeps compiled code, by its own rule."""
    if root := os.environ.get("VLLM_CACHE_ROOT"):
        return Path(root).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "vllm"
