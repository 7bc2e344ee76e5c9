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

# Fitted to the peaks of four models without a tier and in tiers 4, 6, 8 and 12 on an H100
# (benchmarks/results/2026-11-26-h100-tiers.json), of the multilingual one in these and of four in tier 24 and English
# in tier 48 on an H200 (2026-11-27-h200-tiers.json): the watermark's net and what it computes for an utterance of 10 s;
# and what the allocator holds for each byte that S3Gen and the watermark work with, beside it, up to a most that larger
# batches do not exceed. The allocator keeps memory for each stream by itself, and what a batch of one size leaves does
# not fit one of another. Where a tier is frugal, segments grow, and nothing is held.
WATERMARK = 93 * _MIB
ALLOCATOR_SHARE, ALLOCATOR_MOST = 0.9, 1126 * _MIB
