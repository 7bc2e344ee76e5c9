"""Figures that estimates of memory rest on beside what follows from shapes, and where each comes from.

Three kinds: measured (what was run is named), an allowance (a round figure for what was not measured by itself), and
fitted (chosen so that the sum meets a measured total). `benchmarks/tiers.py` measures the totals again.
"""

from __future__ import annotations

_MIB = 1 << 20

# Measured: what a process holds on an H200 once it has a CUDA context (torch 2.11, CUDA 13); other cards take less.
CUDA_CONTEXT = 621 * _MIB

# Measured: peak bytes of live tensors on a CPU at the published size in float32, by one frame of S3Gen's batch
# (prompt included), or by a pair of frames of one row, which attention weighs.
ENCODER_FRAME, ENCODER_PAIR = 80_000, 96
ESTIMATOR_FRAME, ESTIMATOR_FIXED = 30_000, 28 * _MIB
VOCODER_FRAME = 244_000

# Allowances: loaded kernels; workspaces of cuBLAS for two streams and their recording, of 4 MiB where a tier is frugal
# and of 32 MiB otherwise; what one captured batch size of T3 keeps.
CUDA_LIBRARIES = 80 * _MIB
FRUGAL_WORKSPACES, WORKSPACES = 16 * _MIB, 128 * _MIB
T3_GRAPH = 8 * _MIB

# Fitted to the peaks of tiers 4, 6 and 8 and of no tier on an H200 (benchmarks/results/2026-11-21-h200-tiers.json):
# what the allocator holds for each byte of live tensors beside them; the KV cache is one block and has no gaps.
ALLOCATOR_SHARE = 0.25
