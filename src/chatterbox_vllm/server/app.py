"""The application: routes, and the layers around them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from chatterbox_vllm import __version__
from chatterbox_vllm.errors import ChatterboxError
from chatterbox_vllm.server.access import Access
from chatterbox_vllm.server.errors import ApiError, api_error
from chatterbox_vllm.server.gate import Gate, methods_of
from chatterbox_vllm.server.limits import Limits
from chatterbox_vllm.server.metrics import Metrics, Moment
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.pool import ModelPool, ServedModel
from chatterbox_vllm.server.routes import (
    conversions,
    docs,
    health,
    live,
    models,
    page,
    realtime,
    sillytavern,
    speech,
    voices,
)
from chatterbox_vllm.server.service import Service
from chatterbox_vllm.server.speaking import Speaker
from chatterbox_vllm.server.voices import VoiceBook
from chatterbox_vllm.voices.records import Consents

if TYPE_CHECKING:
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox

_CONSENTS = "consents"  # a directory in the voice library's


def make_app(
    served: Sequence[ServedModel],
    options: ServerOptions,
    engine: AsyncChatterbox | None = None,
    on_failure: Callable[[], None] | None = None,
) -> ASGIApp:
    """The server as an ASGI application, for uvicorn to run.

    Args:
        served: the models that requests may name; the first speaks where they name none.
        engine: of the first, where it is open already; without one the first request loads it.
        on_failure: called when no model is left that has not failed too often in a row.

    Raises:
        ConfigError: the options name a voice that there is not, of the engine's model or in the library; two models
            have one name, or one takes more than there is for all.
    """
    book = VoiceBook(options)

    for model in served:
        book.learn(model.name, model.voices, model.voice_kind)
    if engine is not None:
        book.check_options(served[0].name, engine.tts)
    most = options.max_requests or (options.most_requests() if engine is None else engine.limits.requests)
    pool = ModelPool(served, most, options.idle_seconds, options.models_memory, on_failure, engine)
    metrics = Metrics(lambda: _gauges(pool))
    service = Service(
        options=options,
        pool=pool,
        voices=book,
        consents=Consents(book.library.directory / _CONSENTS),
        speaker=Speaker(pool, book, metrics, options),
        metrics=metrics,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(
        title="chatterbox-vllm",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    openai = (speech, conversions, voices, models, health, realtime, live)
    for router in (room.router for room in openai):
        app.include_router(router, prefix="/v1")
        app.include_router(router, include_in_schema=False)  # for base URLs without /v1
    for router in (docs.router, health.root, sillytavern.router, page.router):
        app.include_router(router)
    app.add_exception_handler(ApiError, _failed)
    app.add_exception_handler(ChatterboxError, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Access(Gate(Limits(app, options), options, app.routes), metrics)


async def _failed(request: Request, error: Exception) -> Response:
    found = api_error(error)
    return JSONResponse(found.body(), found.status, found.headers())


async def _refused(request: Request, error: Exception) -> Response:
    """What FastAPI itself refuses: unknown addresses and methods, bodies that cannot be read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # met while the body was read
        return await _failed(request, error.__cause__)
    codes = {404: "not_found", 405: "method_not_allowed"}
    messages = {
        404: f"there is no {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }
    message = messages.get(error.status_code, str(error.detail))
    found = ApiError(error.status_code, message, code=codes.get(error.status_code, "invalid_request"))
    headers = error.headers
    if error.status_code == 405:  # FastAPI tells the methods of one route of several
        headers = {"allow": ", ".join(methods_of(request.app.routes, request.scope))}
    return JSONResponse(found.body(), found.status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Fields that are missing or out of range: status 400, as OpenAI's service answers."""
    assert isinstance(error, RequestValidationError)
    problem: dict[str, Any] = error.errors()[0]
    # Behind "body"; of what is no JSON it is where the reading stopped.
    place = () if problem["type"] == "json_invalid" else problem["loc"][1:]
    param = ".".join(map(str, place)) or None
    codes = {"missing": "missing_required_parameter", "json_invalid": "invalid_json"}
    message = problem["msg"] if param is None else f"{param}: {problem['msg']}"
    if problem["loc"] == ("body",):  # there is none, or none that was read as JSON
        message = "the body must be a JSON object, sent with Content-Type: application/json"
    found = ApiError(400, message[:500], param[:100] if param else None, codes.get(problem["type"], "invalid_value"))
    return JSONResponse(found.body(), 400)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description without status 422, which no answer has."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _gauges(pool: ModelPool) -> Iterable[Moment]:
    """Figures of the moment for `Metrics`; but for those by model, of all models together."""
    keepers = pool.keepers
    yield Moment("ready", "Whether a request would be spoken at once", float(pool.is_healthy))
    yield Moment("model_loads", "Times a model was loaded again", sum(keeper.loads for keeper in keepers.values()))
    yield Moment("users", "Requests that use or wait for a model", sum(keeper.users for keeper in keepers.values()))
    loaded = {name: float(keeper.engine is not None) for name, keeper in keepers.items()}
    yield Moment("model_loaded", "Whether a model is in memory", loaded, "model")
    users = {name: float(keeper.users) for name, keeper in keepers.items()}
    yield Moment("model_users", "Requests that use or wait for it", users, "model")
    engines = list(pool.engines)
    if not engines:
        return
    stats = [engine.stats() for engine in engines]
    yield Moment("queue", "Requests that wait for their first token", sum(s.queued for s in stats))
    yield Moment("talking", "Pieces of text that T3 speaks", sum(s.talking for s in stats))
    yield Moment("waiting_for_voice", "Pieces that wait for S3Gen", sum(s.waiting_for_voice for s in stats))
    untaken = sum(s.untaken_seconds for s in stats)
    yield Moment("untaken_seconds", "Audio that is ready and that clients have not taken", untaken)
    yield Moment("kv_blocks", "Blocks of T3's cache in use", sum(s.kv_blocks_in_use for s in stats))
    parts: Counter[str] = Counter()
    for engine in engines:
        info = engine.tts.get_quantization_info()
        held = (name for name in ("t3", "s3gen", "voice_encoder") if info[name] is not None)
        parts.update({name: info[name]["total_bytes"] for name in held})
    if parts:
        yield Moment("weights_bytes", "Memory of the models' weights", dict(parts), "component")
