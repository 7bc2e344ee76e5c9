"""Pieces of requests, and chunks of streams, that wait for S3Gen or are in its hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.request import segment_seed
from chatterbox_vllm.engine.synthesis import Outcome, Synthesis
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, TokensToSpeak, ToSpeak


class PiecesAtS3Gen:
    """What is spoken and not voiced yet."""

    def __init__(self, synthesis: Synthesis):
        self.synthesis = synthesis
        self._gathered: dict[str, ToSpeak] = {}  # until S3Gen gets them together
        self._pieces: dict[str, tuple[Job, int]] = {}  # gathered or in S3Gen's hands

    @property
    def gathered(self) -> int:
        """Pieces that S3Gen has not been given yet."""
        return len(self._gathered)

    @property
    def waiting(self) -> int:
        """Pieces and chunks that S3Gen has not begun."""
        return len(self._gathered) + self.synthesis.waiting

    @property
    def first_ones(self) -> bool:
        """Whether a request's first piece is among them."""
        return any(k == 0 for _, k in self._pieces.values())

    @property
    def streams(self) -> bool:
        """Whether somebody listens to one of them."""
        return any(job.stream is not None for job, _ in self._pieces.values())

    @property
    def first_sounds(self) -> bool:
        """Whether one of them is the first that somebody will hear."""
        return any(job.stream is not None and job.stream.first_heard is None for job, _ in self._pieces.values())

    def add(self, job: Job, k: int, tokens: tuple[int, ...], unheard: int = 0) -> None:
        """Take in piece k of a request, for the next `hand_over`."""
        request, piece_id = job.request, job.piece_id(k)
        self._note(piece_id, job, k)
        self._gathered[piece_id] = TokensToSpeak(
            tokens,
            request.voice,
            job.pieces[k].values.diffusion_steps,
            segment_seed(job.seed, k),
            request.noise,
            _order(request.priority, k),
            unheard=unheard,
        )

    def hand_over(self) -> None:
        """Give S3Gen all that was gathered."""
        gathered, self._gathered = self._gathered, {}
        self.synthesis.add(gathered)

    def add_chunks(self, chunks: Sequence[tuple[Job, ChunkToSpeak]]) -> None:
        """Give S3Gen the next chunks of streams, one of each."""
        ready: dict[str, ToSpeak] = {}
        for job, chunk in chunks:
            chunk_id = f"{job.serial}/{job.delivered}/at {job.samples}"
            self._note(chunk_id, job, job.delivered)
            ready[chunk_id] = chunk
        self.synthesis.add(ready)

    def poll(self, patience: float, between: Callable[[], object]) -> list[tuple[Job, int, Outcome]]:
        """What S3Gen has finished: the request, which of its pieces, and what came of it; see `Synthesis.poll`."""
        finished = []
        for piece_id, outcome in self.synthesis.poll(patience, between):
            job, k = self._pieces.pop(piece_id)
            job.live.discard(piece_id)
            finished.append((job, k, outcome))
        return finished

    def drop(self, job: Job) -> None:
        """Let S3Gen forget a request."""
        dropped = {piece_id for piece_id in job.live if self._pieces.pop(piece_id, None)}
        self.synthesis.drop({piece_id for piece_id in dropped if self._gathered.pop(piece_id, None) is None})

    def _note(self, piece_id: str, job: Job, k: int) -> None:
        self._pieces[piece_id] = job, k
        job.live.add(piece_id)


def _order(priority: int, k: int) -> float:
    """Whose piece S3Gen takes first: by priority, then those whose listeners have heard least."""
    return priority * 1e6 + min(k, 999_999)
