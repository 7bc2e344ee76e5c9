"""CAM++ (Wang et al., 2023): reference audio at 16 kHz to an x-vector, the speaker identity that the flow sees.

A small 2-D residual net over mel bins, then densely connected time-delay layers, each masked by its context, then the
mean and deviation over time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import kaldi_fbank
from chatterbox_vllm.checkpoint.config import XVectorConfig

# Frames whose mean is the local context of a masked layer.
_SEGMENT_FRAMES = 100
_FIRST_KERNEL = 5
_KERNEL = 3


class CAMPPlus(nn.Module):
    """Parameters as in `s3gen.safetensors` under `speaker_encoder.`."""

    def __init__(self, config: XVectorConfig):
        super().__init__()
        self.num_mels = config.num_mels
        self.head = _Head(config.head_channels)
        # Three of the head's layers halve the bins, rounding up.
        bins = -(-config.num_mels // 8)
        self.xvector = _TimeDelayNet(config.head_channels * bins, config)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """X-vectors [B, embedding_size] of filterbank features [B, frames, num_mels]."""
        return self.xvector(self.head(features.transpose(1, 2)))

    @torch.no_grad()
    def embed(self, wave: torch.Tensor) -> torch.Tensor:
        """X-vector of a clip.

        Args:
            wave: float32 [samples] at 16 kHz, at least 60 ms, on this module's device.

        Returns:
            float32 [1, embedding_size], not normalised.
        """
        return self(kaldi_fbank(wave, self.num_mels)[None])


class _Norm(nn.Module):
    """Batch normalisation by its stored statistics, over dimension 1."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__()
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.weight = nn.Parameter(torch.empty(channels), requires_grad=False) if affine else None
        self.bias = nn.Parameter(torch.empty(channels), requires_grad=False) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class _NormReLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.batchnorm = _Norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.batchnorm(x))


class _Head(nn.Module):
    """[B, bins, frames] to [B, channels * bins / 8, frames]; strides are along the bins only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = _Norm(channels)
        self.layer1 = nn.Sequential(_Residual(channels, 2), _Residual(channels, 1))
        self.layer2 = nn.Sequential(_Residual(channels, 2), _Residual(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = _Norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x[:, None])))
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class _Residual(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = _Norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _Norm(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(_Norm(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class _TimeDelayNet(nn.Module):
    """[B, channels, frames] to [B, embedding_size]."""

    def __init__(self, in_channels: int, config: XVectorConfig):
        super().__init__()
        self.tdnn = _FirstLayer(in_channels, config.init_channels)
        channels = config.init_channels
        self._stages: list[tuple[str, str]] = []
        for i, (layers, dilation) in enumerate(zip(config.block_layers, config.block_dilations, strict=True), start=1):
            self.add_module(f"block{i}", _DenseBlock(channels, layers, dilation, config))
            channels += layers * config.growth_rate
            self.add_module(f"transit{i}", _Transit(channels))
            channels //= 2
            self._stages.append((f"block{i}", f"transit{i}"))
        self.out_nonlinear = _NormReLU(channels)
        self.dense = _Embedding(2 * channels, config.embedding_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tdnn(x)
        for block, transit in self._stages:
            x = self.get_submodule(transit)(self.get_submodule(block)(x))
        x = self.out_nonlinear(x)
        return self.dense(torch.cat((x.mean(-1), x.std(-1)), dim=1))


class _FirstLayer(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.linear = nn.Conv1d(in_channels, channels, _FIRST_KERNEL, stride=2, padding=_FIRST_KERNEL // 2, bias=False)
        self.nonlinear = _NormReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlinear(self.linear(x))


class _DenseBlock(nn.Module):
    """Each layer sees the block's input and what every layer before it added."""

    def __init__(self, in_channels: int, layers: int, dilation: int, config: XVectorConfig):
        super().__init__()
        for i in range(layers):
            self.add_module(f"tdnnd{i + 1}", _DenseLayer(in_channels + i * config.growth_rate, dilation, config))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.cat((x, layer(x)), dim=1)
        return x


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int, dilation: int, config: XVectorConfig):
        super().__init__()
        bottleneck = config.bottleneck_factor * config.growth_rate
        self.nonlinear1 = _NormReLU(in_channels)
        self.linear1 = nn.Conv1d(in_channels, bottleneck, 1, bias=False)
        self.nonlinear2 = _NormReLU(bottleneck)
        self.cam_layer = _ContextMask(bottleneck, config.growth_rate, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class _ContextMask(nn.Module):
    """A dilated convolution, gated by the mean of the clip plus the mean of the frame's segment."""

    def __init__(self, in_channels: int, channels: int, dilation: int):
        super().__init__()
        padding = _KERNEL // 2 * dilation
        self.linear_local = nn.Conv1d(in_channels, channels, _KERNEL, padding=padding, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(in_channels, in_channels // 2, 1)
        self.linear2 = nn.Conv1d(in_channels // 2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        segments = F.avg_pool1d(x, _SEGMENT_FRAMES, _SEGMENT_FRAMES, ceil_mode=True)
        # The gate is the same for all frames of a segment, so it is computed once for each.
        context = x.mean(-1, keepdim=True) + segments
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * gate.repeat_interleave(_SEGMENT_FRAMES, -1)[..., : x.shape[-1]]


class _Transit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.nonlinear = _NormReLU(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.nonlinear(x))


class _Embedding(nn.Module):
    def __init__(self, in_channels: int, size: int):
        super().__init__()
        self.linear = nn.Conv1d(in_channels, size, 1, bias=False)
        self.nonlinear = nn.Module()
        self.nonlinear.batchnorm = _Norm(size, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlinear.batchnorm(self.linear(x[..., None])[..., 0])
