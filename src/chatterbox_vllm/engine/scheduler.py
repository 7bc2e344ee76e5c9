"""The scheduler: one loop that keeps both stages busy.

A request's way: submitted -> split into segments -> admitted to T3 -> its tokens wait for S3Gen -> voiced -> joined ->
delivered. `step` moves everything on by one T3 step; S3Gen works beside it (voicing.py).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from chatterbox_vllm.audio.join import Joiner
from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.request import (
    SpeechChunk,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
    Timings,
    draw_seed,
    segment_seed,
)
from chatterbox_vllm.engine.s3gen_stage import TokensToSpeak
from chatterbox_vllm.engine.synthesis import Outcome, Voicing
from chatterbox_vllm.errors import CancelledError, ChatterboxError, ConfigError, DeadlineError, GenerationError
from chatterbox_vllm.t3.vllm.stage import T3Output
from chatterbox_vllm.text.split import Segment

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000


class Talker(Protocol):
    """What the scheduler needs of its T3 stage."""

    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        parameters: SpeechParameters,
        seed: int,
        uniforms: Sequence[float] | None = None,
    ) -> None: ...
    def step(self) -> list[T3Output]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...


@dataclass
class _Job:
    """A request on its way."""

    request_id: str
    index: int
    request: SpeechRequest
    seed: int
    submitted: float
    segments: list[Segment]
    admitted: int = 0  # segments given to T3
    talked: int = 0  # segments that T3 has finished
    outcomes: dict[int, torch.Tensor] = field(default_factory=dict)  # voiced ahead of an earlier segment
    joiner: Joiner = field(default_factory=lambda: Joiner(SAMPLE_RATE))
    chunks: list[torch.Tensor] = field(default_factory=list)
    delivered: int = 0
    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    cut: bool = False
    first_admission: float = 0.0
    last_token: float = 0.0

    def segment_id(self, k: int) -> str:
        return f"{self.request_id}/{k}"

    @property
    def live_segments(self) -> list[str]:
        return [self.segment_id(k) for k in range(self.admitted)]


class Scheduler:
    """Speaks many requests through both stages at once. Not for several threads: `AsyncChatterbox` is.

    Memory is bounded whatever is submitted: at most `max_admitted` segments are in T3's hands, T3 gets none while
    `max_waiting` wait for S3Gen, and a request that waits is its text alone.
    """

    def __init__(
        self,
        config: T3Config,
        prompts: PromptMaker,
        talker: Talker,
        voicing: Voicing,
        max_admitted: int,
        max_waiting: int,
    ):
        self.config = config
        self.prompts = prompts
        self.talker = talker
        self.voicing = voicing
        self.max_admitted = max_admitted
        self.max_waiting = max_waiting
        self._jobs: dict[str, _Job] = {}
        self._queue: list[tuple[int, int, str]] = []  # heap of (priority, arrival, request id)
        self._talking: dict[str, tuple[_Job, int]] = {}  # by segment id
        self._voicing: dict[str, tuple[_Job, int]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._arrivals = itertools.count()
        self._ready: list[SpeechChunk | SpeechResult] = []

    def submit(self, request: SpeechRequest, request_id: str | None = None, index: int = 0) -> str:
        """Queue a request; its result comes out of a later `step`, a refusal too.

        Args:
            request_id: a name of the caller's, or None for one of ours.
            index: handed back in the result.

        Raises:
            ConfigError: a request of that name is on its way.
        """
        arrival = next(self._arrivals)
        request_id = f"request-{arrival}" if request_id is None else request_id
        if request_id in self._jobs:
            raise ConfigError(f"a request named {request_id!r} is on its way; use another name")
        seed = request.parameters.seed
        job = _Job(request_id, index, request, draw_seed() if seed is None else seed, time.monotonic(), [])
        self._jobs[request_id] = job
        try:
            job.segments = self.prompts.segments(request)
        except ChatterboxError as error:
            self._fail(job, error)
            return request_id
        heapq.heappush(self._queue, (request.priority, arrival, request_id))
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (job.submitted + request.deadline, request_id))
        return request_id

    def abort(self, request_id: str) -> bool:
        """Drop a request and free what it holds; its result says `CancelledError`. False if there is none such."""
        job = self._jobs.get(request_id)
        if job is None:
            return False
        self._fail(job, CancelledError(f"request {request_id!r} was aborted"))
        return True

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and not delivered."""
        return len(self._jobs) + len(self._ready)

    @property
    def queued(self) -> int:
        """Requests none of whose segments has been admitted."""
        return sum(job.admitted == 0 for job in list(self._jobs.values()))  # a copy: other threads ask, too

    @property
    def talking(self) -> int:
        """Segments in T3's hands."""
        return len(self._talking)

    @property
    def waiting_for_voice(self) -> int:
        """Segments spoken by T3 and not yet taken by S3Gen."""
        return self.voicing.waiting

    def step(self, patience: float = 1.0) -> list[SpeechChunk | SpeechResult]:
        """One turn of the loop: what became ready, in the order in which it did.

        Args:
            patience: seconds to wait for S3Gen where T3 has nothing to do.
        """
        self._drop_late()
        self._admit()
        if self._talking:
            for output in self.talker.step():
                self._hear(output)
        idle = not self._talking and not self._ready
        for segment_id, outcome in self.voicing.poll(patience if idle else 0.0):
            self._deliver(segment_id, outcome)
        return self.collect()

    def collect(self) -> list[SpeechChunk | SpeechResult]:
        """What is ready without another step."""
        ready, self._ready = self._ready, []
        return ready

    def _drop_late(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            job = self._jobs.get(request_id)
            if job is not None:
                self._fail(job, DeadlineError(f"request {request_id!r} was not done in {job.request.deadline} s"))

    def _admit(self) -> None:
        while self._queue and len(self._talking) < self.max_admitted and self.voicing.waiting < self.max_waiting:
            job = self._jobs.get(self._queue[0][2])
            if job is None or job.admitted == len(job.segments):
                heapq.heappop(self._queue)
                continue
            k = job.admitted
            try:
                prompt = self.prompts.prompt(job.segments[k].text, job.request.voice, job.request.parameters)
                seed = segment_seed(job.seed, k)
                self.talker.add(job.segment_id(k), prompt, job.request.parameters, seed, job.request.uniforms)
            except ChatterboxError as error:
                self._fail(job, error)
                continue
            if k == 0:
                job.first_admission = time.monotonic()
            job.admitted += 1
            self._talking[job.segment_id(k)] = job, k

    def _hear(self, output: T3Output) -> None:
        """T3 has finished a segment."""
        job, k = self._talking.pop(output.request_id)
        job.talked += 1
        if job.talked == len(job.segments):
            job.last_token = time.monotonic()
        if output.finish_reason == "length" and not job.cut:
            job.cut = True
            logger.warning(
                "request %s reached max_tokens=%d without end of speech; its end may be missing or invented",
                job.request_id,
                job.request.parameters.max_tokens,
            )
        tokens = self._speech(output.token_ids)
        if not tokens:
            self._fail(
                job,
                GenerationError(
                    f"the model ended its speech before the first sound (seed {job.seed}); try another seed or text"
                ),
            )
            return
        job.tokens[k] = tokens
        parameters, request = job.request.parameters, job.request
        utterance = TokensToSpeak(
            tokens, request.voice, parameters.diffusion_steps, segment_seed(job.seed, k), request.noise
        )
        self._voicing[output.request_id] = job, k
        self.voicing.add(output.request_id, utterance)

    def _speech(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Drops what is no speech: everything from the first end-of-speech on, and ids outside the codebook."""
        if self.config.stop_speech_token in tokens:
            tokens = tokens[: tokens.index(self.config.stop_speech_token)]
        return tuple(token for token in tokens if token < self.config.start_speech_token)

    def _deliver(self, segment_id: str, outcome: Outcome) -> None:
        """S3Gen has finished a segment: pass on what is now ready of its request, in the text's order."""
        job, k = self._voicing.pop(segment_id)
        if isinstance(outcome, ChatterboxError):
            self._fail(job, outcome)
            return
        job.outcomes[k] = outcome
        while job.delivered in job.outcomes:
            wave = job.outcomes.pop(job.delivered)
            last = job.delivered == len(job.segments) - 1
            piece = job.segments[job.delivered]
            audio = wave if len(job.segments) == 1 else torch.from_numpy(job.joiner.add(wave, piece.pause, last))
            job.delivered += 1
            job.chunks.append(audio)
            self._ready.append(SpeechChunk(job.request_id, audio))
        if job.delivered == len(job.segments):
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        del self._jobs[job.request_id]
        self._ready.append(
            SpeechResult(
                job.request_id,
                job.index,
                job.seed,
                audio=job.chunks[0] if len(job.chunks) == 1 else torch.cat(job.chunks),
                speech_tokens=tuple(itertools.chain.from_iterable(job.tokens[k] for k in sorted(job.tokens))),
                finish_reason="length" if job.cut else "stop",
                segments=len(job.segments),
                timings=self._timings(job),
            )
        )

    def _fail(self, job: _Job, error: ChatterboxError) -> None:
        """Deliver the error and free all that the request holds."""
        del self._jobs[job.request_id]
        live = job.live_segments
        self.talker.abort([segment_id for segment_id in live if self._talking.pop(segment_id, None)])
        self.voicing.drop({segment_id for segment_id in live if self._voicing.pop(segment_id, None)})
        self._ready.append(
            SpeechResult(
                job.request_id, job.index, job.seed, error=error, segments=len(job.segments), timings=self._timings(job)
            )
        )

    @staticmethod
    def _timings(job: _Job) -> Timings:
        now = time.monotonic()
        admitted = job.first_admission or now
        talked = job.last_token or now
        return Timings(
            queued=admitted - job.submitted,
            talking=max(0.0, talked - admitted),
            voicing=max(0.0, now - talked),
            total=now - job.submitted,
        )
