"""Keys and values of sequences of different lengths in one memory, dealt out in pages."""

from __future__ import annotations

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.kv_cache import kv_bytes_per_position

PAGE = 16  # positions


class Pages:
    """The memory of all layers and streams, and which pages of it are free.

    Args:
        size: bytes that it may take, whole pages of it are used.
    """

    def __init__(self, config: T3Config, size: int, dtype: torch.dtype, device: torch.device):
        self.count = size // (PAGE * kv_bytes_per_position(config, dtype.itemsize))
        shape = (config.guidance_streams, self.count * PAGE, config.num_heads, config.head_dim)
        # Zeros, as what is masked is multiplied with, too.
        self._memory = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)) for _ in range(config.num_layers)
        ]
        self._free = list(range(self.count))

    @property
    def in_use(self) -> int:
        """Pages that sequences hold."""
        return self.count - len(self._free)

    @staticmethod
    def needed(positions: int) -> int:
        """Pages for a sequence of that length."""
        return -(-positions // PAGE)

    def take(self, positions: int) -> torch.Tensor | None:
        """Where a sequence's positions lie, int64 [whole pages] on the CPU; None where there is no room now."""
        count = self.needed(positions)
        if count > len(self._free):
            return None
        pages, self._free = self._free[:count], self._free[count:]
        return (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()

    def give_back(self, places: torch.Tensor) -> None:
        """The end of `take`."""
        self._free += (places[::PAGE] // PAGE).tolist()

    def write(self, layer: int, places: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put down keys and values.

        Args:
            places: [B, T] int64.
            k, v: [S * B, heads, T, head_dim], stream after stream.
        """
        for memory, value in zip(self._memory[layer], (k, v), strict=True):
            memory[:, places] = value.unflatten(0, (-1, len(places))).transpose(2, 3)

    def read(self, layer: int, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `places` [B, T], each [S * B, heads, T, head_dim]."""
        k, v = (memory[:, places].flatten(0, 1).transpose(1, 2) for memory in self._memory[layer])
        return k, v
