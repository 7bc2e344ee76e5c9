"""What T3 has said of one piece of a text, as it is told."""

from __future__ import annotations

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.engine.guard import LOOK_EVERY, Bounds, Fault, end_before_repetition
from chatterbox_vllm.t3.options import T3Output


class Said:
    """One attempt at one piece.

    Args:
        bounds: of the piece's tokens where its speech is guarded; None where it is taken as it comes.
        max_tokens: that the caller allows.

    Attributes:
        limit: the most tokens to draw.
        tokens: codebook ids only, without end-of-speech and what may come behind it.
        finish_reason: of T3; None while it goes on.
    """

    def __init__(self, config: T3Config, bounds: Bounds | None, max_tokens: int):
        self._config, self._bounds = config, bounds
        self.limit = max_tokens if bounds is None else min(max_tokens, bounds.most)
        self._limited = self.limit < max_tokens
        self._stopped = self._runs_away = False
        self.tokens: list[int] = []
        self.finish_reason: str | None = None

    def hear(self, output: T3Output) -> tuple[int, ...]:
        """Take in what T3 has said since the last time; returns the speech in it.

        What comes of it does not depend on how many tokens are told together.
        """
        known = len(self.tokens)
        for token in output.token_ids:
            self._stopped = self._stopped or token == self._config.stop_speech_token
            if self._stopped or self._runs_away:
                break
            if token < self._config.start_speech_token:
                self.tokens.append(token)
                if len(self.tokens) % LOOK_EVERY == 0:
                    self._look()
        self.finish_reason = output.finish_reason
        if self.finish_reason is not None:
            self._look()
        return tuple(self.tokens[known:])

    def _look(self) -> None:
        """Cut what repeats without an end, where it is guarded."""
        if self._bounds is not None and (left := end_before_repetition(self.tokens)) is not None:
            self._runs_away = True
            del self.tokens[left:]

    @property
    def over(self) -> bool:
        """Whether nothing more is to be heard: T3 has finished, or runs in circles."""
        return self.finish_reason is not None or self._runs_away

    @property
    def fault(self) -> Fault | None:
        """What is wrong with it when it is over."""
        if not self.tokens:
            return "mute"
        if self._bounds is None:
            return None
        if self._runs_away or (self.finish_reason == "length" and self._limited):
            return "runaway"
        return "hasty" if self.finish_reason == "stop" and len(self.tokens) < self._bounds.least else None

    @property
    def distance(self) -> float:
        """How far its length is from what is usual for the text."""
        return 0.0 if self._bounds is None else abs(len(self.tokens) - self._bounds.usual)


def best_of(attempts: list[Said]) -> Said:
    """The one to be heard: the last where nothing is wrong with it, else the one of the most usual length."""
    last = attempts[-1]
    return last if last.fault is None else min(attempts, key=lambda said: (not said.tokens, said.distance))
