"""Several vLLM engines in one process: what they share, and what closing one leaves to the others.

vLLM keeps state of its process in module globals: the groups of torch.distributed, the configuration and the forward
context in force. It is made for one engine a process, which takes the groups down when it ends. Here only the last of
our engines does that. Starting, stepping and ending an engine touch the globals, so they happen one at a time, under
`cuda.graphs.recording`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.vllm.environment import restore_environment

# Of the live engines of this process. Changed under `recording` only.
_devices: list[torch.device] = []
_set_aside = False  # whether it has been done in this process


def enter(device: torch.device) -> None:
    """Note that an engine is about to start.

    Raises:
        ConfigError: one runs on another device, which vLLM's groups are bound to.
    """
    if _devices and _devices[0] != device:
        raise ConfigError(
            f"a model runs on {_devices[0]} in this process, and vLLM cannot run another on {device} beside it: shut "
            "that one down first, or use another process"
        )
    _devices.append(device)


def set_aside() -> None:
    """Take what is in memory out of the garbage collector's sight, until vLLM gives it back as an engine ends.

    vLLM does so itself when an engine has started. By then it has looked for garbage seven times, each time among all
    that was imported, which took 3 s of a start on a CPU.
    """
    global _set_aside
    if _set_aside or any(device.type == "cuda" for device in _devices):
        gc.collect()  # an earlier engine, or whatever else held the card's memory, must not stay
    _set_aside = True
    gc.freeze()


def leave(device: torch.device) -> None:
    """Note that an engine has ended, or has not started after all."""
    _devices.remove(device)
    if not _devices:
        restore_environment()


@contextlib.contextmanager
def leaving(device: torch.device) -> Iterator[None]:
    """Within, an engine's `shutdown` ends that engine; the last one's ends all that vLLM keeps in the process."""
    from vllm.v1.engine import core

    clean_up = core.cleanup_dist_env_and_memory
    if len(_devices) > 1:
        core.cleanup_dist_env_and_memory = lambda *_, **__: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = clean_up
        leave(device)
