"""Linear layers in float32 by oneDNN on a CPU.

PyTorch takes MKL for them, which keeps to AVX2 on AMD's processors. On two cores with AVX-512 a product of [406, 256]
with [256, 1536] takes 0.7 ms by oneDNN and 1.5 ms by MKL, on a processor with AVX2 alone 1.4 and 1.6 ms; with one row
the two are about as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_AVAILABLE = torch.backends.mkldnn.is_available()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `torch.nn.functional.linear`: [..., in] and [out, in] to [..., out]."""
    if _AVAILABLE and x.device.type == "cpu" and x.dtype == torch.float32 and not _learns(x, weight) and x.numel():
        # The operator that PyTorch's own compiler uses; it has no gradient.
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def _learns(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)
