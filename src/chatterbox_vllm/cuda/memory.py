"""How much a process keeps on a device beside what is in use."""

from __future__ import annotations

import os

import torch


def spare_device_memory() -> None:
    """Keep little beside what is in use, where cards are small; call before the process multiplies on a GPU.

    Segments that grow leave no gaps between blocks in use. cuBLAS keeps a workspace for each thread and stream, by
    default of 32 MiB on new cards.
    """
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:1")  # one of 4096 KiB
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")  # KiB
