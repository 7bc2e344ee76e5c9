"""One request on its way through the blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from chatterbox_vllm.checkpoint.config import BlockDecoding
from chatterbox_vllm.t3.blocks.unmasking import schedule
from chatterbox_vllm.t3.sampling import Sampling


@dataclass(eq=False)
class Sequence:
    """What a request has said, and how far its block is.

    Attributes:
        prompt: [P, 2 * H].
        told: whether finished blocks are told before the end.
        stop: the token that ends speech.
        places: of its positions in `Pages`; None while it waits.
        context: [2, H] hidden states of the position before the block, of both streams.
        length: positions that stand for good: the prompt and finished blocks that were taken in.
        blocks: that were taken in.
        finished: tokens of finished blocks.
        block: tokens of the block; None is not filled in yet.
        step: how many the block has had.
        untold: of `finished`, the first that was not told.
    """

    request_id: str
    prompt: torch.Tensor
    sampling: Sampling
    seed: int
    told: bool
    config: BlockDecoding
    stop: int
    places: torch.Tensor | None = None
    context: torch.Tensor | None = None
    length: int = 0
    blocks: int = 0
    step: int = 0
    finished: list[int] = field(default_factory=list)
    block: list[int | None] = field(default_factory=list)
    untold: int = 0

    def __post_init__(self) -> None:
        self._begin()

    @property
    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`places` and `context` of a request whose prompt was read."""
        assert self.places is not None and self.context is not None
        return self.places, self.context

    @property
    def reserved(self) -> int:
        """Positions that it may come to need: whole blocks behind the prompt."""
        size = self.config.block_size
        return len(self.prompt) + -(-self.sampling.max_tokens // size) * size

    @property
    def size(self) -> int:
        """Of the block: the last one is shorter where `max_tokens` cuts it."""
        return len(self.block)

    @property
    def filled(self) -> bool:
        """Whether the block is finished and has only to be taken in for good."""
        return None not in self.block

    @property
    def least(self) -> int:
        """Positions that the next step fills in at least."""
        return 0 if self.filled else schedule(self.config, self.size)[self.step]

    @property
    def steps_before(self) -> int:
        """Of all blocks, if each had taken the most: which uniform numbers are next."""
        return self.blocks * self.config.steps + self.step

    def fill(self, tokens: list[int], taken: list[bool]) -> None:
        """Take in what a step has drawn, in the places where it stays."""
        self.block = [token if here else old for token, here, old in zip(tokens, taken, self.block, strict=False)]
        self.step += 1
        if self.filled and not self.stopped:
            self.finished += [token for token in self.block if token is not None]

    @property
    def stopped(self) -> bool:
        """Whether the block holds an end of speech."""
        return self.stop in self.block

    @property
    def over(self) -> bool:
        return self.stopped or len(self.finished) >= self.sampling.max_tokens

    def end(self) -> None:
        """Keep what stands before the end of speech, and this itself; what is not filled in there was never said."""
        before = self.block[: self.block.index(self.stop)]
        self.finished += [*(token for token in before if token is not None), self.stop]

    def advance(self, context: torch.Tensor) -> None:
        """The block was taken in for good: begin the next one.

        Args:
            context: [2, H] hidden states of its last position.
        """
        self.context = context
        self.length += self.size
        self.blocks += 1
        self._begin()

    def _begin(self) -> None:
        self.step = 0
        self.block = [None] * min(self.config.block_size, self.sampling.max_tokens - len(self.finished))

    def news(self) -> tuple[int, ...]:
        """Tokens since the last time."""
        fresh = tuple(self.finished[self.untold :])
        self.untold = len(self.finished)
        return fresh
