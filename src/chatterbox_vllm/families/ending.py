"""What becomes of the end of T3's speech before anybody hears it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechEnding:
    """How a family's utterances end.

    Attributes:
        appended: speech tokens that S3Gen is given behind those that T3 spoke.
        unheard: speech tokens at the end of all that S3Gen is given whose audio is cut off. One token is always heard.
    """

    appended: tuple[int, ...] = ()
    unheard: int = 0


AS_SPOKEN = SpeechEnding()
