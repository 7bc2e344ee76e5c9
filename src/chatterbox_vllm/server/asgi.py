"""What the layers around the application share: headers of a scope, and answers of their own."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from chatterbox_vllm.server.errors import ApiError

REQUEST_ID = "x-request-id"


def headers_of(scope: Scope) -> Headers:
    """The headers of a request."""
    return Headers(scope=scope)


def note(scope: Scope) -> dict[str, Any]:
    """What the log line of this request tells beside status and time; whoever knows something adds it."""
    notes: dict[str, Any] = scope.setdefault("state", {}).setdefault("note", {})
    return notes


async def refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    """Answer with an error; a WebSocket is refused before it opens."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
            return
        kind = "websocket.http"
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": f"{kind}.response.start", "status": error.status, "headers": raw})
    await send({"type": f"{kind}.response.body", "body": body, "more_body": False})
