"""Who has S3Gen next where whole utterances and chunks of streams wait together."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from chatterbox_vllm.engine.to_speak import ChunkToSpeak, TokensToSpeak, ToSpeak

# A stream whose listener has less than this left to hear, in seconds, goes before whole utterances.
_SOON = 1.0
# How long whole utterances let such streams go first, in seconds; then they have a batch of their own.
_PATIENCE = 4.0
# How long after its last chunk there is counted to be a stream, in seconds: until its next one comes.
_STREAMING_FOR = 2.0


class TimeShares:
    """Streams go first as long as one of them is nearly dry; whole utterances get a batch every few seconds then."""

    def __init__(self) -> None:
        self._last_whole = self._last_chunk = -math.inf

    @property
    def streaming(self) -> bool:
        """Whether there are streams now."""
        return time.monotonic() - self._last_chunk < _STREAMING_FOR

    def next(self, waiting: Sequence[ToSpeak]) -> type[ToSpeak]:
        """The kind of those that wait whose turn it is now.

        Args:
            waiting: at least one.
        """
        now = time.monotonic()
        chunks = [entry for entry in waiting if isinstance(entry, ChunkToSpeak)]
        wholes = [entry for entry in waiting if isinstance(entry, TokensToSpeak)]
        if chunks:
            self._last_chunk = now
        if chunks and wholes:
            waited = now - max(self._last_whole, min(entry.since for entry in wholes))
            nearly_dry = min(chunk.due for chunk in chunks) < now + _SOON
            whole = waited > _PATIENCE or not nearly_dry
        else:
            whole = not chunks
        if whole:
            self._last_whole = now
        return TokensToSpeak if whole else ChunkToSpeak
