"""Connections: how many there are, and how long one may stay without a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# What comes of a request after its answer is read and dropped for so long, and up to so many bytes: a client that is
# still sending would see a connection that is closed at once as broken, and not the answer.
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 1 << 20


def connection_class(most: int, patience: float) -> type[asyncio.Protocol]:
    """A class for uvicorn's `http`.

    Args:
        most: connections at once; those beyond are closed at once.
        patience: seconds within which a request's headers must be whole.
    """

    class Connection(H11Protocol):
        """uvicorn's connection with these two limits, which can be cut from within a request (`state.abort`)."""

        _patience: asyncio.TimerHandle | None = None
        _dropped = 0

        def connection_made(self, transport: Any) -> None:
            self.app_state = {**self.app_state, "abort": transport.abort}
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            self._wait_for_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answered_early():
                self._dropped += len(data)
                if self._dropped > _LINGER_BYTES:
                    self.flow.pause_reading()
            if self.conn.their_state is h11.IDLE:  # a request's headers are not whole
                self._wait_for_request()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._stop_waiting()
            super().handle_websocket_upgrade(event)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_answered_early():
                self._dropped = 0
                self.loop.call_later(_LINGER_SECONDS, self._close_unfinished, self.cycle)

        def _is_answered_early(self) -> bool:
            return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

        def _close_unfinished(self, cycle: Any) -> None:
            if self.cycle is cycle and self._is_answered_early():
                self.transport.abort()

        def _wait_for_request(self) -> None:
            if self._patience is None:
                self._patience = self.loop.call_later(patience, self._close_unused)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _close_unused(self) -> None:
            self._patience = None
            if self.conn.their_state is h11.IDLE:
                self.transport.abort()

    return Connection
