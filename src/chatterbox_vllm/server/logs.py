"""The server's log: one line for a request, for a person or as JSON. It holds no text that users sent."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

# Ours, and uvicorn's of connections; its access log would show queries, which may hold text.
_LOGGERS = ("chatterbox_vllm", "uvicorn.error")


class _Person(logging.Formatter):
    """`12:34:56 POST /v1/audio/speech 200 0.412 s …`"""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        facts = getattr(record, "facts", None)
        if facts is None:
            return f"{clock} {record.levelname.lower()}: {super().format(record)}"
        head = "{method} {path} {status} {seconds:.3f} s".format(**facts)
        rest = (f"{name}={facts[name]}" for name in facts if name not in ("method", "path", "status", "seconds"))
        return f"{clock} {head} {' '.join(rest)}"


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
        facts = getattr(record, "facts", None)
        entry |= {"message": super().format(record)} if facts is None else facts
        return json.dumps(entry, ensure_ascii=False, default=str)


def start_logging(as_json: bool, quiet: bool) -> None:
    """Send what is logged to standard error, and nothing but errors where `quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Person())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        own = name == "chatterbox_vllm"
        logger.setLevel(logging.ERROR if quiet else logging.INFO if own else logging.WARNING)
