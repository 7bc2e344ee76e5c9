"""Reference clips from addresses that a request names, without letting it reach what only this machine can reach."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from chatterbox_vllm.server.errors import ApiError

_MOST_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_BLOCK = 64 << 10


def fetch_public(url: str, most: int, seconds: float) -> bytes:
    """What a public http or https address holds. It blocks: call it in a thread.

    Each name is looked up once, every address that it has must be public, and the connection goes to an address that
    was checked. Redirects are checked in the same way.

    Args:
        most: bytes.
        seconds: for all of it.

    Raises:
        ApiError: it may not or cannot be fetched.
    """
    ends = time.monotonic() + seconds
    for _ in range(_MOST_REDIRECTS + 1):
        parts = _parts(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
            raise _refused("an address must be http:// or https://, with a host and without a user's name")
        if _port(parts) != _PORTS[parts.scheme]:
            raise _refused(f"the port must be {_PORTS[parts.scheme]}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"accept": "audio/*, */*;q=0.5", "user-agent": "chatterbox-vllm"}
        try:
            with _connected(parts.scheme, parts.hostname, ends) as connection:
                connection.request("GET", target, headers=headers)
                with connection.getresponse() as response:
                    if response.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, response.getheader("location", ""))
                        continue
                    if response.status != 200:
                        raise _refused(f"the address answered with status {response.status}")
                    return _read(response, most, ends)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(f"the address could not be read ({type(error).__name__})") from None
    raise _refused(f"the address redirects more than {_MOST_REDIRECTS} times")


def public_address(host: str, port: int) -> str:
    """An address of a host all of whose addresses are public.

    Raises:
        ApiError: one is not, or there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _refused(f"there is no host {host!r}") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _refused(f"{host!r} is not a public host")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public network; addresses that wrap another are judged by it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@contextlib.contextmanager
def _connected(scheme: str, host: str, ends: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to an address that was checked, under the host's own name; it is cut off when the time is over."""
    port = _PORTS[scheme]
    address = public_address(host, port)
    left = max(0.1, ends - time.monotonic())
    connection = http.client.HTTPConnection(host, port)
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        try:
            connection.sock = plain = socket.create_connection((address, port), timeout=left)
            stack.enter_context(_cut_off_after(left, plain))
            if scheme == "https":
                connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except OSError as error:
            raise _refused(f"{host!r} cannot be reached ({type(error).__name__})") from None
        yield connection


@contextlib.contextmanager
def _cut_off_after(seconds: float, connected: socket.socket) -> Iterator[None]:
    """Within, a connection is shut down once its time is over: a socket's timeout is of each byte that it waits for."""

    def cut_off() -> None:
        with contextlib.suppress(OSError):  # the other side was faster
            handle.shutdown(socket.SHUT_RDWR)

    with connected.dup() as handle:  # TLS takes the socket itself over
        timer = threading.Timer(seconds, cut_off)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _read(response: http.client.HTTPResponse, most: int, ends: float) -> bytes:
    data = bytearray()
    while block := response.read1(_BLOCK):
        data += block
        if len(data) > most:
            raise _refused(f"the clip has more than {most} bytes")
    if time.monotonic() > ends:  # perhaps it was cut off
        raise _refused("the clip took too long to come")
    return bytes(data)


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as "http://["
        raise _refused("the address cannot be read") from None


def _port(parts: Any) -> int:
    try:
        return int(parts.port or _PORTS[parts.scheme])
    except ValueError:
        return -1


def _refused(reason: str) -> ApiError:
    return ApiError(400, f"ref_audio: {reason}", "ref_audio", "unusable_address")
