"""Reading published checkpoint files, tensor by tensor, with every fault named by file and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from chatterbox_vllm.errors import CheckpointError

_AGAIN = "delete it and download it again, or make it again where it was quantized, or give another directory"


class _TensorFile(Protocol):
    def keys(self) -> Iterable[str]: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...
    def get_slice(self, name: str) -> Any: ...
    def metadata(self) -> dict[str, str] | None: ...


class _PickledTensors:
    """A `.pt` state dict, memory-mapped, loaded without executing anything (`weights_only`)."""

    def __init__(self, path: Path):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise CheckpointError(f"{path}: not a plain state dict of tensors; {_AGAIN}")
        self._state: dict[str, torch.Tensor] = state

    def keys(self) -> Iterable[str]:
        return self._state.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._state[name]

    def get_slice(self, name: str) -> Any:
        return _Described(tuple(self._state[name].shape))

    def metadata(self) -> None:
        return None


@dataclass(frozen=True)
class Header:
    """The header of a `.safetensors` file.

    Attributes:
        tensors: by key, a tensor's shape and its element type by the format's own name ("F32", "U8", …).
        metadata: what its maker wrote beside them.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    metadata: dict[str, str]


class _HeaderAlone:
    """A file of which nothing but the header is at hand."""

    def __init__(self, path: Path, header: Header):
        self._path, self._header = path, header

    def keys(self) -> Iterable[str]:
        return self._header.tensors.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        raise CheckpointError(f"{self._path}: only its header was fetched, not {name!r}; download the model")

    def get_slice(self, name: str) -> Any:
        return _Described(*self._header.tensors[name])

    def metadata(self) -> dict[str, str]:
        return self._header.metadata


@dataclass(frozen=True)
class _Described:
    shape: tuple[int, ...]
    dtype: str = ""

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_dtype(self) -> str:
        return self.dtype


class Weights:
    """One checkpoint file (`.safetensors` or `.pt`), read lazily: a tensor is in memory only once asked for.

    Args:
        path: the file, or its name where `header` is given.
        header: of a file that is not on this machine; shapes and types can be asked for, tensors cannot.

    Raises:
        CheckpointError: the file is missing, truncated or of another format.
    """

    def __init__(self, path: Path, header: Header | None = None):
        self.path = path
        self._file: _TensorFile = _open(path) if header is None else _HeaderAlone(path, header)
        self.keys = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def get(self, key: str, shape: Iterable[int] | None = None) -> torch.Tensor:
        """The tensor stored under `key`, on the CPU, in the file's dtype.

        Args:
            shape: the shape that the model needs; checked where given.

        Raises:
            CheckpointError: the key is absent or its shape is another one.
        """
        self._check(key, shape)
        return self._file.get_tensor(key)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the tensor stored under `key`, from the file's header."""
        return tuple(self._file.get_slice(key).get_shape())

    def _check(self, key: str, shape: Iterable[int] | None) -> None:
        if key not in self.keys:
            raise CheckpointError(f"{self.path}: tensor {key!r} is missing; is this the right file for this model?")
        found = tuple(self._file.get_slice(key).get_shape())
        if shape is not None and found != tuple(shape):
            raise CheckpointError(
                f"{self.path}: tensor {key!r} has shape {found}, the model needs {tuple(shape)}; "
                "a checkpoint of another size needs its own config.json beside it"
            )

    def storage_type(self, key: str) -> str:
        """The element type of a tensor in a `.safetensors` file by the format's own name: "F32", "U8", …"""
        return str(self._file.get_slice(key).get_dtype())

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError for the first of `shapes` (key to shape) that the file does not hold so.

        Reads the file's header only.
        """
        for key, shape in shapes.items():
            self._check(key, shape)

    def check_layers(self, keys: Iterable[str]) -> None:
        """Refuse a file with more layers than those that `keys` are of: without them the model would speak nonsense.

        Raises:
            CheckpointError: naming a tensor of such a layer.
        """
        layers: dict[str, set[str]] = {}
        for stack, layer in (found for key in keys for found in _layers(key)):
            layers.setdefault(stack, set()).add(layer)
        for key in sorted(self.keys):
            for stack, layer in _layers(key):
                if layer not in layers.get(stack, {layer}):
                    raise CheckpointError(
                        f"{self.path}: it holds {key!r}, and the model has only {len(layers[stack])} of {stack!r}; "
                        "mend config.json, or is this the right file for this model?"
                    )


def _layers(key: str) -> Iterator[tuple[str, str]]:
    """The stacks that a key is of, and its number in each: ("tfmr.layers", "3") of "tfmr.layers.3.norm.weight"."""
    parts = key.split(".")
    return ((".".join(parts[:i]), part) for i, part in enumerate(parts) if part.isdigit())


def _open(path: Path) -> _TensorFile:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; complete the directory or download the model again")
    try:
        return _PickledTensors(path) if _is_pickled(path) else safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error}); {_AGAIN}") from error
    except Exception as error:  # pickle raises many kinds for a file that is not a checkpoint
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be loaded safely ({error}); {_AGAIN}") from error


def _is_pickled(path: Path) -> bool:
    """Whether a file is one of PyTorch's own. Quantized parts are `.safetensors` under whatever name the family has."""
    if path.suffix != ".pt":
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] != b"{"  # after the length of its header, a .safetensors file begins with this


@runtime_checkable
class KeepsOwnForm(Protocol):
    """A submodule that keeps some of its tensors in a form of its own, such as quantized ones."""

    def keep(self, name: str, value: torch.Tensor, device: torch.device | str) -> bool:
        """Take the tensor `name`, as read; False leaves it to `load_module`."""

    def stored_keys(self, key: str) -> Iterable[str]:
        """Keys under which a file may hold the tensor `key` in the submodule's own form."""

    def restore(self, name: str, stored: dict[str, torch.Tensor], file: str, device: torch.device | str) -> None:
        """Take the tensor `name` in the own form, as the file held it."""


def load_module(module: nn.Module, weights: Weights, prefix: str, device: torch.device | str = "cpu") -> None:
    """Fill `module` (parameters and persistent buffers) from the tensors of `weights` whose keys start with `prefix`.

    A module's names are the published ones, with liberties taken here so that modules need not know of them:

    - weight normalisation is folded: for a `weight` stored as `parametrizations.weight.original0/1` (magnitude g and
      direction v, norm over all dimensions but the first) the module gets g * v / ||v||; such submodules carry the
      attribute `weight_normed = True`;
    - a submodule's `fused` attribute, {its tensor's name: published names}, concatenates tensors of one shape along
      dimension 0; names that start with "../" lie beside the submodule;
    - a submodule's `computed` attribute, {its tensor's name: a function of its shape}, stands in for what a file lacks;
    - a submodule that keeps tensors in a form of its own (`KeepsOwnForm`) is given each as soon as it is read.

    Tensors are cast to the dtype that the module holds them in and placed on `device`; the module may be on `meta`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the module's.
    """
    for module_name, submodule in module.named_modules():
        base = f"{prefix}{module_name}." if module_name else prefix
        for name, target in _own_tensors(submodule):
            if isinstance(submodule, KeepsOwnForm):
                stored = {key: weights.get(key) for key in submodule.stored_keys(base + name) if key in weights.keys}
                if stored:
                    submodule.restore(name, stored, str(weights.path), device)
                    continue
            compute = getattr(submodule, "computed", {}).get(name)
            if compute is not None and base + name not in weights.keys:
                value = compute(target.shape)
            else:
                parts = [_read(weights, key) for key in _published_keys(submodule, base, name)]
                value = parts[0] if len(parts) == 1 else torch.cat(parts)
            if value.shape != target.shape:
                raise CheckpointError(
                    f"{weights.path}: tensor {base + name!r} has shape {tuple(value.shape)}, the model needs "
                    f"{tuple(target.shape)}; a checkpoint of another size needs its own config.json beside it"
                )
            if isinstance(submodule, KeepsOwnForm) and submodule.keep(name, value, device):
                continue
            # A copy, so that no parameter keeps the whole mapped file alive.
            value = value.to(device=device, dtype=target.dtype, copy=True)
            if isinstance(target, nn.Parameter):
                setattr(submodule, name, nn.Parameter(value, requires_grad=False))
            else:
                submodule.register_buffer(name, value)


def published_shapes(module: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes that `load_module(module, weights, prefix)` reads from a published file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module_name, submodule in module.named_modules():
        base = f"{prefix}{module_name}." if module_name else prefix
        for name, target in _own_tensors(submodule):
            shape = tuple(target.shape)
            if name in getattr(submodule, "fused", {}):
                keys = _published_keys(submodule, base, name)
                shapes.update({key: (shape[0] // len(keys), *shape[1:]) for key in keys})
            elif name == "weight" and getattr(submodule, "weight_normed", False):
                stem = f"{base}parametrizations.weight."
                shapes[stem + "original0"] = (shape[0],) + (1,) * (len(shape) - 1)
                shapes[stem + "original1"] = shape
            else:
                shapes[base + name] = shape
    return shapes


def _published_keys(module: nn.Module, base: str, name: str) -> list[str]:
    """Where a submodule's tensor comes from; `base` is the submodule's own prefix."""
    fused: dict[str, tuple[str, ...]] = getattr(module, "fused", {})
    beside = base[: base.rstrip(".").rfind(".") + 1]
    return [beside + part[3:] if part.startswith("../") else base + part for part in fused.get(name, (name,))]


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    transient = module._non_persistent_buffers_set
    tensors = [(n, p) for n, p in module.named_parameters(recurse=False)]
    return tensors + [(n, b) for n, b in module.named_buffers(recurse=False) if n not in transient]


def _read(weights: Weights, key: str) -> torch.Tensor:
    stem, _, leaf = key.rpartition(".")
    direction = f"{stem}.parametrizations.{leaf}.original1"
    if key in weights.keys or direction not in weights.keys:
        return weights.get(key)
    v = weights.get(direction)
    g = weights.get(f"{stem}.parametrizations.{leaf}.original0", (v.shape[0],) + (1,) * (v.dim() - 1))
    return torch._weight_norm(v.float(), g.float(), 0)  # a file in half precision may hold them in two types
