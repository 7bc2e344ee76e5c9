"""Every error that this package raises on purpose.

ChatterboxError
├── ConfigError (ValueError)         a parameter, option or config.json value that cannot be used
│   └── TextTooLongError             a text that does not fit the engine's model length
├── CheckpointError                  model files: missing, truncated, wrong key, wrong shape
│   └── ModelUnavailableError        a model that could not be found or downloaded
├── AudioError (ValueError)          a reference clip that cannot be used as a voice
├── DeviceError                      a device that was asked for and is not there, or has no room
├── OutputError (OSError)            audio that could not be written
├── OverloadedError                  a request that the engine has no room for now
└── GenerationError                  a request that failed while it was being spoken
    ├── BatchError                   some texts of a list failed; holds the others' audio
    ├── AbortedError                 a request that its caller aborted
    └── DeadlineError                a request that was not done in time

Each message says what is wrong, with the value, and what to do about it.
"""

from __future__ import annotations

from typing import Any


class ChatterboxError(Exception):
    """Base of all errors of this package."""


class ConfigError(ChatterboxError, ValueError):
    """A parameter is out of range, of the wrong type, or contradicts another."""


class TextTooLongError(ConfigError):
    """The text's tokens and the speech asked for exceed the model length."""


class CheckpointError(ChatterboxError):
    """A model file is missing, damaged, or not of the expected layout."""


class ModelUnavailableError(CheckpointError):
    """No model of that name is at hand and none could be downloaded."""


class AudioError(ChatterboxError, ValueError):
    """A reference clip cannot be decoded, or is too short, too long or silent."""


class DeviceError(ChatterboxError):
    """The device asked for does not exist or cannot hold the model."""


class OutputError(ChatterboxError, OSError):
    """An audio file could not be written; nothing was left in its place."""


class OverloadedError(ChatterboxError):
    """The engine has as much on its way as it takes; nothing is wrong with the request. Try again later."""


class GenerationError(ChatterboxError):
    """One request failed; other requests are not affected."""


class BatchError(GenerationError):
    """Some texts or recordings of a list failed.

    Attributes:
        results: an entry for each, in the list's order: its audio (1, n), or the error that it met.
        unit: what each is, "text" or "recording".
    """

    def __init__(self, results: list[Any], unit: str = "text"):
        self.results, self.unit = results, unit
        failed = [(i, result) for i, result in enumerate(results) if isinstance(result, Exception)]
        first = "; ".join(f"{unit} {i}: {error}" for i, error in failed[:3])
        super().__init__(
            f"{len(failed)} of {len(results)} {unit}s failed ({first}); the others' audio is in this error's "
            "`results`, or pass return_exceptions=True"
        )

    def __reduce__(self) -> tuple[type[BatchError], tuple[list[Any], str]]:
        return type(self), (self.results, self.unit)


class AbortedError(GenerationError):
    """The caller aborted the request."""


class DeadlineError(GenerationError):
    """The request was not done before its deadline and was dropped."""
