"""Whatever callers send, in whatever order: every request is answered once, nobody else is hurt, nothing is left over.

CHATTERBOX_FUZZ_EXAMPLES raises the number of examples: 100 of them put over 2,000 requests through the babbling model.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatterbox_vllm import (
    AsyncChatterbox,
    ChatterboxError,
    ChatterboxTTS,
    Limits,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
    Voice,
)
from chatterbox_vllm.engine.request import AudioChunk, Delivery
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.t3.sampling import Sampling

from .fakes import END, UNLUCKY, Engine, a_voice

EXAMPLES = int(os.environ.get("CHATTERBOX_FUZZ_EXAMPLES", "5"))

TEXTS = st.one_of(
    st.sampled_from(
        [
            "A plain sentence.",
            "Half an emoji \ud83d here.",
            "",
            " \n ",
            "...",
            "* * *",
            "\u200b",
            "\x00\x1b[31m red",
            "[STOP] and [UNK] [SPACE]",
            "日本語のテキストです。",
            "A sentence of a text that goes on for some time. " * 12,
            "a" * 700,
        ]
    ),
    st.text(st.characters(), max_size=120),
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "exaggeration": st.sampled_from([0.0, 0.7, 2.0]),
        "cfg_weight": st.sampled_from([0, 0.3, 10.0]),
        "temperature": st.sampled_from([0.0, 0.8, 5.0]),
        "min_p": st.sampled_from([0.0, 1.0]),
        "top_p": st.sampled_from([0.01, 0.9]),
        "repetition_penalty": st.sampled_from([0.1, 2.0, 10.0]),
        "diffusion_steps": st.sampled_from([1, 2]),
        "seed": st.integers(0, 2**63 - 1),
    },
)


def voices(good: Voice) -> list[object]:
    """A good voice, and what callers take for one."""
    conditioning, prompt = good.conditioning, good.prompt
    return [
        good,
        good,
        good,
        good,
        None,
        "clip.wav",
        replace(good, conditioning=replace(conditioning, speaker_embedding=torch.zeros(1, 192))),
        replace(good, conditioning=replace(conditioning, speech_prompt=torch.tensor([10**6]))),
        replace(good, conditioning=None),
        replace(good, prompt=replace(prompt, mel=torch.full((4, 80), torch.nan))),
        replace(good, prompt=replace(prompt, tokens=torch.zeros(0, dtype=torch.int64))),
    ]


@dataclass(frozen=True)
class Wish:
    """What one caller does.

    Attributes:
        patience: engine steps or hundredths of a second after which the caller aborts; None waits.
    """

    text: str
    voice: int
    parameters: dict[str, object]
    priority: int
    deadline: float | None
    label: str
    delivery: Delivery
    patience: int | None
    odd: str | None

    def request(self, choice: list[object], most_tokens: int) -> SpeechRequest:
        """Raises ChatterboxError where it can be refused at once."""
        parameters = SpeechParameters(**{"max_tokens": most_tokens, **self.parameters})
        extra: dict[str, object] = {}
        if self.odd == "uniforms":
            extra["uniforms"] = [0.5] * 3
        elif self.odd == "no numbers":
            extra["uniforms"] = ["0.5"] * 500
        elif self.odd == "noise":
            extra["noise"] = S3GenNoise(torch.zeros(80, 3), torch.zeros(9), torch.zeros(9, 3))
        return SpeechRequest(
            self.text, choice[self.voice], parameters, priority=self.priority, deadline=self.deadline, **extra
        )


WISHES = st.lists(
    st.builds(
        Wish,
        text=TEXTS,
        voice=st.integers(0, 10),
        parameters=PARAMETERS,
        priority=st.integers(-1, 1),
        deadline=st.sampled_from([None, None, 0.001, 0.2]),
        label=st.sampled_from(["a", "b", "c", "d/1", "e\ud800"]),
        delivery=st.sampled_from(Delivery),
        patience=st.sampled_from([None, None, 0, 2, 7]),
        odd=st.sampled_from([None, None, None, "uniforms", "no numbers", "noise"]),
    ),
    min_size=20,
    max_size=25,
)


def unruly(rows: int, sampling: Sampling) -> list[int]:
    """Speech, silence, an unlucky token, and speech without end, by the length of the prompt."""
    kind = rows % 5
    if kind == 0:
        return [END]
    if kind == 1:
        return [UNLUCKY, END]
    if kind == 2:
        return [7] * sampling.max_tokens
    return [8] * kind + [END]


@settings(max_examples=20 * EXAMPLES, deadline=None)
@given(WISHES)
def test_the_scheduler_answers_every_request_once_and_keeps_nothing(wishes: list[Wish]) -> None:
    engine = Engine(unruly, max_batch_size=3, max_model_len=900, threads=2)
    scheduler, choice = engine.scheduler, voices(a_voice())
    submitted: dict[int, Wish] = {}
    events: list[AudioChunk | SpeechResult] = []
    leaving: dict[int, int] = {}
    try:
        for wish in wishes:
            with contextlib.suppress(ChatterboxError):
                request = wish.request(choice, most_tokens=40)
                serial = scheduler.submit(request, wish.label, delivery=wish.delivery)
                submitted[serial] = wish
                if wish.patience is not None:
                    leaving[serial] = wish.patience
            events += scheduler.step(0.0)
            for serial in [serial for serial, left in leaving.items() if left == 0]:
                scheduler.abort(serial)
            leaving = {serial: left - 1 for serial, left in leaving.items() if left > 0}
        while scheduler.unfinished:
            events += scheduler.step(0.1)
    finally:
        scheduler.preparation.close()
    results = [event for event in events if isinstance(event, SpeechResult)]
    assert sorted(result.serial for result in results) == sorted(submitted)
    for result in results:
        chunks = [event.audio for event in events if isinstance(event, AudioChunk) and event.serial == result.serial]
        wish = submitted[result.serial]
        if result.error is None and wish.delivery is Delivery.WHOLE:
            assert len(result.audio) == result.samples > 0 and not chunks
        elif result.error is None:
            assert result.audio is None and sum(map(len, chunks)) == result.samples > 0
        else:
            assert isinstance(result.error, ChatterboxError) and str(result.error)
    assert not engine.talker.running and not engine.voicing.busy
    assert scheduler.talking == scheduler.queued == len(scheduler.admission) == len(scheduler.admission._paused) == 0


@pytest.fixture(scope="module")
def tts(babbler: Path):
    pytest.importorskip("vllm")
    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=3, watermark=False) as model:
        yield model


class TestOnTheBabblingModel:
    """The same through the whole engine, beside a request that must come out as it does alone."""

    grown: list[int] = []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(wishes=WISHES)
    def test_good_requests_come_out_as_they_do_alone(self, tts: ChatterboxTTS, wishes: list[Wish]) -> None:
        good = SpeechRequest("The good one among them.", tts.voice, SpeechParameters(seed=1, max_tokens=30))
        alone = next(iter(tts.run([good]))).audio
        found = asyncio.run(self._speak(tts, wishes, good))
        assert torch.equal(found, alone)
        self._check_memory()

    async def _speak(self, tts: ChatterboxTTS, wishes: list[Wish], good: SpeechRequest) -> torch.Tensor:
        choice = voices(tts.voice)
        answers: list[SpeechResult] = []
        async with AsyncChatterbox(tts, answers.append, Limits(requests=64)) as engine:

            async def wish_for(wish: Wish, number: int) -> str:
                try:
                    request = wish.request(choice, most_tokens=25)
                    wait = None if wish.patience is None else wish.patience / 100
                    async with asyncio.timeout(wait):
                        if wish.delivery is Delivery.WHOLE:
                            result = await engine.speak(request, wish.label)
                            return "spoken" if result.error is None else type(result.error).__name__
                        stream = wish.delivery is Delivery.STREAM
                        events = engine.generate(request, f"{wish.label}{number}", stream=stream)
                        async with contextlib.aclosing(events):
                            async for _ in events:
                                pass
                        return "spoken"
                except (ChatterboxError, TimeoutError) as error:
                    return type(error).__name__

            tasks = [asyncio.create_task(wish_for(wish, i)) for i, wish in enumerate(wishes)]
            result = await engine.speak(good)
            said = await asyncio.gather(*tasks)
            while engine.stats().unfinished:
                await asyncio.sleep(0.01)
            stats = engine.stats()
            assert engine.failure is None and len(said) == len(wishes)
            assert stats.kv_blocks_in_use == stats.talking == stats.waiting_for_voice == 0
            assert stats.completed + stats.failed == len(answers)
            # The last of the callers' own accounts come in beside the last step.
            await asyncio.sleep(0.1)
            assert engine.stats().untaken_seconds == 0
        assert len({answer.serial for answer in answers}) == len(answers)
        assert result.error is None
        return result.audio

    def _check_memory(self) -> None:
        """After the first rounds, which fill caches, the process does not grow with every round."""
        gc.collect()
        with open("/proc/self/statm") as file:
            self.grown.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        if len(self.grown) > 20:
            settled, now = self.grown[len(self.grown) // 2], self.grown[-1]
            assert now < settled + (64 << 20), f"grew from {settled >> 20} to {now >> 20} MiB"
