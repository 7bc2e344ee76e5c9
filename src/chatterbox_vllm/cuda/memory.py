"""How much a process keeps on a device beside what is in use."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

_SEGMENT = 32 << 20  # bytes: more than the allocator ever takes from a segment that is there already


def spare_device_memory(device: torch.device | str) -> None:
    """Keep little beside what is in use, where cards are small; call before the process multiplies on a GPU.

    Segments that grow leave no gaps between blocks in use. cuBLAS keeps a workspace for each thread and stream, by
    default of 32 MiB on new cards. Where the driver cannot let segments grow (WSL 2 with older drivers), the usual
    allocator stays in force, with a warning.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:1")  # one of 4096 KiB
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")  # KiB
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    try:
        # The driver is asked at the first segment.
        torch.empty(_SEGMENT, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
        logger.warning(
            "the driver cannot let the allocator's segments grow (%s); gaps between blocks may take more of the card "
            "than the tier was measured with: update the driver",
            str(error).partition("\n")[0],
        )
