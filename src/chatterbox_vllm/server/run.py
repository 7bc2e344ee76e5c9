"""The server as a process: its socket, uvicorn, and its end."""

from __future__ import annotations

import logging
import math
import socket

import uvicorn
from starlette.types import ASGIApp

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.protocol import connection_class

logger = logging.getLogger(__name__)

# The gate refuses less than this with words; beyond it the connection ends while headers still come.
_MOST_INCOMPLETE = 64 << 10
_KEEP_ALIVE_SECONDS = 30
_WS_BYTES = 1 << 20  # of one message
_WS_QUEUE = 8  # messages that were not looked at yet


def bind(host: str, port: int) -> socket.socket:
    """A socket on which nobody listens yet, so that a port that is taken is known before a model is loaded.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error}); choose another port or host"
        ) from error
    return found


class Server(uvicorn.Server):
    """uvicorn with our limits. SIGINT and SIGTERM let requests on their way end, for `drain_seconds`.

    Attributes:
        gave_up: the model failed too often; the process ought to be started anew.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions):
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(options.max_connections, options.stall_seconds),
                ws="websockets-sansio",
                ws_max_size=_WS_BYTES,
                ws_max_queue=_WS_QUEUE,
                ws_per_message_deflate=False,  # a small message must not unpack to a large one
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(options.drain_seconds),
                h11_max_incomplete_event_size=_MOST_INCOMPLETE,
            )
        )
        self.gave_up = False

    def give_up(self) -> None:
        """End as after SIGTERM, with a failure."""
        self.gave_up = True
        self.should_exit = True
