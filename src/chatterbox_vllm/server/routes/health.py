"""What the server is doing: for load balancers, for Prometheus, and for people."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from chatterbox_vllm.server.errors import documented
from chatterbox_vllm.server.keeper import Keeper, State
from chatterbox_vllm.server.metrics import MEDIA_TYPE
from chatterbox_vllm.server.schemas import Health, ModelHealth, Speaking, Warmed
from chatterbox_vllm.server.service import Here, Service, number_of, while_connected

root = APIRouter(tags=["server"])
router = APIRouter(tags=["server"])
_SUMS = ("queued", "talking", "waiting_for_voice", "unfinished", "completed", "failed", "audio_seconds")
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
    pool = service.pool
    keeper = pool.keepers[pool.default]
    queue: dict[str, float] = {"users": sum(each.users for each in pool.keepers.values())}
    for stats in (engine.stats() for engine in pool.engines):
        queue |= {name: queue.get(name, 0) + getattr(stats, name) for name in _SUMS}
        queue["uptime"] = max(queue.get("uptime", 0.0), stats.uptime)
    quantization = device = tier = None
    if (engine := keeper.engine) is not None:
        quantization = engine.tts.get_quantization_info()
        device, tier = str(engine.tts.device), engine.tts.settings.get("tier")
    return Health(
        status=_status(keeper),
        live=True,
        ready=pool.is_healthy,
        model=pool.default,
        models={name: _of_model(service, name) for name in pool.keepers},
        device=device,
        tier=tier,
        quantization=quantization,
        queue=queue,
        loads=keeper.loads,
        failure=_failure(keeper),
    )


def _of_model(service: Service, name: str) -> ModelHealth:
    keeper = service.pool.keepers[name]
    return ModelHealth(
        status=_status(keeper),
        loaded=keeper.engine is not None,
        users=keeper.users,
        loads=keeper.loads,
        expected_bytes=service.pool.models[name].bytes or None,
        failure=_failure(keeper),
    )


def _status(keeper: Keeper) -> Any:
    if keeper.state is State.READY:
        return "ok" if keeper.is_healthy else State.LOADING.value
    return keeper.state.value


def _failure(keeper: Keeper) -> str | None:
    return None if keeper.failure is None else f"{type(keeper.failure).__name__}: {keeper.failure}"


@root.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=documented())
async def metrics(service: Here) -> Response:
    """Text that Prometheus reads."""
    return Response(await asyncio.to_thread(service.metrics.page), media_type=MEDIA_TYPE)


@router.post("/warmup", summary="Load the model and speak once", responses=documented(404, 429, 504))
async def warmup(
    request: Request,
    service: Here,
    model: Annotated[str | None, Query(max_length=200, description="as in requests for speech")] = None,
) -> Warmed:
    """Make a model ready, so that the next request finds it warm: the first, or the one that is named."""
    order = await service.speaker.order(Speaking(model=model, seed=0, response_format="pcm"), "Hello there.")
    started = time.monotonic()
    spoken = await while_connected(request, service.speaker.whole(order, number_of(request)))
    return Warmed(seconds=round(time.monotonic() - started, 3), audio_seconds=round(spoken.seconds, 3))
