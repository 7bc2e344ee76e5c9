"""`/`: the page for people, and a greeting for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from chatterbox_vllm import __version__
from chatterbox_vllm.server.assets import Asset, assets
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.routes.voices import MOST_CLIP_BYTES
from chatterbox_vllm.server.schemas import PageFacts, PageField, PageModel, Speaking
from chatterbox_vllm.server.service import Here

router = APIRouter()


@router.get("/", tags=["server"], summary="Greet", responses={200: {"content": {"text/html": {}}}})
@router.get("/v1", include_in_schema=False)
@router.get("/v1/", include_in_schema=False)
async def greet(request: Request, service: Here) -> Response:
    """What this is; to browsers at `/`, the page to speak with."""
    if request.url.path == "/" and "text/html" in request.headers.get("accept", ""):
        page = _answer(request, assets()["page.html"])
        page.headers["vary"] = "Accept"
        return page
    greeting = {
        "name": "chatterbox-vllm",
        "version": __version__,
        "model": service.model,
        "documentation": "/docs",
    }
    return JSONResponse(greeting, headers={"vary": "Accept"})


@router.get("/page/facts.json", include_in_schema=False)
async def facts(service: Here) -> PageFacts:
    """What the page has to know of this server: its limits, its models, the ranges and values of their controls."""
    # A clip goes in base64, which makes four bytes of three, beside the text.
    most_clip = min(MOST_CLIP_BYTES, (service.options.max_body - 16 * service.options.max_text) * 3 // 4)
    return PageFacts(
        max_text=service.options.max_text,
        max_clip=max(0, most_clip),
        models=[
            PageModel(name=model.name, languages=dict(model.languages), fields=_fields(model.parameters))
            for model in service.pool.models.values()
        ],
    )


@router.get("/page/{name}", include_in_schema=False)
async def asset(name: str, request: Request) -> Response:
    """A file of the page."""
    found = assets().get(name)
    if found is None:
        raise ApiError(404, f"there is no /page/{name[:80]}", code="not_found")
    return _answer(request, found)


def _answer(request: Request, found: Asset) -> Response:
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=found.headers)
    return Response(found.data, media_type=found.media_type, headers=found.headers)


def _fields(parameters: Mapping[str, float]) -> dict[str, PageField]:
    """The controls of a model, with what it speaks with of itself."""
    properties = Speaking.model_json_schema()["properties"]
    own = {**parameters, "speed": 1}
    return {name: PageField(default=value, **_range(properties[name])) for name, value in own.items()}


def _range(schema: dict[str, Any]) -> dict[str, float]:
    """The numbers that a field of `Speaking` takes."""
    number = next(each for each in schema["anyOf"] if each["type"] in ("number", "integer"))
    return {"low": number.get("minimum", number.get("exclusiveMinimum")), "high": number["maximum"]}
