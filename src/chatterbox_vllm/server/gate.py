"""Who may come in: header size, host, origin, key. It also answers OPTIONS, and HEAD where there is GET."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatterbox_vllm.server.asgi import REQUEST_ID, headers_of, refuse
from chatterbox_vllm.server.assets import assets
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.options import ServerOptions, is_loopback

MOST_HEADER_BYTES = 16 << 10
# What opens without a key: it tells nothing that is anybody's, and probes have no key; the page asks its user for one.
OPEN_PATHS = frozenset({"/", "/v1", "/v1/", "/health", "/health/live", "/health/ready", "/docs", "/openapi.json"})
OPEN_PATHS |= {"/page/facts.json", *(f"/page/{name}" for name in assets())}
# Browsers cannot set headers of a WebSocket; OpenAI's clients then send the key as a subprotocol.
KEY_PROTOCOL = "openai-insecure-api-key."
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_PREFLIGHT_SECONDS = 600
_EXPOSED = f"{REQUEST_ID}, retry-after, retry-after-ms, x-chatterbox-seed, x-chatterbox-finish-reason, " + (
    "x-chatterbox-duration, x-chatterbox-ignored"
)


class Gate:
    """The outer door of the application.

    Args:
        routes: for OPTIONS and HEAD.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, routes: Sequence[BaseRoute]):
        self.app = app
        self._routes = routes
        self._keys = [_digest(key) for key in options.api_keys]
        self._origins = frozenset(options.cors_origins)
        # Without a key, a page of any site could call us under a name of its own that leads to this machine.
        self._local_hosts_only = options.keyless and is_loopback(options.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        origin = headers_of(scope).get("origin")
        if origin is not None and self._allows(origin, scope):
            send = _with_origin(send, "*" if "*" in self._origins else origin)
        try:
            self._check(scope, origin)
        except ApiError as error:
            await refuse(scope, receive, send, error)
            return
        if scope["type"] == "websocket" and not self._is_taken(scope):
            await refuse(scope, receive, send, ApiError(404, f"{scope['path']} is no WebSocket", code="not_found"))
            return
        if scope["type"] == "http":
            if scope["method"] == "OPTIONS":
                await self._options(scope, receive, send)
                return
            if scope["method"] == "HEAD" and not self._is_taken(scope) and "GET" in methods_of(self._routes, scope):
                scope["method"] = "GET"
                send = _without_body(send)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, origin: str | None) -> None:
        """Raises ApiError for whom the door stays closed."""
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise ApiError(431, f"the headers have more than {MOST_HEADER_BYTES} bytes", code="headers_too_large")
        headers = headers_of(scope)
        if self._local_hosts_only and not is_loopback(_host_name(headers.get("host", ""))):
            raise ApiError(
                403,
                f"this server is for {headers.get('host', '')!r} only with a key: call it as localhost, or set a key",
                code="wrong_host",
            )
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        preflight = scope["type"] == "http" and _is_preflight(scope)
        if origin is not None and (changes or preflight) and not self._allows(origin, scope):
            raise ApiError(
                403, f"pages of {origin!r} may not call this server; allow them in cors_origins", code="wrong_origin"
            )
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            return
        if self._keys and scope["path"] not in OPEN_PATHS and not self._opens(_key_of(scope)):
            given = "this key is not valid" if _key_of(scope) else "a key is needed: send Authorization: Bearer KEY"
            raise ApiError(401, given, code="invalid_api_key")

    def _opens(self, key: str) -> bool:
        """Whether a key is one of ours; takes as long for every key."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, known) for known in self._keys) > 0  # all are compared

    def _allows(self, origin: str, scope: Scope) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:  # such as "http://["
            return False
        same = netloc != "" and netloc == headers_of(scope).get("host")
        return same or ("loopback" in self._origins and is_loopback(_host_name(netloc)))

    def _is_taken(self, scope: Scope) -> bool:
        """Whether a route is for this path and method, or for a WebSocket there."""
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)

    async def _options(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = methods_of(self._routes, scope)
        if not methods:
            await refuse(scope, receive, send, ApiError(404, f"there is no {scope['path']}", code="not_found"))
            return
        allowed = ", ".join(methods).encode()
        raw = [(b"allow", allowed)]
        if _is_preflight(scope):
            asked = headers_of(scope).get("access-control-request-headers", "authorization, content-type")
            raw += [
                (b"access-control-allow-methods", allowed),
                (b"access-control-allow-headers", asked.encode("latin-1")),
                (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode()),
                (b"access-control-allow-private-network", b"true"),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": raw})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def methods_of(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """The methods that a path takes; none where there is no such path."""
    fitting = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    found = {method for route in fitting for method in getattr(route, "methods", None) or ()}
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set())) if found else []


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key_of(scope: Scope) -> str:
    headers = headers_of(scope)
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    protocols = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
    return next((word.removeprefix(KEY_PROTOCOL) for word in protocols if word.startswith(KEY_PROTOCOL)), "")


def _host_name(netloc: str) -> str:
    """The host of "host:port"; nothing where it cannot be read."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers_of(scope)


def _with_headers(send: Send, added: Iterable[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


def _with_origin(send: Send, origin: str) -> Send:
    added = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED.encode()),
    ]
    return _with_headers(send, added if origin == "*" else [*added, (b"vary", b"Origin")])


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sending
