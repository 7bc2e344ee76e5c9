"""The float32 setting is the process's: it must hold while any thread needs it, and come back after the last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import torch

from chatterbox_vllm.cuda.precision import ieee_float32

CUDNN = torch.backends.cudnn
IEEE = ("ieee", "ieee")


def settings() -> tuple[str, str]:
    return CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision


@pytest.fixture(autouse=True)
def torch_default() -> Iterator[None]:
    assert settings() == ("tf32", "tf32")  # which this is all about
    yield
    CUDNN.allow_tf32 = True


def test_holds_from_the_first_thread_to_the_last() -> None:
    before = settings()
    first_is_in, second_is_out = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with ieee_float32():
            first_is_in.set()
            second_is_out.wait(10)
            seen.append(settings())

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with ieee_float32():
        seen.append(settings())
    second_is_out.set()
    thread.join()
    assert seen == [IEEE, IEEE]
    assert settings() == before


def test_comes_back_after_an_error() -> None:
    @ieee_float32()
    def fail() -> None:
        assert settings() == IEEE
        raise ValueError

    for _ in range(2):
        before = settings()
        with contextlib.suppress(ValueError):
            fail()
        assert settings() == before


@pytest.mark.parametrize("allowed", [True, False])
def test_what_was_set_by_the_older_name_can_be_read_by_it_again(allowed: bool) -> None:
    CUDNN.allow_tf32 = allowed
    with ieee_float32():
        assert settings() == IEEE
    assert CUDNN.allow_tf32 == allowed


def test_others_may_set_one_operator_alone() -> None:
    CUDNN.conv.fp32_precision = "ieee"  # after which PyTorch refuses to tell by the older name
    with pytest.raises(RuntimeError, match="allow_tf32"):
        _ = CUDNN.allow_tf32
    with ieee_float32():
        assert settings() == IEEE
    assert settings() == ("ieee", "tf32")
