"""Pieces of texts in T3's hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.engine.guard import LOOK_EVERY, Bounds
from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.request import segment_seed
from chatterbox_vllm.engine.said import Said
from chatterbox_vllm.engine.talker import Talker

# Where so many pieces are spoken, a turn of T3 costs much beside its steps. With 256 listeners on an H200 turns ended
# whenever somebody waited: with 150 pieces they were of one or two steps, and took 0.033 s each.
_CROWD, _LEAST_TURN = 32, 0.05


@dataclass(frozen=True)
class Heard:
    """What T3 has said of piece k of a request since the last step.

    Attributes:
        said: all of this attempt, which may be over now.
        tokens: the speech that is new in it.
    """

    job: Job
    k: int
    said: Said
    tokens: tuple[int, ...]


class PiecesAtT3:
    """What T3 speaks at the moment.

    Args:
        guarded: whether speech that leaves its text is ended, see guard.py.
    """

    def __init__(self, config: T3Config, talker: Talker, guarded: bool):
        self.config, self.talker, self.guarded = config, talker, guarded
        self._pieces: dict[str, tuple[Job, int, Said]] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def jobs(self) -> list[Job]:
        """Whose pieces they are, once for each."""
        return [job for job, _, _ in self._pieces.values()]

    @property
    def first_ones(self) -> bool:
        """Whether a request's first piece is among them."""
        return any(k == 0 for _, k, _ in self._pieces.values())

    @property
    def unheard_streams(self) -> bool:
        """Whether a stream is among them whose listener has heard nothing yet."""
        return any(job.stream is not None and not job.samples for job, _, _ in self._pieces.values())

    def add(self, job: Job, k: int, prompt: torch.Tensor) -> None:
        """Give T3 piece k of a request, whose prompt it is.

        Raises:
            ChatterboxError: T3 refuses it.
        """
        assert job.script is not None  # it has pieces
        piece, piece_id = job.pieces[k], job.piece_id(k)
        seed = segment_seed(job.seed, k, job.attempts.get(k, 0))
        guarded = self.guarded and job.request.uniforms is None  # what is replayed is to stay as it was
        bounds = Bounds.of(piece.segment.text) if guarded else None
        said = Said(self.config, bounds, piece.values.max_tokens)
        every = None if bounds is None else LOOK_EVERY
        held_for = None if bounds is None or not self.config.alignment_heads else bounds.early
        awaited = 0
        if job.stream is not None:
            every, awaited = job.stream.told_every, job.stream.awaited
        sampling = replace(piece.values.sampling, max_tokens=said.limit)
        self.talker.add(
            piece_id,
            prompt,
            sampling,
            seed,
            job.request.uniforms,
            told_every=every,
            awaited=awaited,
            end_held_for=held_for,
            shared_prefix=job.script.shared_prefix,
        )
        self._pieces[piece_id] = job, k, said
        job.live.add(piece_id)

    def step(self, should_yield: Callable[[], bool]) -> list[Heard]:
        """Let T3 speak on; pieces that are over leave.

        Args:
            should_yield: whether T3 is to come back with fewer tokens than it might draw. Where many pieces are spoken
                and somebody listens, it goes on for `_LEAST_TURN` seconds nevertheless.
        """
        heard = []
        crowded = len(self._pieces) >= _CROWD and any(job.stream is not None for job in self.jobs)
        earliest = time.monotonic() + (_LEAST_TURN if crowded else 0.0)
        for output in self.talker.step(lambda: should_yield() and time.monotonic() >= earliest):
            job, k, said = self._pieces[output.request_id]
            heard.append(Heard(job, k, said, said.hear(output)))
            if said.over:
                if output.finish_reason is None:
                    self.talker.abort([output.request_id])
                del self._pieces[output.request_id]
                job.live.discard(output.request_id)
        return heard

    def drop(self, job: Job) -> None:
        """Let T3 forget a request."""
        self.talker.abort([piece_id for piece_id in job.live if self._pieces.pop(piece_id, None)])
