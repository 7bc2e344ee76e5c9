"""Who is refused and what is cut off: keys, hosts, origins, sizes, slow clients, clips and addresses that are traps."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.server import protocol, remote
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.remote import fetch_public, is_public
from tests.fake_server import Running, eventually, running

TEXT = "Who goes there?"
KEYS = ("correct-horse", "battery-staple")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        tmp_path_factory.mktemp("voices"),
        host="0.0.0.0",
        api_keys=KEYS,
        cors_origins=("https://chat.example.org",),
        max_body_mb=0.5,
        stall_seconds=0.6,
        max_connections=24,
        url_audio=True,
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, headers={"Authorization": f"Bearer {KEYS[1]}"}, timeout=10) as found:
        yield found


def test_keys(locked: Running) -> None:
    with httpx.Client(base_url=locked.url) as client:
        for given in (None, "Bearer wrong-key", "Bearer", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", "Bearer ü"):
            headers = {} if given is None else {"Authorization": given.encode()}
            for path in ("/v1/models", "/metrics", "/get_predefined_voices", "/v1/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
                assert KEYS[0] not in answer.text and answer.headers["www-authenticate"] == "Bearer"
        for key in KEYS:
            assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_requests_at_once_go_by_the_engine() -> None:
    options = ServerOptions()
    assert [options.most_requests(places) for places in (1, 4, 16, 128)] == [8, 32, 128, 256]
    assert ServerOptions(max_requests=7).most_requests(4) == 7 and options.most_requests() == 256
    with pytest.raises(ConfigError, match="max_requests"):
        ServerOptions(max_requests=0)


def test_no_key_no_network() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "speech.example.org"):
        with pytest.raises(ConfigError, match="takes a key.*CHATTERBOX_API_KEYS"):
            ServerOptions(host=host)
        assert ServerOptions(host=host, without_key=True).keyless
        assert "correct" not in repr(ServerOptions(host=host, api_keys=KEYS))
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        ServerOptions(host=host)
    with pytest.raises(ConfigError, match="8 characters"):
        ServerOptions(api_keys=("short",))
    for wrong in ({"port": 70000}, {"max_text": 0}, {"cors_origins": ("example.org",)}, {"voice_aliases": {"a": ""}}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServerOptions(**wrong)


def test_origins(client: httpx.Client) -> None:
    body = {"input": TEXT}
    for origin in ("https://evil.example", "http://localhost:3000", "null", "http://["):
        answer = client.post("/v1/audio/speech", json=body, headers={"Origin": origin})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"
        preflight = client.options(
            "/v1/audio/speech", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
        )
        assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers
        assert "access-control-allow-origin" not in client.get("/v1/models", headers={"Origin": origin}).headers
    answer = client.post("/v1/audio/speech", json=body, headers={"Origin": "https://chat.example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert "x-request-id" in answer.headers["access-control-expose-headers"] and answer.headers["vary"] == "Origin"


def test_without_a_key_only_this_machines_names_serve(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/models").status_code == 200
        for host in ("rebound.example", "rebound.example:80", "[bad", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code in (400, 403), host
        assert client.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_sizes(client: httpx.Client, locked: Running) -> None:
    too_large = b'{"input": "' + b"x" * (600 << 10) + b'"}'
    kind = {"content-type": "application/json"}
    assert client.post("/v1/audio/speech", content=too_large, headers=kind).status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(too_large), 1 << 14):
            yield too_large[start : start + (1 << 14)]

    assert client.post("/v1/audio/speech", content=pieces(), headers=kind).status_code == 413
    answer = client.get("/v1/models", headers={"X-Long": "x" * 20_000})
    assert answer.status_code == 431 and answer.json()["error"]["code"] == "headers_too_large"
    with socket.create_connection(("127.0.0.1", locked.port)) as raw:
        raw.settimeout(10)
        sent = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: "
        with pytest.raises((ConnectionError, TimeoutError)):
            raw.sendall(sent + b"x" * (1 << 20))
            while raw.recv(1 << 16):
                pass
            raise ConnectionError  # answered with an error and closed
    assert not locked.engine.running


def test_slow_clients(locked: Running) -> None:
    key = f"Authorization: Bearer {KEYS[0]}\r\n"
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\n{key}Content-Type: application/json\r\nContent-Length: 90\r\n"
    for sent, answered in (
        ("", b""),  # says nothing
        (head, b""),  # stops in its headers
        (head + "\r\n" + '{"input": ', b"HTTP/1.1 408"),  # stops in its body
    ):
        with socket.create_connection(("127.0.0.1", locked.port)) as raw:
            raw.sendall(sent.encode())
            raw.settimeout(5)
            started = time.monotonic()
            try:
                got = raw.recv(1 << 16)
            except ConnectionResetError:
                got = b""
            assert got.startswith(answered) and bool(got) == bool(answered)
            assert time.monotonic() - started < 3


def test_a_body_that_goes_on_after_the_answer_ends_nothing_but_itself(
    locked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client can read why it was refused; a trickle then does not hold the connection for ever."""
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.5)
    head = "POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n"
    for key, status in (("", b"401"), (f"Authorization: Bearer {KEYS[0]}\r\n", b"413")):
        with socket.create_connection(("127.0.0.1", locked.port)) as raw:
            raw.settimeout(5)
            raw.sendall((head + key + "\r\n").encode() + bytes(200_000))
            assert raw.recv(1 << 16).split()[1] == status
            with pytest.raises(ConnectionError):
                for _ in range(40):
                    raw.sendall(b"x")
                    time.sleep(0.1)


def test_a_client_that_takes_nothing_is_cut_off(locked: Running) -> None:
    engine = locked.engine
    dropped = engine.dropped
    text = "x" * 4000  # 80 s of audio, more than the sockets' buffers hold
    body = f'{{"input": "{text}", "response_format": "pcm"}}'
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", locked.port))
        raw.sendall((head + body).encode())
        eventually(lambda: engine.dropped == dropped + 1 and not engine.running, 10)


def test_more_connections_than_may_be_are_closed(locked: Running, client: httpx.Client) -> None:
    idle = [socket.create_connection(("127.0.0.1", locked.port)) for _ in range(40)]
    try:
        time.sleep(0.2)
        closed = 0
        for raw in idle:
            raw.setblocking(False)
            try:
                closed += raw.recv(1) == b""
            except ConnectionResetError:
                closed += 1
            except BlockingIOError:
                pass
        assert closed >= 16
    finally:
        for raw in idle:
            raw.close()
    eventually(lambda: len(locked.server.server_state.connections) < 5)
    assert client.get("/v1/models").status_code == 200


def test_clips_that_are_traps(client: httpx.Client) -> None:
    silence = b"\0" * (64 << 20)  # packs to 64 kB
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.wav", silence)
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    for clip in (bomb.getvalue(), playlist, b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\xff" * 60, b"ID3" + b"\x7f" * 4000):
        body = {"input": TEXT, "ref_audio": base64.b64encode(clip).decode()}
        answer = client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_audio", answer.text
        assert "/etc/passwd" not in answer.text


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "voice_" + "0" * 24, "x" * 200, "%2e%2e"]
)
def test_names_that_are_paths_are_names_only(client: httpx.Client, locked: Running, name: str) -> None:
    before = sorted(locked.voices.rglob("*"))
    for voice in (name, {"id": name}):
        answer = client.post("/v1/audio/speech", json={"input": TEXT, "voice": voice})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "voice_not_found"
    assert client.get("/tts-stream", params={"text": TEXT, "predefined_voice_id": name}).status_code == 400
    assert client.delete("/v1/audio/voices/" + httpx.QueryParams({"x": name}).__str__()[2:]).status_code == 404
    assert sorted(locked.voices.rglob("*")) == before


def test_only_public_addresses_are_public() -> None:
    for address in (
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "no address"),
    ):
        assert not is_public(address), address
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1:248:1893:25c8:1946")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.wav",
        "http://localhost/a.wav",
        "http://[::1]/a.wav",
        "http://2130706433/a.wav",
        "http://0x7f.1/a.wav",
        "http://169.254.169.254/latest/meta-data",
        "http://user@example.com/a.wav",
        "http://example.com:22/a.wav",
        "http://example.com:99999/a.wav",
        "http:///a.wav",
        "http://[",
        "https://nowhere.invalid/a.wav",
    ],
)
def test_addresses_of_this_machine_and_its_network_are_refused(client: httpx.Client, url: str) -> None:
    answer = client.post("/v1/audio/speech", json={"input": TEXT, "ref_audio": url})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unusable_address", answer.text


def test_redirects_and_names_that_lead_inside_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/inside":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/secret")
            elif self.path == "/loop":
                self.send_response(302)
                self.send_header("Location", "/loop")
            else:
                self.send_response(200)
            self.end_headers()
            if self.path in ("/clip", "/large"):
                self.wfile.write(b"clip" if self.path == "/clip" else b"x" * 5000)

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    look_up, connect = socket.getaddrinfo, socket.create_connection
    public = "93.184.216.34"
    names = {"public.example": [public], "rebound.example": ["127.0.0.1"], "mixed.example": [public, "10.0.0.1"]}

    def looked_up(host: str, port: int, *rest: object, **others: object) -> object:
        if host not in names:
            return look_up(host, port, *rest, **others)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    def connected(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address == (public, 80), "only what was checked may be called"
        return connect(server.server_address, timeout)

    monkeypatch.setattr(remote.socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(remote.socket, "create_connection", connected)
    try:
        assert fetch_public("http://public.example/clip", 100, 5) == b"clip"
        for path, why in (
            ("inside", "not a public host"),
            ("loop", "redirects more"),
            ("large", "more than 100 bytes"),
        ):
            with pytest.raises(ApiError, match=why) as caught:
                fetch_public(f"http://public.example/{path}", 100, 5)
            assert caught.value.status == 400
        for name in ("rebound.example", "mixed.example"):
            with pytest.raises(ApiError, match="not a public host"):
                fetch_public(f"http://{name}/clip", 100, 5)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/clip", "/inside", "/loop", "/loop", "/loop", "/loop", "/large"]


def test_an_address_that_drips_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                if self.path == "/body":
                    self.send_response(200)
                    self.end_headers()
                for _ in range(80):
                    self.wfile.write(b"a")
                    self.wfile.flush()
                    time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    connect = socket.create_connection
    monkeypatch.setattr(remote, "public_address", lambda host, port: "93.184.216.34")
    monkeypatch.setattr(remote.socket, "create_connection", lambda _, timeout: connect(server.server_address, timeout))
    try:
        for path in ("/head", "/body"):
            started = time.monotonic()
            with pytest.raises(ApiError, match="could not be read|took too long"):
                fetch_public(f"http://public.example{path}", 10_000, 0.4)
            assert time.monotonic() - started < 2
    finally:
        server.shutdown()
        server.server_close()
