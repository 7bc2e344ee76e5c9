"""`POST /v1/audio/conversions`: recordings and voices by upload, streams in all formats, limits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.audio.streams import STREAM_FORMATS
from chatterbox_vllm.engine.conversion import ConversionRequest
from tests.fake_server import Running, a_clip, running

PATH = "/v1/audio/conversions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), max_recording_seconds=20) as found:
        yield found


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def convert(
    client: httpx.Client, recording: bytes | None = None, clip: bytes | None = None, **data: Any
) -> httpx.Response:
    files = {"file": ("speech.wav", io.BytesIO(a_clip() if recording is None else recording))}
    if clip is not None:
        files["audio_sample"] = ("voice.wav", io.BytesIO(clip))
    return client.post(PATH, files=files, data=data)


@pytest.mark.parametrize("form", STREAM_FORMATS)
def test_every_format(http: httpx.Client, server: Running, form: str) -> None:
    answer = convert(http, voice="anna", response_format=form, seed="7")
    assert answer.status_code == 200 and answer.headers["content-type"] == STREAM_FORMATS[form].media_type
    assert answer.headers["x-chatterbox-seed"] == "7"
    request = server.engine.requests[-1]
    assert isinstance(request, ConversionRequest) and request.voice is server.engine.tts.named["anna"]
    assert request.parameters.seed == 7 and request.longest == 20 and request.deadline == 600
    if form == "pcm":
        assert len(answer.content) == 2 * 3 * 24_000
    else:
        wave, rate = decode_audio(answer.content)
        assert abs(len(wave) / rate - 3) < 0.2


def test_mp3_comes_as_it_is_made_and_wav_with_its_length(http: httpx.Client) -> None:
    assert "content-length" not in convert(http).headers
    whole = convert(http, response_format="wav")
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert whole.headers["x-chatterbox-duration"] == "3.000"
    assert "content-length" not in convert(http, response_format="wav", stream="true").headers


def test_speed(http: httpx.Client) -> None:
    assert abs(len(convert(http, response_format="pcm", speed="1.5").content) / 48_000 - 2) < 0.1


def test_the_voice_by_a_clip(http: httpx.Client, server: Running) -> None:
    answer = convert(http, clip=a_clip(), voice="anna")
    assert answer.status_code == 200 and answer.headers["x-chatterbox-ignored"] == "voice"
    assert server.engine.requests[-1].voice is server.engine.tts.named["clip"]


def test_fields_that_mean_nothing_are_named(http: httpx.Client) -> None:
    answer = convert(http, temperature="0.5", input="Hello.")
    assert answer.status_code == 200 and answer.headers["x-chatterbox-ignored"] == "temperature, input"


def test_without_v1_and_without_a_voice(http: httpx.Client, server: Running) -> None:
    answer = http.post("/audio/conversions", files={"file": ("speech.wav", a_clip())})
    assert answer.status_code == 200
    assert server.engine.requests[-1].voice is server.engine.tts.conds


@pytest.mark.parametrize(
    "change, status, message",
    [
        ({"recording": b"no audio at all"}, 400, "cannot be decoded"),
        ({"recording": b""}, 400, "the file is empty"),
        ({"clip": b"no audio at all"}, 400, "cannot be decoded"),
        ({"voice": "nobody"}, 400, "there is no voice 'nobody'"),
        ({"model": "other"}, 404, "there is no model 'other'"),
        ({"response_format": "ogg"}, 400, "response_format"),
        ({"speed": "9"}, 400, "speed"),
        ({"seed": "-1"}, 400, "seed"),
        ({"diffusion_steps": "0"}, 400, "diffusion_steps"),
    ],
)
def test_what_is_refused(http: httpx.Client, change: dict[str, Any], status: int, message: str) -> None:
    answer = convert(http, **change)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(("change", "field"), [({"recording": b"none"}, "file"), ({"clip": b"none"}, "audio_sample")])
def test_which_audio_is_meant(http: httpx.Client, change: dict[str, Any], field: str) -> None:
    error = convert(http, **change).json()["error"]
    assert error["param"] == field and error["message"].startswith("the audio: cannot be decoded")


def test_a_recording_that_is_too_long(http: httpx.Client) -> None:
    long = encode_audio(np.tile(np.linspace(-0.1, 0.1, 800, dtype=np.float32), 700), 24_000, ".flac")
    answer = convert(http, recording=long)
    assert answer.json()["error"]["param"] == "file"
    assert answer.status_code == 400 and "over the limit of 20 s" in answer.text


def test_no_recording(http: httpx.Client) -> None:
    answer = http.post(PATH, data={"voice": "anna"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "missing_required_parameter"


def test_size_and_key(tmp_path: Path) -> None:
    key = "correct-horse-battery"
    with (
        running(tmp_path, max_body_mb=0.01, api_keys=(key,)) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert convert(client).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        answer = convert(client)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"
