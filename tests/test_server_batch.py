"""Several texts in one request over HTTP: each has its answer, and none harms another."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import pytest

from tests.fake_server import RATE, SECONDS_PER_CHARACTER, Running, a_clip, running, seconds_of

TEXT = "It is a truth universally acknowledged, that servers are spoken to."
SECONDS = len(TEXT) * SECONDS_PER_CHARACTER


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices")) as found:
        yield found


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def test_batch(http: httpx.Client) -> None:
    items = [{"input": TEXT}, {"input": "mute"}, {"input": TEXT, "response_format": "pcm", "voice": "anna", "seed": 4}]
    answer = http.post("/v1/audio/speech/batch", json={"items": items, "response_format": "wav", "voice": "bert"})
    body = answer.json()
    assert (body["total"], body["succeeded"], body["failed"]) == (3, 2, 1)
    first, second, third = body["results"]
    assert first["media_type"] == "audio/wav" and seconds_of(base64.b64decode(first["audio_data"])) > 1
    assert second["error"]["code"] == "invalid_value" and second["audio_data"] is None
    assert third["seed"] == 4 and len(base64.b64decode(third["audio_data"])) == 2 * round(SECONDS * RATE)
    assert http.post("/v1/audio/speech/batch", json={"items": []}).status_code == 400
    assert "x-chatterbox-ignored" not in answer.headers
    items = [{"input": TEXT, "backend": "x"}, {"input": TEXT, "norm_loudness": True}]
    answer = http.post("/v1/audio/speech/batch", json={"items": items, "stream_format": "sse"})
    assert answer.json()["succeeded"] == 2
    assert answer.headers["x-chatterbox-ignored"] == "stream_format, backend, norm_loudness"
    refused = http.post("/v1/audio/speech/batch", json={"items": [{"input": TEXT}, {"input": TEXT, "temperature": 9}]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "items.1.temperature"


def test_what_the_server_itself_fails_of_is_one_items_alone(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = server.engine.wave
    monkeypatch.setattr(server.engine, "wave", lambda request: 1 / 0 if request.text == "bug" else wave(request))
    answer = http.post("/v1/audio/speech/batch", json={"items": [{"input": "bug"}, {"input": TEXT}]})
    assert answer.status_code == 200 and (answer.json()["succeeded"], answer.json()["failed"]) == (1, 1)
    assert answer.json()["results"][0]["error"]["code"] == "internal_error"


def test_an_items_voice_is_spoken_and_not_the_batchs_clip(http: httpx.Client, server: Running) -> None:
    clip = base64.b64encode(a_clip()).decode()
    body = {"items": [{"input": "One."}, {"input": "Two.", "voice": "anna"}], "ref_audio": clip}
    assert http.post("/v1/audio/speech/batch", json=body).json()["succeeded"] == 2
    spoken = {request.text: request.voice for request in server.engine.requests[-2:]}
    named = server.engine.tts.named
    assert spoken["Two."] is named["anna"] and spoken["One."] is named["clip"]
