"""What computes in another way on a CPU computes the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.cpu.linear import Linear, linear
from chatterbox_vllm.s3gen.vocoder.convolutions import Conv, WeightNormTranspose, by_frame
from chatterbox_vllm.s3gen.vocoder.hift import Snake


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "x",
    [
        gaussian(48),
        gaussian(1, 48),
        gaussian(2, 77, 48),
        gaussian(3, 48, 20).transpose(1, 2),  # not as it lies
        gaussian(2, 9, 96)[..., ::2],
        gaussian(0, 48),
    ],
    ids=["one", "row", "rows", "turned", "strided", "none"],
)
def test_linear(x: torch.Tensor, bias: bool) -> None:
    weight, shift = gaussian(32, 48, seed=1), gaussian(32, seed=2) if bias else None
    torch.testing.assert_close(linear(x, weight, shift), F.linear(x, weight, shift))
    half = [None if part is None else part.bfloat16() for part in (x, weight, shift)]
    assert torch.equal(linear(*half), F.linear(*half))  # type: ignore[arg-type]


def test_a_layer_learns_as_ever() -> None:
    x, own, torchs = gaussian(5, 48).requires_grad_(), Linear(48, 32), nn.Linear(48, 32)
    torchs.load_state_dict(own.state_dict())
    for layer in (own, torchs):
        layer(x).square().sum().backward()
    assert own.weight.grad is not None and torch.equal(own.weight.grad, torchs.weight.grad)
    with torch.no_grad():
        torch.testing.assert_close(own(x), torchs(x))
    own.requires_grad_(False)  # the input alone wants a gradient
    (grad,) = torch.autograd.grad(own(x).sum(), x)
    torch.testing.assert_close(grad, own.weight.sum(0).expand(5, 48))


@pytest.mark.parametrize("layout", [by_frame, torch.clone], ids=["by frame", "by channel"])
@pytest.mark.parametrize(
    "kinds, options",
    [
        ((Conv, nn.Conv1d), {"kernel_size": 7, "padding": 9, "dilation": 3}),
        ((Conv, nn.Conv1d), {"kernel_size": 6, "padding": 1, "stride": 3}),
        ((WeightNormTranspose, nn.ConvTranspose1d), {"kernel_size": 11, "padding": 3, "stride": 5}),
    ],
    ids=["dilated", "strided", "transposed"],
)
def test_convolutions(kinds: tuple[type[nn.Module], type[nn.Module]], options: dict[str, int], layout) -> None:  # type: ignore[no-untyped-def]
    own, torchs = (kind(12, 20, **options) for kind in kinds)
    torchs.load_state_dict(own.state_dict())
    x = layout(gaussian(2, 12, 50))
    out = own(x)
    torch.testing.assert_close(out, torchs(x))
    if layout is by_frame:
        assert out.transpose(1, 2).is_contiguous()  # the next one finds it as it wants it


def test_snake_leaves_its_input_alone() -> None:
    snake, x = Snake(6), gaussian(2, 6, 9)
    with torch.no_grad():
        snake.alpha.copy_(gaussian(6, seed=1).abs() + 0.1)
        before, fast = x.clone(), snake(x)
    assert torch.equal(x, before) and torch.equal(fast, snake(x).detach())
