"""What the server is doing: for load balancers, for Prometheus, and for people."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from chatterbox_vllm.server.errors import documented
from chatterbox_vllm.server.keeper import State
from chatterbox_vllm.server.metrics import MEDIA_TYPE
from chatterbox_vllm.server.schemas import Health, Speaking, Warmed
from chatterbox_vllm.server.service import Here, Service, number_of, while_connected

root = APIRouter(tags=["server"])
router = APIRouter(tags=["server"])
_QUEUE = ("queued", "talking", "waiting_for_voice", "unfinished", "completed", "failed", "audio_seconds", "uptime")
_WORDS = {State.READY: "ok"}
_UNHEALTHY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "there is no model at the moment"}}


@root.get("/health", summary="What the server does", responses=documented() | _UNHEALTHY)
@root.get("/health/ready", summary="Whether it speaks", responses=documented() | _UNHEALTHY, name="ready")
async def health(service: Here, response: Response) -> Health:
    """Its state; status 503 while a request would have to wait for a model, or would find none."""
    found = await asyncio.to_thread(_health, service)
    if not found.ready:
        response.status_code = 503
        response.headers["retry-after"] = "5"
    return found


@root.get("/health/live", summary="Whether it answers", responses=documented())
async def live() -> dict[str, bool]:
    """Always so, where there is an answer at all."""
    return {"live": True}


def _health(service: Service) -> Health:
    keeper = service.keeper
    engine = keeper.engine
    queue: dict[str, float] = {"users": keeper.users}
    quantization = device = tier = None
    if engine is not None:
        stats = engine.stats()
        queue |= {name: getattr(stats, name) for name in _QUEUE}
        quantization = engine.tts.get_quantization_info()
        device, tier = str(engine.tts.device), engine.tts.settings.get("tier")
    word: Any = _WORDS.get(keeper.state, keeper.state.value)
    if keeper.state is State.READY and not keeper.is_healthy:
        word = State.LOADING.value
    return Health(
        status=word,
        live=True,
        ready=keeper.is_healthy,
        model=service.model,
        device=device,
        tier=tier,
        quantization=quantization,
        queue=queue,
        loads=keeper.loads,
        failure=None if keeper.failure is None else f"{type(keeper.failure).__name__}: {keeper.failure}",
    )


@root.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=documented())
async def metrics(service: Here) -> Response:
    """Text that Prometheus reads."""
    return Response(await asyncio.to_thread(service.metrics.page), media_type=MEDIA_TYPE)


@router.post("/warmup", summary="Load the model and speak once", responses=documented(429, 504))
async def warmup(request: Request, service: Here) -> Warmed:
    """Make the model ready, so that the next request finds it warm."""
    order = await service.speaker.order(Speaking(seed=0, response_format="pcm"), "Hello there.")
    started = time.monotonic()
    spoken = await while_connected(request, service.speaker.whole(order, number_of(request)))
    return Warmed(seconds=round(time.monotonic() - started, 3), audio_seconds=round(spoken.seconds, 3))
