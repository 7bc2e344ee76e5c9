"""How S3Gen computes: what can be asked for, and what is in force."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

from chatterbox_vllm.errors import ConfigError

Kernels = Literal["torch", "triton"]
_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, *_HALF)


@dataclass(frozen=True)
class Execution:
    """What S3Gen's computation is made of.

    Attributes:
        dtype: of encoder and estimator.
        vocoder_dtype: of the vocoder's convolutions.
        kernels: of the estimator. "torch": padded batches, masked attention; "triton": rows end to end without padding,
            kernels of our own, GELU by its tanh approximation.
        cuda_graphs: whether the estimator is replayed from CUDA graphs.
    """

    dtype: torch.dtype
    vocoder_dtype: torch.dtype
    kernels: Kernels
    cuda_graphs: bool

    @property
    def vocoder_kernels(self) -> Kernels:
        """Of the vocoder's convolutions: as `kernels` in half precision, torch's in float32."""
        return self.kernels if self.vocoder_dtype in _HALF else "torch"

    @classmethod
    def choose(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        vocoder_dtype: torch.dtype,
        kernels: Literal["auto", "torch", "triton"] = "auto",
        cuda_graphs: bool | None = None,
    ) -> Execution:
        """Triton kernels for a flow in half precision on CUDA, graphs on CUDA, unless told otherwise.

        Raises:
            ConfigError: a value is none of those known, or the choice cannot be had on this device or in this dtype.
        """
        for name, value in (("dtype", dtype), ("vocoder_dtype", vocoder_dtype)):
            if value not in _DTYPES:
                raise ConfigError(f"S3Gen's {name} must be float32, float16 or bfloat16, found {value}")
        cuda = torch.device(device).type == "cuda"
        if kernels == "auto":
            kernels = "triton" if cuda and dtype in _HALF else "torch"
        if kernels not in ("torch", "triton"):
            raise ConfigError(f'S3Gen\'s kernels must be "auto", "torch" or "triton", found {kernels!r}')
        if kernels == "triton":
            if not cuda:
                raise ConfigError(f'S3Gen\'s Triton kernels need a CUDA device, not {device}; use kernels="torch"')
            if dtype not in _HALF:
                raise ConfigError(
                    f"S3Gen's Triton kernels compute in float16 or bfloat16, not {dtype}: their float32 products are "
                    'rounded to TF32; use another dtype or kernels="torch"'
                )
            if importlib.util.find_spec("triton") is None:
                raise ConfigError('S3Gen\'s Triton kernels need the package triton; install it or use kernels="torch"')
        if cuda_graphs and not cuda:
            raise ConfigError(f"CUDA graphs need a CUDA device, not {device}; leave cuda_graphs out")
        return cls(dtype, vocoder_dtype, kernels, cuda if cuda_graphs is None else cuda_graphs)
