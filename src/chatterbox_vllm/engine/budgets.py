"""How much may be on its way at once, so that memory is bounded whatever callers send."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

from chatterbox_vllm.errors import ConfigError, OverloadedError


@dataclass(frozen=True)
class Limits:
    """What an engine takes on at once.

    Attributes:
        requests: on their way.
        characters: of all their texts together.
        characters_of_one: of one text.
        waiting_seconds: of audio that was spoken and that nobody has taken yet, of one request; its other segments
            wait until somebody does.
        waiting_seconds_of_all: of all requests together; beyond it new ones are refused.

    Raises:
        ConfigError: a value that is not positive.
    """

    requests: int = 4096
    characters: int = 64_000_000
    characters_of_one: int = 16_000_000
    waiting_seconds: float = 120.0
    waiting_seconds_of_all: float = 36_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                kind = "a positive integer" if whole else "a positive number"
                raise ConfigError(f"limits: {field.name} must be {kind}, not {value!r}")


class Meter:
    """Counts what is on its way against the limits. For several threads."""

    def __init__(self, limits: Limits, sample_rate: int):
        self.limits = limits
        self._rate = sample_rate
        self._lock = threading.Lock()
        self.requests = 0
        self.characters = 0
        self.waiting_samples = 0

    def take_on(self, characters: int) -> None:
        """Count a request of that many characters, if there is room.

        Raises:
            ConfigError: the text is longer than any that is taken.
            OverloadedError: there is no room now.
        """
        limits = self.limits
        if characters > limits.characters_of_one:
            raise ConfigError(
                f"the text has {characters} characters, at most {limits.characters_of_one} are taken at once; "
                "send it in parts"
            )
        with self._lock:
            waiting = self.waiting_samples / self._rate
            full = {
                f"{self.requests} requests are on their way": self.requests >= limits.requests,
                f"{self.characters} characters are on their way": self.characters + characters > limits.characters,
                f"{waiting:.0f} s of audio wait to be taken": waiting > limits.waiting_seconds_of_all,
            }
            for what, is_full in full.items():
                if is_full:
                    raise OverloadedError(f"the engine is full: {what}; try again later")
            self.requests += 1
            self.characters += characters

    def let_go(self, characters: int) -> None:
        """A request of that many characters has ended."""
        with self._lock:
            self.requests -= 1
            self.characters -= characters

    def waiting(self, samples: int) -> None:
        """So many samples more (or fewer, below zero) wait to be taken."""
        with self._lock:
            self.waiting_samples += samples
