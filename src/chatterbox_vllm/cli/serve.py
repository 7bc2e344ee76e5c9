"""`chatterbox-vllm serve`: a speech server for clients of OpenAI's API."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.cli.arguments import Keywords, from_settings, setting_type
from chatterbox_vllm.cli.options import load, with_model
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.settings import (
    ENGINE,
    MODEL,
    QUANTIZATION,
    QUANTIZATION_BITS,
    QUANTIZATION_ENABLED,
    QUANTIZATION_METHOD,
    SERVER,
    USE_QUANTIZATION,
    Setting,
    above_zero,
    flag,
    positive,
)

if TYPE_CHECKING:
    from chatterbox_vllm.server.options import ServerOptions

_METHODS = {"4": "bnb-4bit", "8": "bnb-8bit"}
_OF_SERVER = {setting.keyword for setting in SERVER}


@from_settings(MODEL, SERVER, ENGINE, QUANTIZATION)
def serve(*, given: Keywords, quiet: bool) -> None:
    """Serve speech over HTTP, to clients of OpenAI's API and others, until Ctrl-C or SIGTERM."""
    options = server_options(given)
    keywords = {name: value for name, value in given.items() if name not in _OF_SERVER}
    keywords = with_model(keywords | common_quantization(keywords))
    from chatterbox_vllm.server.logs import start_logging
    from chatterbox_vllm.server.run import bind

    start_logging(options.log_json, quiet)
    with bind(options.host, options.port) as socket:
        from chatterbox_vllm.engine.budgets import Limits
        from chatterbox_vllm.server.app import make_app
        from chatterbox_vllm.server.run import Server, logger
        from chatterbox_vllm.serving.async_engine import AsyncChatterbox

        limits = Limits(requests=options.max_requests)

        def start() -> AsyncChatterbox:
            return AsyncChatterbox(load(keywords), limits=limits)

        logger.info("loading the model")
        engine = start()
        servers: list[Server] = []

        def give_up() -> None:
            servers[0].give_up()

        try:
            app = make_app(start, options, _named(keywords, engine.tts.directory), engine, give_up)
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


def _named(keywords: Keywords, directory: Path) -> str:
    """What clients call the model: its name, or the last part of a path."""
    name = str(keywords.get("model") or directory.name)
    return Path(name).resolve().name if Path(name).is_dir() else name


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
    special = {"api_keys": _words, "cors_origins": _words, "voice_aliases": _aliases, "port": _port}
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


def _port(value: object) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError("a number from 0 to 65535")
    return int(text)
