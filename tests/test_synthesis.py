"""S3Gen beside T3, with an S3Gen of a few lines: which batches it takes, and when."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.engine.chunks import QUICK
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.synthesis import _FIRST_PARTS, _LATER_PARTS, InlineSynthesis, Outcome, ThreadedSynthesis
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, SpokenChunk, TokensToSpeak
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.s3gen.packing import packed_size
from chatterbox_vllm.setup.probe import BatchWatch

from .fakes import ToneS3Gen, a_voice

CPU = torch.device("cpu")


class SlowS3Gen:
    """A waveform of one sample, the number of tokens; waits for `go` before each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def frames(self, speech_tokens: int, prompt: object) -> tuple[int, int]:
        return 2 * speech_tokens, 2 * speech_tokens

    def frames_computed(self, lengths: Sequence[int]) -> int:
        return packed_size(sum(lengths))

    def draw_noise(self, seed: int, speech_tokens: int, prompt: object) -> None:
        return None

    def record_graphs(self, most_frames: int, longest: int, chunks: int = 0) -> int:
        return 0

    def launch(self, requests, steps: int, between=None) -> Callable[[], list[torch.Tensor]]:
        self.batches.append([len(request.speech_tokens) for request in requests])
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if any(13 in request.speech_tokens for request in requests):
            raise RuntimeError("unlucky")
        return lambda: [torch.tensor([float(len(request.speech_tokens))]) for request in requests]


@pytest.fixture
def say() -> Callable[..., TokensToSpeak]:
    voice = a_voice()

    def utterance(tokens: int, order: float = 0.0, steps: int = 10, token: int = 7) -> TokensToSpeak:
        return TokensToSpeak((token,) * tokens, voice, steps, seed=0, order=order)

    return utterance


@pytest.fixture
def s3gen() -> SlowS3Gen:
    return SlowS3Gen()


@pytest.fixture
def threaded(s3gen: SlowS3Gen) -> Iterator[ThreadedSynthesis]:
    synthesis = ThreadedSynthesis(S3GenStage(s3gen, max_batch_size=4), None, CPU)
    yield synthesis
    s3gen.go.release(100)
    synthesis.close()


def collect(synthesis: ThreadedSynthesis, count: int) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + 30
    while len(outcomes) < count and time.monotonic() < end:
        outcomes.update(synthesis.poll(1.0))
    return outcomes


def test_the_next_batch_begins_without_a_poll(
    threaded: ThreadedSynthesis, s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]
) -> None:
    threaded.add({"a": say(100)})
    assert s3gen.begun.acquire(timeout=30)  # before anybody has polled
    for i, tokens in enumerate((50, 80, 60)):
        threaded.add({f"b{i}": say(tokens)})
    assert threaded.waiting == 3 and threaded.busy
    s3gen.go.release()
    assert s3gen.begun.acquire(timeout=30)  # again: the thread went on by itself
    assert s3gen.batches == [[100], [50, 80, 60]] and threaded.waiting == 0
    s3gen.go.release()
    assert {name: float(wave) for name, wave in collect(threaded, 4).items()} == {
        "a": 100.0,
        "b0": 50.0,
        "b1": 80.0,
        "b2": 60.0,
    }
    assert not threaded.busy and threaded.poll(5.0) == []


def test_what_is_dropped_does_not_come_back(
    threaded: ThreadedSynthesis, s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]
) -> None:
    threaded.add({"running": say(10)})
    assert s3gen.begun.acquire(timeout=30)
    threaded.add({"waiting": say(20)})
    threaded.add({"kept": say(30)})
    threaded.drop({"running", "waiting", "unknown"})
    s3gen.go.release(2)
    assert list(collect(threaded, 1)) == ["kept"]
    assert threaded.poll(30) == []  # of "running", which may end later
    assert s3gen.batches == [[10], [30]] and not threaded.busy


def test_an_utterance_that_fails_takes_no_other_with_it(
    threaded: ThreadedSynthesis,
    s3gen: SlowS3Gen,
    say: Callable[..., TokensToSpeak],
    caplog: pytest.LogCaptureFixture,
) -> None:
    threaded.add({"first": say(10)})
    assert s3gen.begun.acquire(timeout=30)
    threaded.add({"fine": say(20)})
    threaded.add({"unlucky": say(21, token=13)})
    s3gen.go.release(10)
    outcomes = collect(threaded, 3)
    assert float(outcomes["fine"]) == 20.0
    assert isinstance(outcomes["unlucky"], GenerationError) and "unlucky" in str(outcomes["unlucky"])
    assert "Traceback" in caplog.text, "what went wrong inside is for the log to tell"


def test_a_stage_that_cannot_choose_fails_what_waits_and_goes_on(
    threaded: ThreadedSynthesis, s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(s3gen, "frames_computed", lambda lengths: 1 / 0)
        threaded.add({"a": say(10)})
        outcome = collect(threaded, 1)["a"]
        assert isinstance(outcome, GenerationError) and "division" in str(outcome)
    s3gen.go.release()
    threaded.add({"b": say(11)})
    assert float(collect(threaded, 1)["b"]) == 11.0


def test_closing_waits_for_the_running_batch_and_forgets_the_others(
    s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]
) -> None:
    synthesis = ThreadedSynthesis(S3GenStage(s3gen, max_batch_size=4), None, CPU)
    synthesis.add({"running": say(10)})
    assert s3gen.begun.acquire(timeout=30)
    synthesis.add({"waiting": say(10)})
    s3gen.go.release()
    synthesis.close()
    assert s3gen.batches == [[10]] and synthesis.waiting == 0


class BesideTheHost(SlowS3Gen):
    """Launches at once; what comes of it is there after `go`, and it is then that 13 turns out to be unlucky."""

    def launch(self, requests, steps: int, between=None) -> Callable[[], list[torch.Tensor]]:
        self.batches.append([len(request.speech_tokens) for request in requests])
        self.begun.release()

        def wait() -> list[torch.Tensor]:
            assert self.go.acquire(timeout=30)
            if any(13 in request.speech_tokens for request in requests):
                raise RuntimeError("unlucky")
            return [torch.tensor([float(len(request.speech_tokens))]) for request in requests]

        return wait


def test_the_next_batch_is_launched_while_one_is_waited_for(say: Callable[..., TokensToSpeak]) -> None:
    s3gen = BesideTheHost()
    synthesis = ThreadedSynthesis(S3GenStage(s3gen, max_batch_size=4), None, CPU)
    try:
        for name, tokens in (("a", 10), ("b", 20)):
            synthesis.add({name: say(tokens)})
            assert s3gen.begun.acquire(timeout=30)
        assert s3gen.batches == [[10], [20]] and synthesis.busy and not synthesis.ready
        s3gen.go.release(2)
        assert {name: float(wave) for name, wave in collect(synthesis, 2).items()} == {"a": 10.0, "b": 20.0}
        assert not synthesis.busy
    finally:
        s3gen.go.release(100)
        synthesis.close()


def test_what_turns_out_to_fail_while_it_is_waited_for_takes_no_other_with_it(
    say: Callable[..., TokensToSpeak],
) -> None:
    s3gen = BesideTheHost()
    s3gen.go.release(100)
    synthesis = ThreadedSynthesis(S3GenStage(s3gen, max_batch_size=4), None, CPU)
    try:
        synthesis.add({"fine": say(20), "unlucky": say(21, token=13), "fine, too": say(22)})
        outcomes = collect(synthesis, 3)
        assert isinstance(outcomes.pop("unlucky"), GenerationError)
        assert {name: float(wave) for name, wave in outcomes.items()} == {"fine": 20.0, "fine, too": 22.0}
        assert [sorted(batch) for batch in s3gen.batches] == [[20, 21, 22], [20], [22], [21]]
    finally:
        synthesis.close()


def test_time_with_a_batch_in_work_is_counted_once(say: Callable[..., TokensToSpeak]) -> None:
    s3gen = BesideTheHost()
    stage = S3GenStage(s3gen, max_batch_size=4)
    with BatchWatch(stage) as watch:
        time.sleep(0.2)
        waits = [stage.launch([say(10)]) for _ in range(2)]
        time.sleep(0.2)
        s3gen.go.release(2)
        for wait in waits:
            wait()
        time.sleep(0.2)
        assert stage.choose([]) == [] and 0.2 <= watch.seconds < 0.4
    assert "launch" not in vars(stage)


def test_inline_speaks_a_batch_a_poll(s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]) -> None:
    synthesis = InlineSynthesis(S3GenStage(s3gen, max_batch_size=2), None)
    s3gen.go.release(10)
    for i in range(3):
        synthesis.add({str(i): say(10 + i)})
    assert [name for name, _ in synthesis.poll(0.0)] == ["0", "2"]
    assert [name for name, _ in synthesis.poll(0.0)] == ["1"] and synthesis.poll(0.0) == []


# Which batch.


def chosen(s3gen: SlowS3Gen, waiting: Sequence[TokensToSpeak], max_batch_size: int = 32, **options: int) -> list[int]:
    return S3GenStage(s3gen, max_batch_size, **options).choose(waiting)


def test_the_most_urgent_goes_first_then_who_waits_longest(s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]) -> None:
    assert chosen(s3gen, [say(100), say(10, order=-1), say(300)], 1) == [1]
    assert chosen(s3gen, [say(100), say(10), say(300)], 1) == [0]
    assert chosen(s3gen, [say(10), say(100), say(300), say(200, order=-1)]) == [3, 2, 1, 0]
    assert chosen(s3gen, []) == []


def test_a_batch_has_one_step_count(s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]) -> None:
    assert sorted(chosen(s3gen, [say(100), say(90, steps=4), say(80)])) == [0, 2]


def test_batches_fill_the_sizes_that_graphs_are_recorded_for(
    s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]
) -> None:
    # 40 of 1,050 frames wait: 32 of them would be filled up from 33,600 to 49,152, 31 are 32,550 of 32,768.
    assert len(chosen(s3gen, [say(525)] * 40)) == 31
    # Four are better taken at once than in two batches, though 4,200 frames are filled up to 6,144.
    assert len(chosen(s3gen, [say(525)] * 4)) == 4


def test_memory_bounds_a_batch_but_not_a_single_utterance(s3gen: SlowS3Gen, say: Callable[..., TokensToSpeak]) -> None:
    assert len(chosen(s3gen, [say(500)] * 8, max_frames=4096)) == 4
    assert len(chosen(s3gen, [say(500)] * 8, max_frames=4095)) == 3
    assert chosen(s3gen, [say(5000), say(10)], max_frames=4096) == [0]


def test_batches_beside_streams_are_short_unless_many_wait(s3gen: SlowS3Gen) -> None:
    chunk = ChunkToSpeak((0,) * 200, 197, False, a_voice(), 10, 0)  # 400 frames
    assert [len(chosen(s3gen, [chunk] * waiting, 64)) for waiting in (20, 31, 60)] == [10, 15, 20]


def test_a_first_sound_does_not_wait_for_the_marks_of_longer_chunks() -> None:
    marks = threading.Semaphore(0)

    class SlowMark:
        def apply_all(self, waves: Sequence[np.ndarray], few_shapes: bool = False) -> list[np.ndarray]:
            if any(len(wave) > 8 for wave in waves):
                assert marks.acquire(timeout=30)
            return list(waves)

    voice, noise = a_voice(), torch.zeros(1)
    before = SpokenChunk(torch.zeros(8), SimpleNamespace(rendered=8, noise=noise), False, np.zeros(8, np.float32))
    later = ChunkToSpeak(tuple(range(8)), 5, False, voice, 10, 0, before=before)
    first = ChunkToSpeak(tuple(range(8)), 5, False, voice, 10, 0)
    synthesis = ThreadedSynthesis(S3GenStage(ToneS3Gen(), max_batch_size=4), SlowMark(), CPU)
    try:
        synthesis.add({"later": later, "first": first})
        assert set(collect(synthesis, 1)) == {"first"} and synthesis.busy
        marks.release()
        assert set(collect(synthesis, 1)) == {"later"}
    finally:
        marks.release(100)
        synthesis.close()


def test_the_shapes_that_are_planned_for_are_those_of_the_chunks_of_a_card() -> None:
    first, second, third = (960 * tokens for tokens in QUICK.first)  # samples
    held_back, seen_before = 9600, 6000
    assert first - held_back == _FIRST_PARTS[0] == _FIRST_PARTS[1]
    assert second + seen_before == _LATER_PARTS[0]
    assert third + 960 * (QUICK.shortest - 1) + held_back + seen_before <= _LATER_PARTS[1]


def test_every_thread_that_marks_parts_knows_their_shapes_before_the_first_request() -> None:
    marked: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)

    class Net:
        def apply_watermark(self, waves: np.ndarray, rate: int) -> list[np.ndarray]:
            marked[threading.current_thread().name].add(waves.shape)
            return list(waves)

    watermarker, s3gen = Watermarker(), ToneS3Gen()
    watermarker._net = Net()
    s3gen.record_graphs = lambda *_, **__: 0
    synthesis = ThreadedSynthesis(S3GenStage(s3gen, max_batch_size=16), watermarker, CPU)
    try:
        synthesis.warm_up(a_voice(), 2)
    finally:
        synthesis.close()
    assert marked["chatterbox-first_0"] == {(count, 24 * 240) for count in (1, 2, 4)}
    of_chunks = marked["chatterbox-chunks_0"]
    assert of_chunks == marked["chatterbox-chunks_1"] and {(1, 128 * 240), (4, 640 * 240)} <= of_chunks
