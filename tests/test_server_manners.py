"""A server that is left running: full, idle, told to end, with an engine that dies; and what it logs."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.server import keeper
from chatterbox_vllm.server.logs import _Json, _Person
from tests.fake_server import FakeEngine, eventually, running

TEXT = "Good manners cost nothing, and they are worth a great deal."
BODY = {"input": TEXT, "response_format": "pcm"}


def test_a_full_server_says_when_to_come_again(tmp_path: Path) -> None:
    with running(tmp_path, max_requests=2) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        server.engine.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(client.post, "/v1/audio/speech", json=BODY) for _ in range(2)]
            eventually(lambda: server.engine.running == 2)
            for path, body in (("/v1/audio/speech", BODY), ("/tts", {"text": TEXT}), ("/v1/warmup", None)):
                answer = client.post(path, json=body)
                assert answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded"
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert int(answer.headers["retry-after-ms"]) >= 1000 and answer.headers["x-should-retry"] == "true"
            assert client.get("/health").json()["queue"]["users"] == 2
            server.engine.gate.set()
            assert [future.result().status_code for future in waiting] == [200, 200]
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200
        assert 'chatterbox_failures_total{code="rate_limit_exceeded"} 3.0' in client.get("/metrics").text


def test_a_batch_of_more_texts_than_the_server_takes_at_once_is_spoken(tmp_path: Path) -> None:
    with running(tmp_path, max_requests=4) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        server.engine.gate.clear()
        with ThreadPoolExecutor() as pool:
            batch = {"items": [BODY] * 9, "response_format": "pcm"}
            answer = pool.submit(client.post, "/v1/audio/speech/batch", json=batch)
            eventually(lambda: server.engine.running == 2)
            alone = pool.submit(client.post, "/v1/audio/speech", json=BODY)
            eventually(lambda: server.engine.running == 3)
            server.engine.gate.set()
            assert answer.result().json()["succeeded"] == 9 and alone.result().status_code == 200


def test_options_that_name_no_voice_are_refused_at_the_start(tmp_path: Path) -> None:
    for options in ({"default_voice": "nobody"}, {"voice_aliases": {"alloy": "nobody"}}):
        with pytest.raises(ConfigError, match="cannot be 'nobody'.*there is no voice"), running(tmp_path, **options):
            pass
    with running(tmp_path, default_voice="bert") as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200
        assert server.engine.requests[-1].voice is server.engine.tts.named["bert"]


def test_an_engine_that_dies_is_replaced(tmp_path: Path) -> None:
    go = threading.Event()

    def start() -> FakeEngine:
        if starts:
            go.wait(10)
        starts.append(1)
        return FakeEngine()

    starts: list[int] = []
    with running(tmp_path, start) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        first = server.engine
        first.gate.clear()
        with ThreadPoolExecutor(3) as pool:
            caught = pool.submit(client.post, "/v1/audio/speech", json=BODY | {"response_format": "wav"})
            eventually(lambda: first.running == 1)
            died = client.post("/v1/audio/speech", json={"input": "die"})
            first.gate.set()
            for answer in (died, caught.result()):
                assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_failed"
                assert int(answer.headers["retry-after"]) >= 1
            health = client.get("/health")
            assert health.status_code == 503 and health.json()["status"] == "loading" and not health.json()["ready"]
            assert "ZeroDivisionError" in health.json()["failure"] and client.get("/health/live").status_code == 200
            waiting = pool.submit(client.post, "/v1/audio/speech", json=BODY)  # is spoken when there is a model again
            go.set()
            assert waiting.result().status_code == 200
        assert first.closed and first.tts.shut_down and len(server.engines) == 2
        health = client.get("/health")
        assert health.status_code == 200 and health.json()["loads"] == 1 and health.json()["failure"] is None


def test_an_engine_that_cannot_be_had_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.05)

    def start() -> FakeEngine:
        if starts:
            raise DeviceError("the card is gone")
        starts.append(1)
        return FakeEngine()

    starts: list[int] = []
    with running(tmp_path, start) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        assert client.post("/v1/audio/speech", json={"input": "die"}).status_code == 503
        server.thread.join(10)
        assert not server.thread.is_alive() and server.server.gave_up


def test_an_idle_model_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, idle_seconds=0.3) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        first = server.engine
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200
        eventually(lambda: first.tts.shut_down)
        eventually(lambda: client.get("/health").json()["status"] == "asleep")
        health = client.get("/health")
        assert health.status_code == 200 and health.json()["ready"] and health.json()["quantization"] is None
        assert {"anna", "bert"} <= {voice["id"] for voice in client.get("/v1/audio/voices").json()["voices"]}
        assert client.post("/v1/audio/speech", json=BODY | {"voice": "anna"}).status_code == 200
        assert len(server.engines) == 2 and server.engine.requests
        server.engine.pause = 0.1  # a request longer than the idle time keeps the model
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200
        assert len(server.engines) == 2


def test_told_to_end_it_finishes_what_it_has_begun(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        server.engine.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(client.post, "/v1/audio/speech", json=BODY)
            eventually(lambda: server.engine.running == 1)
            server.server.handle_exit(15, None)
            time.sleep(0.4)
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url + "/health", timeout=2)
            server.engine.gate.set()
            assert len(begun.result().content) > 10_000
        server.thread.join(10)
        assert not server.thread.is_alive() and server.engine.closed and server.engine.tts.shut_down


def test_told_to_end_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running(tmp_path, drain_seconds=0.5) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        server.engine.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            begun = pool.submit(client.post, "/v1/audio/speech", json=BODY)
            waiting = pool.submit(client.post, "/v1/audio/speech", json=BODY | {"stream": False})
            eventually(lambda: server.engine.running == 2)
            server.server.handle_exit(15, None)
            with pytest.raises(httpx.TransportError):
                begun.result()
            answer = waiting.result()  # nothing of it had been sent
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "ending"
            assert answer.headers["retry-after"] and answer.headers["x-request-id"]
        server.thread.join(10)
        assert not server.thread.is_alive() and server.engine.running == 0


def test_a_request_that_takes_too_long_ends(tmp_path: Path) -> None:
    with running(tmp_path, max_seconds=0.4) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        server.engine.gate.clear()
        answer = client.post("/v1/audio/speech", json=BODY | {"response_format": "wav"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with pytest.raises(httpx.TransportError):  # it had begun
            client.post("/v1/audio/speech", json=BODY)
        eventually(lambda: server.engine.running == 0)
        assert server.engine.dropped == 2


def test_the_log_tells_of_requests_and_not_what_was_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        client.post("/v1/audio/speech", json=BODY | {"seed": 3})
        client.get("/tts-stream", params={"text": TEXT})
        client.post("/v1/audio/speech", json={"input": "fail " + TEXT, "speed": 99})
        number = client.get("/v1/nothing").headers["x-request-id"]
        eventually(lambda: number in str([getattr(r, "facts", {}) for r in caplog.records]))
    records = [record for record in caplog.records if hasattr(record, "facts")]
    for form in (_Person(), _Json()):
        lines = [form.format(record) for record in records]
        assert len(lines) == 4 and TEXT not in "\n".join(lines) and "text=" not in "\n".join(lines)
        assert number in lines[-1]
    entry: dict[str, Any] = json.loads(_Json().format(records[0]))
    assert entry["path"] == "/v1/audio/speech" and entry["status"] == 200 and entry["seed"] == 3
    assert entry["characters"] == len(TEXT) and entry["bytes"] > 10_000 and entry["request"].startswith("req_")
    assert TEXT not in caplog.text
