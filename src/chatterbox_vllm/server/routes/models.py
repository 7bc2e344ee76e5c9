"""Which models there are: one, under several names."""

from __future__ import annotations

import time

from fastapi import APIRouter

from chatterbox_vllm.server.errors import ApiError, documented
from chatterbox_vllm.server.schemas import Model, ModelList
from chatterbox_vllm.server.service import Here

router = APIRouter(tags=["models"])
_STARTED = int(time.time())


@router.get("/models", summary="List the model's names", responses=documented())
@router.get("/audio/models", summary="List the model's names", responses=documented(), name="list_audio_models")
async def list_models(service: Here) -> ModelList:
    """All names that requests may give as `model`; they mean the same model."""
    models = [Model(id=name, created=_STARTED) for name in service.speaker.models]
    return ModelList(data=models, models=models)


@router.get("/models/{model:path}", summary="Show a model", responses=documented(404))
async def get_model(model: str, service: Here) -> Model:
    """One of the names."""
    if model not in service.speaker.models:
        raise ApiError(404, f"there is no model {model[:80]!r}", "model", "model_not_found")
    return Model(id=model, created=_STARTED)
