"""The files of the page at `/`, with the headers that keep it to itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline. Clips are played from data: addresses.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asks each time whether it has changed, since its address stays
}


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        tag: changes with the content.
    """

    data: bytes
    media_type: str
    tag: str

    @property
    def headers(self) -> dict[str, str]:
        """For the answer that holds it."""
        return {**_HEADERS, "etag": self.tag}


@cache
def assets() -> dict[str, Asset]:
    """All files of the page by name."""
    found = {}
    for file in resources.files("chatterbox_vllm.server").joinpath("page").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            data = file.read_bytes()
            found[file.name] = Asset(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found
