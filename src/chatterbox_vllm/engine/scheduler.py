"""The scheduler: one loop that keeps both stages busy.

A request's way: submitted -> prepared (split, tokenized, conditioned) -> its pieces take turns with other requests' at
T3 -> their tokens wait for S3Gen -> voiced -> joined -> delivered. A conversion brings its tokens and skips T3. `step`
moves everything on by one T3 step; preparing (preparation.py) and S3Gen (synthesis.py) work beside it. What each stage
has in its hands stands in at_t3.py and at_s3gen.py, who is next at T3 in admission.py.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.engine.admission import Admission
from chatterbox_vllm.engine.at_s3gen import PiecesAtS3Gen
from chatterbox_vllm.engine.at_t3 import Heard, PiecesAtT3
from chatterbox_vllm.engine.chunks import SAMPLE_RATE, STEADY, ChunkPlan, SpeechStream
from chatterbox_vllm.engine.conversion import LONGEST_WHOLE, ConversionRequest, ConversionStream, Request
from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.playout import Playout
from chatterbox_vllm.engine.precedence import Precedence
from chatterbox_vllm.engine.preparation import Preparation
from chatterbox_vllm.engine.request import AudioChunk, Delivery, SpeechRequest, SpeechResult, draw_seed
from chatterbox_vllm.engine.said import Said, best_of
from chatterbox_vllm.engine.source import Source
from chatterbox_vllm.engine.synthesis import Outcome, Synthesis
from chatterbox_vllm.engine.talker import Talker
from chatterbox_vllm.engine.to_speak import SpokenChunk
from chatterbox_vllm.errors import AbortedError, ChatterboxError, ConfigError, DeadlineError, GenerationError
from chatterbox_vllm.families.ending import AS_SPOKEN, SpeechEnding

logger = logging.getLogger(__name__)

Event = AudioChunk | SpeechResult
# Tries at a piece that the model ends before its first sound, or that the guard finds fault with.
_ATTEMPTS = 3
# How long to wait for S3Gen where a request may come out of preparation meanwhile.
_GLANCE = 0.005
# Finished pieces, as a share of those that T3 is still speaking, that S3Gen gets together where nobody listens yet: on
# an H200 it speaks 4 at once 611x real time and 16 at once 820x, and what it does not use is T3's.
_SHARE_VOICED_TOGETHER = 1 / 8


class Scheduler:
    """Speaks many requests through both stages at once. Not for several threads: `AsyncChatterbox` is.

    Whatever is wrong with a request ends that request alone. Memory is bounded whatever is submitted: at most
    `max_admitted` pieces are in T3's hands, T3 gets none while `max_waiting` wait for S3Gen, a request gets none while
    its caller leaves `max_untaken` seconds of audio untaken, and a request that waits is its text and tokens alone.

    Args:
        max_untaken: seconds.
        chunk_plan: how streams are cut.
        lookahead: speech tokens that S3Gen has to see behind a chunk.
        ending: of every piece.
        guarded: whether speech that leaves its text is ended and tried again, see guard.py.

    Attributes:
        admission: to T3.
        meanwhile: called now and then where S3Gen works in this thread; it may submit and abort.
        should_yield: whether somebody waits for the caller of `step`, so that T3 is not to draw several tokens now.
    """

    def __init__(
        self,
        config: T3Config,
        preparation: Preparation,
        talker: Talker,
        voicing: Synthesis,
        max_admitted: int,
        max_waiting: int,
        max_untaken: float = 120.0,
        chunk_plan: ChunkPlan = STEADY,
        lookahead: int = 3,
        ending: SpeechEnding = AS_SPOKEN,
        guarded: bool = True,
    ):
        self.preparation = preparation
        self.at_t3 = PiecesAtT3(config, talker, guarded)
        self.at_s3gen = PiecesAtS3Gen(voicing)
        self.precedence = Precedence(self.at_t3, self.at_s3gen, max_waiting)
        self.admission = Admission(self.at_t3, self.at_s3gen, max_admitted, max_waiting)
        self.playout = Playout()
        self.max_untaken = max_untaken
        self.chunk_plan, self.lookahead, self.ending = chunk_plan, lookahead, ending
        self.meanwhile: Callable[[], object] | None = None
        self.should_yield: Callable[[], bool] | None = None
        self._jobs: dict[int, Job] = {}
        self._streams: dict[int, Job] = {}  # those of the jobs that are rendered in chunks
        self._stirred: dict[int, None] = {}  # streams in which something has changed, which may have a chunk ready
        self._deadlines: list[tuple[float, int]] = []
        self._serials = itertools.count()
        self._ready: list[Event] = []

    def submit(
        self,
        request: Request,
        label: str | None = None,
        index: int = 0,
        delivery: Delivery = Delivery.WHOLE,
    ) -> int:
        """Queue a request; its result comes out of a later `step`, a refusal too.

        Args:
            label: the caller's name for it, or None for one of ours. Names need not differ.
            index: handed back in the result.
            delivery: where the audio goes out in chunks, what the caller has taken is reported by `taken`.

        Returns:
            the request's number.

        Raises:
            ConfigError: it is no request.
        """
        if not isinstance(request, (SpeechRequest, ConversionRequest)):
            raise ConfigError(f"a request must be a SpeechRequest or a ConversionRequest, not {type(request).__name__}")
        serial = next(self._serials)
        seed = request.parameters.seed
        job = Job(
            serial,
            f"request-{serial}" if label is None else label,
            index,
            request,
            draw_seed() if seed is None else seed,
            delivery,
        )
        self._jobs[serial] = job
        if delivery is Delivery.STREAM:
            if isinstance(request, SpeechRequest):
                job.stream = SpeechStream(request, job.seed, self.chunk_plan, self.lookahead, self.ending)
                self._streams[serial] = job
            if request.noise is not None:
                self._fail(job, ConfigError("a stream draws its own noise: leave noise out, or do not stream"))
                return serial
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (job.submitted + request.deadline, serial))
        self.preparation.add(serial, request)
        return serial

    def taken(self, serial: int, samples: int) -> None:
        """The caller of a request that goes out in chunks has taken so many samples."""
        job = self._jobs.get(serial)
        if job is not None:
            job.waiting_samples -= samples
            self._stirred[serial] = None
            if not self._is_full(job):
                self.admission.resume(job)

    def abort(self, serial: int) -> bool:
        """Drop a request and free what it holds; its result says `AbortedError`. False if there is none such."""
        job = self._jobs.get(serial)
        if job is None:
            return False
        self._fail(job, AbortedError(f"request {job.label!r} was aborted"))
        return True

    def abort_all(self) -> None:
        """Drop all requests."""
        for serial in list(self._jobs):
            self.abort(serial)

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and not delivered."""
        return len(self._jobs) + len(self._ready)

    @property
    def queued(self) -> int:
        """Requests none of whose pieces has been given to T3."""
        return sum(job.admitted == 0 for job in list(self._jobs.values()))  # a copy: other threads ask, too

    @property
    def talking(self) -> int:
        """Pieces in T3's hands."""
        return len(self.at_t3)

    @property
    def waiting_for_voice(self) -> int:
        """Pieces spoken by T3 and not yet taken by S3Gen."""
        return self.at_s3gen.waiting

    @property
    def blocked(self) -> bool:
        """Whether all that is left to do waits for callers to take audio."""
        busy = len(self.at_t3) or self._ready or self._stirred or self.at_s3gen.synthesis.busy or self.playout.holding
        return not (busy or self.preparation.pending or len(self.admission))

    def step(self, patience: float = 1.0) -> list[Event]:
        """One turn of the loop: what became ready, in the order in which it did.

        Args:
            patience: seconds to wait where T3 has nothing to do.
        """
        self._drop_late()
        self._ready += self.playout.due()
        patience = min(patience, max(0.0, self.playout.left()))
        busy = len(self.at_t3) or self.at_s3gen.synthesis.busy or len(self.admission)
        self._take_prepared(patience if self.preparation.pending and not busy and not self._ready else 0.0)
        self._admit()
        talks = len(self.at_t3) > 0 and not self.precedence.s3gen_first()
        if talks:
            for heard in self.at_t3.step(self._should_yield):
                self._hear(heard)
        self._hand_over()
        self._cut_chunks()
        idle = not (talks or self._ready)
        if idle and (len(self.at_t3) or self.preparation.pending):
            patience = min(patience, _GLANCE)
        if not self.precedence.t3_first():
            for job, k, outcome in self.at_s3gen.poll(patience if idle else 0.0, self._between):
                self._deliver(job, k, outcome)
        return self.collect()

    def _should_yield(self) -> bool:
        """Whether something else is to be done than to draw tokens: for a newcomer, a listener, or the caller."""
        if self.preparation.ready and self.admission.welcomes:
            return True
        if self._streams and (self.at_s3gen.synthesis.ready or self.playout.left() <= 0):
            return True
        return self.should_yield is not None and self.should_yield()

    def _between(self) -> None:
        """Between two steps of S3Gen's flow in this thread, each of which may take seconds on a CPU."""
        self._drop_late()
        if self.meanwhile is not None:
            self.meanwhile()

    def collect(self) -> list[Event]:
        """What is ready without another step."""
        ready, self._ready = self._ready, []
        return ready

    def _drop_late(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                self._fail(job, DeadlineError(f"request {job.label!r} was not done in {job.request.deadline} s"))

    def _take_prepared(self, patience: float) -> None:
        for serial, script in self.preparation.finished(patience):
            job = self._jobs.get(serial)
            if job is None:
                continue  # dropped meanwhile
            if isinstance(script, ChatterboxError):
                self._fail(job, script)
                continue
            job.script = script
            if script.source is None:
                self.admission.add(job)
            else:
                self._convert(job, script.source)

    def _convert(self, job: Job, source: Source) -> None:
        """Let S3Gen have a recording's speech tokens: at once, or in chunks where it is long or somebody listens."""
        assert isinstance(job.request, ConversionRequest)
        job.first_admission = job.last_token = time.monotonic()
        job.admitted = job.talked = 1
        job.tokens[0] = source.tokens
        heard = job.delivery is Delivery.STREAM
        if not heard and len(source.tokens) <= LONGEST_WHOLE:
            self.at_s3gen.add(job, 0, source.tokens)
            return
        job.conversion = ConversionStream(job.request, source, job.seed, self.lookahead, heard)
        self._streams[job.serial], self._stirred[job.serial] = job, None

    def _admit(self) -> None:
        """Give T3 pieces of the requests whose turn it is, as many as it has room for."""
        for job in self.admission.take(self._is_full):
            with self._its_own_fault(job):
                self._talk(job, job.admitted)
                job.first_admission = job.first_admission or time.monotonic()
                job.admitted += 1
                if job.admitted < len(job.pieces) and job.stream is None:
                    self.admission.add(job)

    def _talk(self, job: Job, k: int) -> None:
        """Give T3 piece k."""
        assert job.script is not None  # it has turns
        self.at_t3.add(job, k, self.preparation.prompts.prompt(job.script.conditioning, job.pieces[k]))

    def _is_full(self, job: Job) -> bool:
        return job.waiting_samples > self.max_untaken * SAMPLE_RATE

    def _hear(self, heard: Heard) -> None:
        """T3 has finished a piece, or spoken on."""
        job, k, said = heard.job, heard.k, heard.said
        if job.serial not in self._jobs:  # another of its pieces has failed in the same step
            return
        if job.stream is not None:
            job.stream.hear(k, heard.tokens)
            self._stirred[job.serial] = None
        if not said.over:
            return
        if said.fault is not None and self._tries_again(job, k, said):
            return
        said = best_of([*job.faulty.pop(k, []), said])
        tokens = tuple(said.tokens) if job.stream is None else job.stream.tokens(k)
        if not tokens:
            self._fail(job, job.mute(k, job.attempts.get(k, 0) + 1))
            return
        job.ended(k, said)
        job.talked += 1
        if job.talked == len(job.pieces):
            job.last_token = time.monotonic()
        job.tokens[k] = tokens
        if job.stream is not None:
            job.stream.end(k)
            self._call_next(job)
            return
        self.at_s3gen.add(job, k, (*tokens, *self.ending.appended), self.ending.unheard)

    def _hand_over(self) -> None:
        """Give S3Gen what T3 has spoken; in a batch run beside T3 not before there is enough for an efficient batch."""
        gathers = not (self.admission.reserved or self.at_s3gen.synthesis.works_in_poll)
        if gathers and self.at_s3gen.gathered < _SHARE_VOICED_TOGETHER * len(self.at_t3):
            return
        self.at_s3gen.hand_over()

    def _cut_chunks(self) -> None:
        """Give S3Gen what streams have ready for it, unless their callers leave too much untaken."""
        stirred, self._stirred = self._stirred, {}
        jobs = [self._streams[serial] for serial in stirred if serial in self._streams]
        chunks = ((job, job.next_chunk()) for job in jobs if not self._is_full(job))
        self.at_s3gen.add_chunks([(job, chunk) for job, chunk in chunks if chunk is not None])

    def _call_next(self, job: Job) -> None:
        """Let a stream's next piece have a turn at T3, one ahead of the piece that is being heard."""
        if job.stream is None:  # others call all their pieces
            return
        if job.stream.called < job.admitted < len(job.pieces) and job.admitted <= job.delivered + 1:
            job.stream.called = job.admitted
            self.admission.add(job)

    def _tries_again(self, job: Job, k: int, said: Said) -> bool:
        """Whether other draws are tried for piece k, with which something is wrong; not where a stream has begun it."""
        tried = job.attempts.get(k, 0) + 1
        heard = job.stream is not None and len(said.tokens) > 0
        drawn_anew = job.request.uniforms is None and job.pieces[k].values.temperature > 0
        if tried >= _ATTEMPTS or heard or not drawn_anew:
            return False
        job.attempts[k] = tried
        job.faulty.setdefault(k, []).append(said)
        with self._its_own_fault(job):
            self._talk(job, k)
        return True

    def _deliver(self, job: Job, k: int, outcome: Outcome) -> None:
        """S3Gen has finished piece k: pass on what is now ready of its request, in the text's order."""
        if job.serial not in self._jobs:  # another of its pieces has failed at the same time
            return
        if isinstance(outcome, ChatterboxError):
            self._fail(job, outcome)
            return
        with self._its_own_fault(job):
            if isinstance(outcome, SpokenChunk):
                chunks = job.spoke_chunk(k, outcome)
                self._ready += chunks if self.at_s3gen.synthesis.works_in_poll else self.playout.pass_on(job, chunks)
                self._stirred[job.serial] = None
                self._call_next(job)
            else:
                self._ready += job.voiced(k, outcome)
            if job.done:
                self._ready += self.playout.forget(job)  # now, since the result says when its first sound went out
                result = job.result()
                self._forget(job)
                self._ready.append(result)

    @contextlib.contextmanager
    def _its_own_fault(self, job: Job) -> Iterator[None]:
        """What goes wrong inside is this request's alone."""
        try:
            yield
        except ChatterboxError as error:
            self._fail(job, error)
        except Exception as error:
            logger.exception("request %s failed", job.label)
            self._fail(job, GenerationError(f"the request failed ({type(error).__name__}: {error})"))

    def _fail(self, job: Job, error: ChatterboxError) -> None:
        """Deliver the error and free all that the request holds."""
        self._forget(job)
        self.at_t3.drop(job)
        self.at_s3gen.drop(job)
        self._ready.append(job.failure(error))

    def _forget(self, job: Job) -> None:
        del self._jobs[job.serial]
        if job.script is None:
            self.preparation.drop(job.serial)
        self._streams.pop(job.serial, None)
        self.admission.drop(job)
        self._ready += self.playout.forget(job)
