"""Which models there are, and the names that stand for the first of them."""

from __future__ import annotations

import time

from fastapi import APIRouter

from chatterbox_vllm.server.errors import documented
from chatterbox_vllm.server.schemas import Model, ModelList
from chatterbox_vllm.server.service import Here, Service

router = APIRouter(tags=["models"])
_STARTED = int(time.time())


@router.get("/models", summary="List the models", responses=documented())
@router.get("/audio/models", summary="List the models", responses=documented(), name="list_audio_models")
async def list_models(service: Here) -> ModelList:
    """All names that requests may give as `model`: the models', and those that stand for the first of them."""
    models = [_model(service, name) for name in service.speaker.names]
    return ModelList(data=models, models=models)


@router.get("/models/{model:path}", summary="Show a model", responses=documented(404))
async def get_model(model: str, service: Here) -> Model:
    """One of the names."""
    return _model(service, model)


def _model(service: Service, name: str) -> Model:
    speaks = service.speaker.model_named(name)
    return Model(id=name, created=_STARTED, root=speaks, loaded=service.pool.keepers[speaks].engine is not None)
