"""Linear layers and LSTMs of plain torch modules with their weights in 4 or 8 bits.

A layer takes its place on `meta`, before anything is loaded; `checkpoint.load_module` then hands it each weight as soon
as it is read, and the layer keeps the quantized form only. So a model is never in memory unquantized: loading takes the
result and one layer's floats. Which layers of a network are meant is for the network to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from typing_extensions import Self

from chatterbox_vllm.cpu.linear import linear
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.quantization.storage import SCHEMES, Layout, QuantizedMatrix, Scheme, scheme_of


class QuantizedModule(nn.Module):
    """A module some of whose matrices are quantized; before they are loaded, parameters on `meta` stand for them.

    Implements `checkpoint.KeepsOwnForm`.
    """

    def __init__(self, scheme: Scheme):
        super().__init__()
        self.scheme = scheme
        self.matrices: dict[str, QuantizedMatrix] = {}

    def keep(self, name: str, value: torch.Tensor, device: torch.device | str) -> bool:
        """Quantize the float matrix `name` on `device` and keep that; other tensors are left to the caller."""
        if value.dim() != 2:
            return False
        self._set(name, QuantizedMatrix.of(value.to(device), self.scheme))
        return True

    def stored_keys(self, key: str) -> Iterator[str]:
        """Keys of the tensor `key` in a quantized file, in either form; T3's files leave "weight" out."""
        for method in SCHEMES:
            for stem in (key, key.removesuffix(".weight")):
                yield from (f"{stem}.{part}" for part in scheme_of(method).layout((1, 1)))

    def restore(self, name: str, stored: dict[str, torch.Tensor], file: str, device: torch.device | str) -> None:
        """Keep a matrix as a quantized file holds it, bit for bit.

        Raises:
            CheckpointError: it is not whole, not of this module's shape, or made by another method than asked for.
        """
        key = next(iter(stored)).rpartition(".")[0]
        rows, columns = getattr(self, name).shape
        layout = self.scheme.layout((rows, columns))
        # Clones, so that no matrix keeps the whole mapped file alive.
        tensors = {stem.rpartition(".")[2]: value.to(device, copy=True) for stem, value in stored.items()}
        found: Layout = {part: (tuple(value.shape), value.dtype) for part, value in tensors.items()}
        if found != layout:
            raise CheckpointError(
                f"{file}: {key} of shape {(rows, columns)} is stored by {self.scheme} as {_described(layout)}; "
                f"found {_described(found)}: load the file with the method it was made by, or make it anew"
            )
        self._set(name, QuantizedMatrix(self.scheme, (rows, columns), tensors))

    def _set(self, name: str, matrix: QuantizedMatrix) -> None:
        self._parameters.pop(name, None)
        self.matrices[name] = matrix

    def dequantized_matrix(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The matrix `name` in a floating-point dtype, newly made."""
        return self.matrices[name].dequantized(dtype)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        # Matrices follow to another device; a change of dtype is not for them.
        for name, matrix in self.matrices.items():
            device = fn(torch.empty(0, device=matrix.device)).device
            if device != matrix.device:
                self.matrices[name] = matrix.to(device)
        return self


class QuantizedLinear(QuantizedModule):
    """A linear layer with a quantized weight; its bias stays as it is. Dequantizes at every call."""

    def __init__(self, in_features: int, out_features: int, bias: bool, scheme: Scheme):
        super().__init__(scheme)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device="meta"), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, device="meta"), requires_grad=False) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear, scheme: Scheme) -> Self:
        """What takes the place of `linear`, its weight quantized unless it is on `meta`."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, scheme)
        if hasattr(linear, "fused"):
            layer.fused = linear.fused
        layer.bias = linear.bias
        if not linear.weight.is_meta:
            layer.keep("weight", linear.weight.detach(), linear.weight.device)
        return layer

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] in a floating-point dtype, newly made."""
        return self.dequantized_matrix("weight", dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], in the dtype of `x`, which must be the bias's."""
        return linear(x, self.dequantized(x.dtype), self.bias)


class QuantizedLSTM(QuantizedModule):
    """An LSTM with quantized weights and its biases as they are. Dequantizes all layers at every call."""

    def __init__(self, lstm: nn.LSTM, scheme: Scheme):
        """Takes the place of `lstm`, its weights quantized unless they are on `meta`."""
        super().__init__(scheme)
        self._shape = {"input_size": lstm.input_size, "hidden_size": lstm.hidden_size, "num_layers": lstm.num_layers}
        self._batch_first = lstm.batch_first
        for name, value in list(lstm.named_parameters()):
            self.register_parameter(name, value)
            if not value.is_meta:
                self.keep(name, value.detach(), value.device)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """As `nn.LSTM`."""
        with torch.device("meta"):
            lstm = nn.LSTM(**self._shape, batch_first=self._batch_first, dtype=x.dtype)
        floats = {name: self.dequantized_matrix(name, x.dtype) for name in self.matrices}
        for name, value in (*self.named_parameters(), *floats.items()):
            setattr(lstm, name, nn.Parameter(value, requires_grad=False))
        lstm.flatten_parameters()
        out, state = lstm(x)
        return out, state


def quantize_layers(module: nn.Module, names: Iterable[str], scheme: Scheme) -> None:
    """Put quantized layers in place of the linear layers and LSTMs of these names inside `module`.

    Raises:
        ConfigError: a name is of another kind of layer.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Linear):
            setattr(module.get_submodule(parent), leaf, QuantizedLinear.of(layer, scheme))
        elif isinstance(layer, nn.LSTM):
            setattr(module.get_submodule(parent), leaf, QuantizedLSTM(layer, scheme))
        else:
            raise ConfigError(f"{name} is a {type(layer).__name__}; linear layers and LSTMs can be quantized")


def state_tensors(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """What a quantized file holds of the quantized matrices of `module`, and `load_module` reads back bit for bit.

    Keys are `<prefix><layer>.<weight>.<part>` with the prefix of `load_module`, such as
    `flow.encoder.encoders.0.self_attn.qkv.weight.packed`.
    """
    return {
        f"{prefix}{name}{'.' if name else ''}{weight}.{part}": value
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedModule)
        for weight, matrix in layer.matrices.items()
        for part, value in matrix.tensors.items()
    }


def _described(layout: Layout) -> str:
    return ", ".join(f"{part} {dtype} {list(size)}" for part, (size, dtype) in layout.items())
