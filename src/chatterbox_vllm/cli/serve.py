"""`chatterbox-vllm serve`: a speech server for clients of OpenAI's API."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.cli.arguments import Keywords, from_settings, setting_type
from chatterbox_vllm.cli.options import load, with_model
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.settings import (
    ENGINE,
    MODEL,
    MODEL_NAME,
    QUANTIZATION,
    QUANTIZATION_BITS,
    QUANTIZATION_ENABLED,
    QUANTIZATION_METHOD,
    SERVER,
    STREAM,
    USE_QUANTIZATION,
    Setting,
    above_zero,
    flag,
    positive,
)

if TYPE_CHECKING:
    from chatterbox_vllm.server.options import ServerOptions
    from chatterbox_vllm.server.pool import ServedModel

_METHODS = {"4": "bnb-4bit", "8": "bnb-8bit"}
_OF_SERVER = {setting.keyword for setting in SERVER}


@from_settings(tuple(setting for setting in MODEL if setting is not MODEL_NAME), SERVER, ENGINE, STREAM, QUANTIZATION)
def serve(*, given: Keywords, quiet: bool) -> None:
    """Serve speech over HTTP, to clients of OpenAI's API and others, until Ctrl-C or SIGTERM."""
    options = server_options(given)
    keywords = {name: value for name, value in given.items() if name not in _OF_SERVER}
    keywords |= common_quantization(keywords)
    if len(options.models) > 1 and "revision" in keywords:
        raise ConfigError("revision is of one model, and there are several: leave it out, or serve that one alone")
    from chatterbox_vllm.server.logs import start_logging
    from chatterbox_vllm.server.run import bind

    start_logging(options.log_json, quiet)
    with bind(options.host, options.port) as socket:
        from chatterbox_vllm.server.app import make_app
        from chatterbox_vllm.server.pool import check_models
        from chatterbox_vllm.server.run import Server, logger

        served = _served(options, keywords)
        check_models(served, options.models_memory)
        logger.info("loading the model %s", served[0].name)
        engine = served[0].start()
        servers: list[Server] = []

        def give_up() -> None:
            servers[0].give_up()

        try:
            app = make_app(served, options, engine, give_up)
            server = Server(app, options)
            servers.append(server)
            signal.signal(signal.SIGHUP, server.handle_exit)  # as SIGTERM
            place = f"http://{options.host}:{socket.getsockname()[1]}"
            logger.info("speaking on %s at %s/v1; %s/docs tells more", engine.tts.device, place, place)
            with suppress(KeyboardInterrupt):  # uvicorn has ended in order, and tells by which signal
                server.run([socket])
        finally:
            engine.tts.shutdown()
    if server.gave_up:
        raise GenerationError("the model failed too often in a row; start the server anew")


def _served(options: ServerOptions, keywords: Keywords) -> list[ServedModel]:
    """The models, their files on this machine and found to be some, but none of them loaded.

    Raises:
        ConfigError, CheckpointError, ModelUnavailableError: a model cannot be had.
    """
    if options.models:
        return [_served_model(name, model, options, keywords) for name, model in options.models.items()]
    keywords = with_model(keywords)
    return [_served_model(None, keywords.pop("model", None), options, keywords)]


def _served_model(name: str | None, model: str | None, options: ServerOptions, keywords: Keywords) -> ServedModel:
    from chatterbox_vllm.engine.budgets import Limits
    from chatterbox_vllm.families.registry import config_of, family_of
    from chatterbox_vllm.families.voices import voices_of
    from chatterbox_vllm.server.pool import ServedModel
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox
    from chatterbox_vllm.setup.models import resolve_model
    from chatterbox_vllm.setup.planning import expected_bytes

    directory = resolve_model(model, keywords.get("revision"))
    config = config_of(directory)
    family = family_of(config.family, directory)
    loading = {key: value for key, value in keywords.items() if key != "revision"}

    def start() -> AsyncChatterbox:
        tts = load(loading | {"model": directory})
        most = options.most_requests(tts.t3_stage.options.max_batch_size)
        return AsyncChatterbox(tts, limits=Limits(requests=most))

    return ServedModel(
        name=name or _named(model or directory.name),
        start=start,
        voices=tuple(voices_of(directory)),
        voice_kind=config.voice_kind,
        bytes=0 if options.models_memory_gb is None else expected_bytes(directory, **loading),
        languages=family.languages,
        parameters=family.parameters_of(config),
    )


def _named(model: str) -> str:
    """What requests call a model: its name, or the last part of a path."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def server_options(given: Keywords) -> ServerOptions:
    """The server's options: what was given, or else the environment, or else the defaults.

    Raises:
        ConfigError: a value that cannot be used.
    """
    from chatterbox_vllm.server.options import ServerOptions

    found = {s.keyword: s.resolve(given.get(s.keyword), _parser(s), None) for s in SERVER}
    return ServerOptions(**{name: value for name, value in found.items() if value is not None})


def common_quantization(keywords: Keywords) -> dict[str, Any]:
    """Keywords for QUANTIZATION_ENABLED and QUANTIZATION_BITS, where nothing else says whether to quantize.

    Raises:
        ConfigError: one of them has another value than it may have.
    """
    enabled = QUANTIZATION_ENABLED.resolve(None, flag, None)
    bits = QUANTIZATION_BITS.resolve(None, _bits, None)
    own = (USE_QUANTIZATION, QUANTIZATION_METHOD)
    told = any(s.keyword in keywords or s.from_environment() for s in own) or "quantization_strategy" in keywords
    if told or (enabled is None and bits is None):
        return {}
    if enabled is False:
        return {"use_quantization": False}
    return {"use_quantization": True, "quantization_method": bits or _METHODS["4"]}


def _bits(value: object) -> str:
    if str(value) not in _METHODS:
        raise ValueError("4 or 8")
    return _METHODS[str(value)]


def _parser(setting: Setting) -> Callable[[object], Any]:
    special = {"api_keys": _words, "cors_origins": _words, "voice_aliases": _aliases, "models": _models, "port": _port}
    by_type: dict[Any, Callable[[object], Any]] = {bool: flag, int: positive, float: above_zero, str: str}
    return special.get(setting.keyword) or by_type[setting_type(setting)]


def _words(value: object) -> tuple[str, ...]:
    """Words with commas between them, or a list of words."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else ()
    return tuple(str(word).strip() for word in words if str(word).strip())


def _aliases(value: object) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(value)]
    if not all(alias and equals and voice for alias, equals, voice in pairs):
        raise ValueError("ALIAS=VOICE, such as alloy=anna")
    return {alias.strip(): voice.strip() for alias, _, voice in pairs}


def _models(value: object) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in _words(value):
        name, equals, model = word.partition("=")
        name, model = (name.strip(), model.strip()) if equals else (_named(word), word)
        if not name or not model:
            raise ValueError("a model, or NAME=MODEL such as fast=small")
        if name in found:
            raise ValueError(f"models of different names; {name!r} is given twice")
        found[name] = model
    return found


def _port(value: object) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError("a number from 0 to 65535")
    return int(text)
