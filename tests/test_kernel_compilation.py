"""Every Triton kernel compiles for the cards that people have. No card is needed for it.

The interpreter, by which other tests run kernels on a CPU, takes types and masks that the compiler refuses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from chatterbox_vllm.t3.alignment import STATE_WIDTH

from .reasons import NO_TRITON

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)

CARDS = {"T4": 75, "H100": 90, "B200": 100}  # their compute capabilities
HALF = torch.float16
Compiled = list[tuple[str, bytes]]


class OnCard(torch.Tensor):
    """On the CPU, and says that it is not: launches go by that."""

    is_cuda = True


def on_card(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype).as_subclass(OnCard)


@pytest.fixture(params=CARDS)
def compiled(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """Launches compile for a card and end there: names of kernels, and what the card would run."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default; it warns where nobody says so
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    capability = CARDS[request.param]

    class Card:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return capability  # so that what is compiled for one card is not taken for another

        def get_current_stream(self, device: int) -> int:
            return 0

    found: Compiled = []
    launch = JITFunction.run

    def compiling(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel.asm["cubin"]))
        return kernel

    monkeypatch.setattr(JITFunction, "run", compiling)
    monkeypatch.setattr(driver, "_active", Card())
    yield found
    assert found and all(code for _, code in found)


def decode(dtype: torch.dtype) -> None:
    from chatterbox_vllm.t3.decode_kernel import decode_attention
    from chatterbox_vllm.t3.shared_kernel import SharedPlaces, find_shared

    integers = torch.zeros(40, 8, dtype=torch.int32)
    shared = SharedPlaces.empty(40, 16, 64, torch.device("cpu"))
    find_shared(integers, integers[:, 0], 16, shared)
    for rows in (2, 40):
        query = on_card(rows, 16, 64, dtype=dtype)
        cache = on_card(8, 16, 16, 128, dtype=dtype)
        for own in (None, shared):
            decode_attention(query, cache, integers[:rows], integers[:rows, 0], query, 0.125, own)


def follow(dtype: torch.dtype) -> None:
    from chatterbox_vllm.t3.following_kernel import addresses, follow_requests

    keys = [on_card(4, 16, 64, dtype=dtype)] * 3
    whole, integers = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(5, 4, dtype=torch.int32)
    follow_requests(
        on_card(4, 40), on_card(4, 3, 64, dtype=dtype), keys, addresses(keys), whole, integers[:, 0].contiguous(),
        integers[:4, 0].contiguous(), integers[:4], on_card(5, STATE_WIDTH), 5, 11, 2,
    )  # fmt: skip


def choose(streams: int, penalty_last: bool) -> None:
    from chatterbox_vllm.t3.sampling_kernel import compile_choice

    compile_choice(streams, on_card(2, 8194, dtype=torch.bool), penalty_last)


def s3gen(dtype: torch.dtype) -> None:
    from chatterbox_vllm.s3gen import kernels

    width, frames = 256, 64
    x = on_card(frames, width, dtype=dtype)
    norm = torch.nn.LayerNorm(width, dtype=dtype)
    places = torch.zeros(frames, dtype=torch.int32)
    kernels.attention(on_card(frames, 3 * 512, dtype=dtype), torch.zeros(2, 3, dtype=torch.int32), 8)
    kernels.add_norm(x, x, norm)
    kernels.add_norm(x, x, None)
    kernels.norm_mish(x, norm)
    kernels.norm_mish(x, norm, time=x[0].contiguous(), residual=x, next_norm=norm)
    kernels.snake(x, on_card(width, dtype=dtype))
    by = kernels.packed_conv(on_card(width, width, 3, dtype=dtype), on_card(width, dtype=dtype), 1, 2)
    kernels.conv(x, by, places, places)
    kernels.conv(x, by, places, places, residual=x, snake=on_card(width, dtype=dtype))
    kernels.conv(x, by, places, places, snake=on_card(width, dtype=dtype), plain=False, dtype=torch.float32)


def noise() -> None:
    from chatterbox_vllm.s3gen.noise_kernel import normal, normal_rows

    normal(1, 2, 80, 0, 100, torch.device("cpu"))
    whole = torch.zeros(3, dtype=torch.int64)
    normal_rows(whole, whole, whole, 9, 100)


LAUNCHES: dict[str, Callable[[], None]] = {
    **{f"decode {dtype}": partial(decode, dtype) for dtype in (torch.float32, HALF, torch.bfloat16)},
    **{f"follow {dtype}": partial(follow, dtype) for dtype in (torch.float32, HALF, torch.bfloat16)},
    **{f"choose {streams} {last}": partial(choose, streams, last) for streams, last in ((2, False), (1, True))},
    **{f"s3gen {dtype}": partial(s3gen, dtype) for dtype in (HALF, torch.bfloat16)},
    "noise": noise,
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_it_compiles(name: str, compiled: Compiled) -> None:
    LAUNCHES[name]()
