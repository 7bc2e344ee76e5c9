"""What clients of speech servers send, replayed over real HTTP, and what each looks at in the answer."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest

from chatterbox_vllm.server.names import OPENAI_VOICES
from chatterbox_vllm.voices.library import VoiceLibrary
from tests.fake_server import RATE, SECONDS_PER_CHARACTER, Running, a_clip, running, seconds_of
from tests.fakes import a_voice

TEXT = "It is a truth universally acknowledged, that servers are spoken to."
SECONDS = len(TEXT) * SECONDS_PER_CHARACTER


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), voice_aliases={"narrator": "bert"}) as found:
        yield found


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def test_livekit(http: httpx.Client) -> None:
    """Warms up with the base URL; events of mp3, but plain mp3 for tts-1; branches on Content-Type."""
    assert http.get("/v1/").status_code < 500
    body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": "ash", "response_format": "mp3", "speed": 1.0}
    headers = {"Authorization": "Bearer none", "Accept": "*/*"}
    answer = http.post("/v1/audio/speech", json={**body, "stream_format": "sse", "instructions": ""}, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    audio = b"".join(base64.b64decode(e["audio"]) for e in lines if e["type"] == "speech.audio.delta")
    assert seconds_of(audio) == pytest.approx(SECONDS, abs=0.1) and lines[-1]["type"] == "speech.audio.done"
    plain = http.post("/v1/audio/speech", json={**body, "model": "tts-1"}, headers=headers)
    assert plain.headers["content-type"] == "audio/mpeg"


def test_counting_a_texts_tokens_stops_no_stream(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[threading.Thread] = []
    monkeypatch.setattr(
        server.engine.tts, "count_text_tokens", lambda *_: counted.append(threading.current_thread()) or 7
    )
    answer = http.post("/v1/audio/speech", json={"input": TEXT, "stream_format": "sse"})
    assert '"input_tokens": 7' in answer.text
    assert counted and server.thread not in counted, "the event loop does the tokenizer's work"


def test_pipecat(http: httpx.Client) -> None:
    """pcm of 24 kHz by any of OpenAI's voices, read in pieces of half a second."""
    for voice in OPENAI_VOICES:
        body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": voice, "response_format": "pcm"}
        with http.stream("POST", "/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"] == "audio/pcm"
            pieces = list(answer.iter_bytes(RATE))
        assert sum(map(len, pieces)) == 2 * round(SECONDS * RATE)


def test_open_webui(http: httpx.Client) -> None:
    """Base URL without /v1, the admin's extra parameters, the whole body; lists of models and voices."""
    body = {"input": TEXT, "model": "tts-1", "voice": "alloy", "response_format": "mp3", "exaggeration": 0.7, "x": 1}
    headers = {"Authorization": "Bearer sk-x", "X-OpenWebUI-User-Name": "J%C3%B6rg"}
    answer = http.post("/audio/speech", json=body, headers=headers)
    assert answer.headers["content-type"] == "audio/mpeg" and seconds_of(answer.content) > 1
    for prefix in ("", "/v1"):
        models = http.get(f"{prefix}/audio/models").json()["models"]
        assert {"id": "tts-1"}.items() <= next(m for m in models if m["id"] == "tts-1").items()
        assert [m["id"] for m in http.get(f"{prefix}/models").json()["data"]] == [m["id"] for m in models]
        voices = http.get(f"{prefix}/audio/voices").json()["voices"]
        assert {"anna", "bert", "default", "narrator", *OPENAI_VOICES} <= {v["id"] for v in voices}
        assert all(v["id"] and v["name"] for v in voices)


def test_librechat(http: httpx.Client, server: Running) -> None:
    """No format: mp3 is expected. Unknown fields, and no voice."""
    answer = http.post("/v1/audio/speech", json={"input": TEXT, "model": "tts-1", "backend": "openai", "": 1})
    assert answer.headers["content-type"] == "audio/mpeg" and seconds_of(answer.content) > 1
    assert answer.headers["x-chatterbox-ignored"] == "backend, ?"
    assert server.engine.requests[-1].voice is server.engine.tts.conds


def test_home_assistant(http: httpx.Client) -> None:
    """openai_tts needs a kilobyte to begin with; its extra JSON is merged in."""
    body = {"model": "tts-1-hd", "input": TEXT, "voice": "shimmer", "speed": 1.0, "response_format": "mp3"}
    with http.stream("POST", "/v1/audio/speech", json={**body, "cfg_weight": 0.3}) as answer:
        assert len(next(answer.iter_bytes(1024))) == 1024
    # Its list of voices, and its check of the key: an empty text, which is refused for what it is.
    listed = http.get("/v1/audio/voices", params={"limit": 100}, headers={"User-Agent": "HomeAssistant-OpenAI-TTS"})
    assert listed.status_code == 200 and {"id": "anna", "name": "anna"}.items() <= listed.json()["voices"][2].items()
    assert http.post("/v1/audio/speech", json={**body, "input": ""}).status_code == 400
    for form in ("opus", "aac", "flac", "wav", "pcm"):
        answer = http.post("/v1/audio/speech", json={**body, "response_format": form, "language": "en"})
        assert answer.status_code == 200 and answer.content


def test_wyoming_openai(http: httpx.Client) -> None:
    """Tells servers apart by probes that must fail here; wav, with its whole header in the first read."""
    for path in ("/v1/test", "/test", "/v1/readyz", "/readyz"):
        assert http.get(path).status_code == 404
    assert http.get("/health").text != "OK"
    body = {"input": TEXT, "model": "tts-1", "voice": "nova", "response_format": "wav", "stream_format": "audio"}
    with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        first, *others = list(answer.iter_raw())
    rest = b"".join(others)
    assert len(first) >= 44 and first[:4] == b"RIFF" and struct.unpack_from("<I", first, 40)[0] == 0xFFFFFFFF
    assert len(first) + len(rest) == 44 + 2 * round(SECONDS * RATE)
    whole = http.post("/v1/audio/speech", json={k: v for k, v in body.items() if k != "stream_format"})
    assert struct.unpack_from("<I", whole.content, 40)[0] == len(whole.content) - 44 == 2 * round(SECONDS * RATE)
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert float(whole.headers["x-chatterbox-duration"]) == pytest.approx(SECONDS, abs=0.001)


def test_sillytavern(http: httpx.Client, server: Running) -> None:
    """Its Chatterbox provider, from a page of this machine."""
    page = {"Origin": "http://127.0.0.1:8000"}
    assert http.get("/", headers=page).is_success
    voices = http.get("/get_predefined_voices", headers=page).json()
    assert {"display_name", "filename", "voice_id"} <= set(voices[0])
    assert http.get("/get_reference_files", headers=page).json() == []
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "cache-control,content-type",
    }
    allowed = http.options("/tts", headers=page | preflight)
    assert allowed.status_code == 204 and "POST" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-allow-headers"] == "cache-control,content-type"
    assert allowed.headers["access-control-allow-origin"] == page["Origin"]
    body = {
        "text": TEXT,
        "voice_mode": "predefined",
        "predefined_voice_id": "bert",
        "temperature": 0.8,
        "exaggeration": 0.5,
        "cfg_weight": 0.5,
        "seed": 12345,
        "speed_factor": 1.5,
        "language": "en",
        "split_text": True,
        "chunk_size": 120,
        "output_format": "wav",
    }
    answer = http.post("/tts", json=body, headers=page)
    assert answer.headers["access-control-allow-origin"] == page["Origin"]
    assert answer.headers["content-type"] == "audio/wav"
    assert seconds_of(answer.content) == pytest.approx(SECONDS / 1.5, rel=0.1)
    assert server.engine.requests[-1].voice is server.engine.tts.named["bert"]
    query = {k: str(v) for k, v in body.items() if k not in ("split_text", "chunk_size")} | {
        "predefined_voice_id": "S1",
        "seed": "-1",
        "speed_factor": "1",
        "output_format": "opus",
    }
    answer = http.get("/tts-stream", params=query, headers=page)
    assert answer.headers["content-type"] == "audio/ogg" and seconds_of(answer.content) == pytest.approx(
        SECONDS, abs=0.1
    )
    count = len(server.engine.requests)
    assert http.head("/tts-stream", params=query).status_code == 200 and len(server.engine.requests) == count


def test_sillytavern_through_its_own_server(http: httpx.Client) -> None:
    body = {"input": TEXT, "response_format": "mp3", "voice": "narrator", "speed": 1, "model": "tts-1"}
    assert http.post("/v1/audio/speech", json=body).headers["content-type"] == "audio/mpeg"


def test_aliases_of_the_library_are_the_servers_too(http: httpx.Client, server: Running) -> None:
    VoiceLibrary(server.voices).set_alias("the host", "anna")
    assert http.post("/v1/audio/speech", json={"input": TEXT, "voice": "the host"}).status_code == 200
    assert server.engine.requests[-1].voice is server.engine.tts.named["anna"]
    listed = {voice["id"]: voice for voice in http.get("/v1/audio/voices").json()["voices"]}
    assert listed["the host"]["speaks_as"] == "anna" and listed["narrator"]["speaks_as"] == "bert"


def test_previews_languages_and_voices_of_other_models(http: httpx.Client, server: Running) -> None:
    clip = a_clip()
    consent = http.post("/v1/audio/voice_consents", data={"name": "C", "language": "de"}, files={"recording": clip})
    form = {"name": "Clara / 1", "consent": consent.json()["id"], "languages": "de, en-US"}
    made = http.post("/v1/audio/voices", data=form, files={"audio_sample": clip}).json()
    form |= {"name": "Dora", "preview": "false", "languages": ""}
    assert http.post("/v1/audio/voices", data=form, files={"audio_sample": clip}).status_code == 200
    bad = http.post("/v1/audio/voices", data=form | {"languages": "no tag!"}, files={"audio_sample": clip})
    assert bad.status_code == 400 and "BCP 47" in bad.json()["error"]["message"]

    library = VoiceLibrary(server.voices)
    library.save("elsewhere", replace(a_voice(), codebook="of another model"))
    library.set_alias("the guest", "Clara / 1")
    listed = {voice["name"]: voice for voice in http.get("/v1/audio/voices").json()["voices"]}
    assert "elsewhere" not in listed and listed["Dora"]["preview"] is None
    clara = listed["Clara / 1"]
    assert clara["id"] == made["id"] and clara["languages"] == ["de", "en-US"] and clara["created_at"]
    for path in (clara["preview"], "/audio/voices/the guest/preview"):
        preview = http.get(path)
        assert preview.headers["content-type"] == "audio/flac" and 2.5 < seconds_of(preview.content) <= 3
    for name in ("Dora", "anna", "nobody", "..%2F..%2Fx", "alloy"):
        assert http.get(f"/v1/audio/voices/{name}/preview").status_code == 404, name
    shown = next(v for v in http.get("/get_predefined_voices").json() if v["display_name"] == "Clara / 1")
    assert shown["voice_id"] == made["id"] and shown["language"] == "de"

    path = library.get("Clara / 1").preview
    assert path is not None
    path.write_bytes(b"fLaC")
    damaged = http.get(clara["preview"])
    assert damaged.status_code == 409 and damaged.json()["error"]["code"] == "voice_unusable"


@pytest.mark.parametrize("name", ["Anna / 1", "default"])
def test_any_name_of_a_kept_voice_serves(http: httpx.Client, server: Running, name: str) -> None:
    consent = http.post("/v1/audio/voice_consents", data={"name": "x", "language": "en"}, files={"recording": a_clip()})
    form = {"name": name, "consent": consent.json()["id"]}
    assert http.post("/v1/audio/voices", data=form, files={"audio_sample": a_clip()}).status_code == 200
    kept = VoiceLibrary(server.voices).get(name)
    assert http.post("/v1/audio/speech", json={"input": TEXT, "voice": name}).status_code == 200
    assert server.engine.requests[-1].voice is server.engine.tts.named[kept.path.stem]
    address = f"/v1/audio/voices/{quote(name, safe='')}"
    assert http.get(f"{address}/preview").headers["content-type"] == "audio/flac"
    assert http.delete(address).json()["id"] == kept.id


def test_a_clip_in_the_request(http: httpx.Client, server: Running) -> None:
    clip = base64.b64encode(a_clip()).decode()
    for given in (clip, f"data:audio/wav;base64,{clip}"):
        answer = http.post("/v1/audio/speech", json={"input": TEXT, "ref_audio": given})
        assert answer.status_code == 200
        assert server.engine.requests[-1].voice is server.engine.tts.named["clip"]
    for given, code in (
        ("no base64!", "invalid_audio"),
        ("http://example.com/a.wav", "not_allowed"),
        ("AAAA", "invalid_audio"),
    ):
        answer = http.post("/v1/audio/speech", json={"input": TEXT, "ref_audio": given})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == code


def test_a_clips_loudness(http: httpx.Client) -> None:
    clip = base64.b64encode(a_clip()).decode()
    body = {"input": TEXT, "ref_audio": clip, "norm_loudness": False}
    assert "x-chatterbox-ignored" not in http.post("/v1/audio/speech", json=body).headers
    refused = http.post("/v1/audio/speech", json=body | {"norm_loudness": True})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "norm_loudness"
    del body["ref_audio"]
    assert http.post("/v1/audio/speech", json=body).headers["x-chatterbox-ignored"] == "norm_loudness"

    consent = http.post("/v1/audio/voice_consents", data={"name": "C", "language": "de"}, files={"recording": a_clip()})
    form = {"name": "Clara", "consent": consent.json()["id"], "norm_loudness": "true"}
    refused = http.post("/v1/audio/voices", data=form, files={"audio_sample": a_clip()})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "norm_loudness"
    form["norm_loudness"] = "false"
    assert http.post("/v1/audio/voices", data=form, files={"audio_sample": a_clip()}).status_code == 200


def test_every_answer_has_a_number_and_every_error_the_same_form(http: httpx.Client) -> None:
    kind = {"content-type": "application/json"}
    asked = [
        ("GET", "/v1/nothing", {}, 404),
        ("PUT", "/v1/audio/speech", {}, 405),
        ("POST", "/v1/audio/speech", {"content": b"{", "headers": kind}, 400),
        ("POST", "/v1/audio/speech", {"content": b'"text"', "headers": kind}, 400),
        (
            "POST",
            "/v1/audio/speech",
            {"content": b'{"input": NaN}', "headers": kind},
            400,
        ),
        ("POST", "/v1/audio/speech", {"content": b"\xff\xfe", "headers": kind}, 400),
        ("POST", "/v1/audio/speech", {"json": {"input": TEXT, "speed": "fast"}}, 400),
        ("POST", "/v1/audio/speech", {"content": b'{"input": "\\ud800"}', "headers": kind}, 400),
        ("POST", "/v1/audio/speech", {"json": {"input": TEXT, "voice": {"id": ""}}}, 400),
        ("POST", "/v1/audio/speech", {"json": {"input": TEXT, "stream": False, "stream_format": "sse"}}, 400),
        ("POST", "/v1/audio/voices", {"data": {"name": "x"}}, 400),
        ("GET", "/v1/audio/voice_consents?limit=0", {}, 400),
        ("GET", "/v1/audio/voice_consents?after=cons_x", {}, 400),
        ("DELETE", "/v1/audio/voices/..%2F..%2Fetc%2Fpasswd", {}, 404),
    ]
    numbers = set()
    for method, path, rest, status in asked:
        answer = http.request(method, path, **rest)
        assert answer.status_code == status, (path, answer.text)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], path
        numbers.add(answer.headers["x-request-id"])
    assert len(numbers) == len(asked)


@pytest.mark.parametrize("voice", [5, [], {}, {"id": ""}, {"id": 5}])
def test_a_voice_that_is_none_is_told_by_its_field(http: httpx.Client, voice: object) -> None:
    one = http.post("/v1/audio/speech", json={"input": TEXT, "voice": voice}).json()["error"]
    many = http.post("/v1/audio/speech/batch", json={"items": [{"input": TEXT, "voice": voice}]}).json()["error"]
    assert one["param"] == "voice" and many["param"] == "items.0.voice" and "an object with its id" in one["message"]


def test_a_body_that_is_no_json_is_told_what_to_be(http: httpx.Client) -> None:
    body = json.dumps({"input": TEXT}).encode()
    for sent in ({"content": body}, {"data": {"input": TEXT}}, {"json": [TEXT]}, {}):
        answer = http.post("/v1/audio/speech", **sent)
        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_accept_is_never_refused_and_options_and_head_are_answered(http: httpx.Client) -> None:
    body = {"input": TEXT}
    for accept in ("application/octet-stream", "text/html", "image/png;q=0.1"):
        assert http.post("/v1/audio/speech", json=body, headers={"accept": accept}).status_code == 200
    for path in ("/v1/models", "/health", "/v1/audio/voices", "/", "/openapi.json", "/metrics"):
        head, get = http.head(path), http.get(path)
        assert head.status_code == get.status_code == 200 and not head.content
        assert head.headers["content-type"] == get.headers["content-type"]
        assert "GET" in http.options(path).headers["allow"] and "HEAD" in http.options(path).headers["allow"]
    assert http.options("/v1/audio/speech").headers["allow"] == "OPTIONS, POST"
    assert http.options("/v1/nothing").status_code == 404
    assert http.head("/v1/audio/speech").status_code == 405
    for path in ("/v1/audio/voice_consents", "/v1/models"):
        assert http.put(path).headers["allow"] == http.options(path).headers["allow"]


def test_the_page_of_the_description_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html") and "http" not in page.text
    for told in (
        "POST /v1/audio/speech",
        "response_format",
        "mp3, opus, aac, flac, wav, pcm",
        "0.25 to 4",
        "audio_sample",
    ):
        assert told in page.text, told


def test_health_metrics_and_warmup(http: httpx.Client) -> None:
    health = http.get("/health").json()
    assert health["status"] == "ok" and health["ready"] and health["live"] and health["device"] == "cpu"
    assert health["quantization"]["t3"]["method"] is None and health["queue"]["users"] == 0
    assert http.get("/health/ready").status_code == http.get("/health/live").status_code == 200
    assert http.post("/v1/audio/speech", json={"input": "mute"}).status_code == 400
    warm = http.post("/v1/warmup").json()
    assert warm["audio_seconds"] > 0 and warm["seconds"] < 5
    page = http.get("/metrics").text
    for name in (
        'chatterbox_requests_total{route="/v1/warmup",status="200"}',
        'chatterbox_first_audio_seconds_count{way="whole"}',
        "chatterbox_real_time_factor_bucket",
        "chatterbox_audio_seconds_total",
        "chatterbox_underruns_total",
        'chatterbox_failures_total{code="invalid_value"}',
        "chatterbox_queue",
        'chatterbox_weights_bytes{component="t3"}',
        "process_resident_memory_bytes",
    ):
        assert name in page, name
