"""The float32 setting is the process's: it must hold while any thread needs it, and come back after the last."""

from __future__ import annotations

import contextlib
import threading

import torch

from chatterbox_vllm.models.precision import ieee_float32


def test_holds_from_the_first_thread_to_the_last() -> None:
    before = torch.backends.cudnn.allow_tf32
    assert before  # torch's default, which this is all about
    first_is_in, second_is_out = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with ieee_float32():
            first_is_in.set()
            second_is_out.wait(10)
            seen.append(torch.backends.cudnn.allow_tf32)

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with ieee_float32():
        seen.append(torch.backends.cudnn.allow_tf32)
    second_is_out.set()
    thread.join()
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_comes_back_after_an_error() -> None:
    before = torch.backends.cudnn.allow_tf32

    @ieee_float32()
    def fail() -> None:
        assert not torch.backends.cudnn.allow_tf32
        raise ValueError

    for _ in range(2):
        with contextlib.suppress(ValueError):
            fail()
        assert torch.backends.cudnn.allow_tf32 == before
