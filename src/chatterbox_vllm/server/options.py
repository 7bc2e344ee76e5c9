"""How the server runs; each field has a row in `settings.SERVER`."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from pathlib import Path

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.server.names import OPENAI_VOICES

_SHORTEST_KEY = 8
_MOST_REQUESTS, _TURNS = 256, 8


@dataclass(frozen=True)
class ServerOptions:
    """What a server takes from whom, and for how long. Every number is above 0.

    Attributes:
        models: that are served, by the names that requests give; none is the one that the command names. The first
            speaks where a request names none of them.
        models_memory_gb: GiB that loaded models may take together, as it is estimated; None sets no limit.
        host, port: where it listens; port 0 takes a free one.
        api_keys: any of them opens the server; none leaves it open.
        without_key: listen beyond loopback although there is no key.
        cors_origins: origins of pages that may call it from a browser; "loopback" is every page of this machine, "*"
            any page.
        voice_aliases: names that stand for voices of other names.
        voices_directory: of the voice library; None is the user's own.
        default_voice: what speaks where a request names no voice; None is the model's own.
        url_audio: fetch reference clips from addresses that requests name, public ones only.
        max_text: characters of one text.
        max_recording_seconds: of one recording that is converted.
        max_body_mb: of one request, in MiB.
        max_requests: on their way at once; more are answered with 429. None is as many as `most_requests` says.
        max_connections: open at once; more are closed.
        max_seconds: for a request, from its arrival to its last byte.
        stall_seconds: for a client to send the next part of its request, or to take the next part of the answer.
        idle_seconds: without a request, after which the model is unloaded; None keeps it.
        drain_seconds: for requests on their way, once the server was told to end.
        log_json: log lines are JSON objects.

    Raises:
        ConfigError: a value that cannot be used; no key where one is needed.
    """

    models: dict[str, str] = field(default_factory=dict)
    models_memory_gb: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    without_key: bool = False
    cors_origins: tuple[str, ...] = ("loopback",)
    voice_aliases: dict[str, str] = field(default_factory=dict)
    voices_directory: Path | None = None
    default_voice: str | None = None
    url_audio: bool = False
    max_text: int = 4096
    max_recording_seconds: float = 600.0
    max_body_mb: float = 32.0
    max_requests: int | None = None
    max_connections: int = 1024
    max_seconds: float = 600.0
    stall_seconds: float = 30.0
    idle_seconds: float | None = None
    drain_seconds: float = 30.0
    log_json: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be a number from 0 to 65535, not {self.port!r}")
        for name in ("max_text", "max_body_mb", "max_connections", "max_seconds", "stall_seconds"):
            _check_positive(name, getattr(self, name))
        for name in ("max_recording_seconds", "drain_seconds"):
            _check_positive(name, getattr(self, name))
        for name in ("idle_seconds", "models_memory_gb", "max_requests"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        for key in self.api_keys:
            if len(key) < _SHORTEST_KEY or not key.isascii() or any(c.isspace() for c in key):
                raise ConfigError(
                    f"an API key has {_SHORTEST_KEY} characters at least, all of them ASCII and none a space; this one "
                    f"has {len(key)}: make one with `openssl rand -hex 16`"
                )
        if not self.api_keys and not self.without_key and not is_loopback(self.host):
            raise ConfigError(
                f"listening on {self.host!r}, which other machines can reach, takes a key: set api_keys (or the "
                "environment variable CHATTERBOX_API_KEYS), or set without_key to let everybody in"
            )
        for origin in self.cors_origins:
            if origin not in ("loopback", "*") and not origin.startswith(("http://", "https://")):
                raise ConfigError(
                    f"cors_origins holds {origin!r}; give origins like https://chat.example.org, 'loopback', or '*'"
                )
        for alias in self.voice_aliases:
            if not alias or not self.voice_aliases[alias]:
                raise ConfigError(
                    f"voice_aliases maps {alias!r} to {self.voice_aliases[alias]!r}; give NAME=VOICE, such as "
                    f"{OPENAI_VOICES[0]}=anna"
                )

    def most_requests(self, places: int = _MOST_REQUESTS) -> int:
        """On their way at once, for an engine that speaks so many at once.

        Where nobody says it, who comes last waits for a few turns of the engine: with 200 clients on two busy cores
        that speak four at once, an answer took 189 s in the median with 256 and 66 s with 32.
        """
        return self.max_requests or min(_MOST_REQUESTS, _TURNS * places)

    @property
    def keyless(self) -> bool:
        """Whether everybody who reaches the server is let in."""
        return not self.api_keys

    @property
    def models_memory(self) -> int | None:
        """Bytes that loaded models may take together."""
        return None if self.models_memory_gb is None else int(self.models_memory_gb * (1 << 30))

    @property
    def max_body(self) -> int:
        """Bytes of one request's body."""
        return int(self.max_body_mb * (1 << 20))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a number above 0, not {value!r}")
