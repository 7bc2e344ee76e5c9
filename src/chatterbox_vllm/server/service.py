"""What all routes work with, and how they get at it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, TypeVar, cast

from fastapi import Depends
from starlette.requests import HTTPConnection, Request

from chatterbox_vllm.server.asgi import note
from chatterbox_vllm.server.errors import CLIENT_GONE, ApiError
from chatterbox_vllm.server.metrics import Metrics
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.order import Order
from chatterbox_vllm.server.pool import ModelPool
from chatterbox_vllm.server.speaking import Speaker
from chatterbox_vllm.server.voices import VoiceBook
from chatterbox_vllm.voices.records import Consents

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """One of each."""

    options: ServerOptions
    pool: ModelPool
    voices: VoiceBook
    consents: Consents
    speaker: Speaker
    metrics: Metrics

    @property
    def model(self) -> str:
        """The name of the model that speaks where a request names none of ours."""
        return self.pool.default


def service_of(connection: HTTPConnection) -> Service:
    """The service of the application that a request came to."""
    return cast(Service, connection.app.state.service)


Here = Annotated[Service, Depends(service_of)]


def number_of(connection: HTTPConnection) -> str:
    """The request's number, which the log and the answer tell."""
    return str(connection.scope["state"]["request_id"])


def note_order(connection: HTTPConnection, order: Order) -> None:
    """Tell the log what was ordered, but for the text."""
    facts = {"characters": len(order.text), "format": order.format, "seed": order.parameters.seed, "model": order.model}
    note(connection.scope).update(facts)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Do something that is given up as soon as the client has gone. The request's body must have been read.

    Raises:
        ApiError: the client has gone.
        others: as the work raises them.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(CLIENT_GONE, "the client has gone", code="client_gone")
    finally:
        for each in (task, gone):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
