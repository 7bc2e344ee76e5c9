"""`chatterbox-vllm serve`: its options, and the command itself over real HTTP with a real model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args, get_type_hints

import httpx
import openai
import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.streams import encode_whole, pcm16
from chatterbox_vllm.cli.arguments import setting_type
from chatterbox_vllm.cli.serve import common_quantization, server_options
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.settings import SERVER, Setting
from tests.fake_server import a_clip, eventually

TEXT = "One. Two. Three."


def test_options_go_before_variables_and_these_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = server_options({})
    assert (plain.host, plain.port, plain.max_text, plain.idle_seconds) == ("127.0.0.1", 8000, 4096, None)
    monkeypatch.setenv("CHATTERBOX_HOST", "0.0.0.0")
    monkeypatch.setenv("CHATTERBOX_API_KEYS", "correct-horse, battery-staple,")
    monkeypatch.setenv("CHATTERBOX_PORT", "9000")
    monkeypatch.setenv("CHATTERBOX_IDLE_SECONDS", "90")
    monkeypatch.setenv("CHATTERBOX_CORS_ORIGINS", "https://a.example,loopback")
    monkeypatch.setenv("CHATTERBOX_VOICE_ALIASES", "alloy=anna,echo=bert")
    monkeypatch.setenv("CHATTERBOX_LOG_JSON", "yes")
    found = server_options({"port": 9001, "max_text": 10})
    assert (found.host, found.port, found.max_text, found.idle_seconds) == ("0.0.0.0", 9001, 10, 90.0)
    assert found.api_keys == ("correct-horse", "battery-staple") and found.log_json
    assert found.cors_origins == ("https://a.example", "loopback")
    assert found.voice_aliases == {"alloy": "anna", "echo": "bert"}


@pytest.mark.parametrize("setting", SERVER, ids=lambda setting: setting.keyword)
def test_numbers_and_flags_are_read_as_such(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    of_field = get_type_hints(ServerOptions)[setting.keyword]
    wanted = {int, float, bool} & {of_field, *get_args(of_field)}
    assert wanted <= {setting_type(setting)}
    if setting.variable and wanted & {int, float}:
        monkeypatch.setenv(setting.variable, "64")
        assert getattr(server_options({}), setting.keyword) == 64


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("PORT", "70000", "CHATTERBOX_PORT must be a number from 0 to 65535, not '70000'"),
        ("MAX_TEXT", "none", "CHATTERBOX_MAX_TEXT must be a positive integer"),
        ("STALL_SECONDS", "-1", "CHATTERBOX_STALL_SECONDS must be a number above 0"),
        ("VOICE_ALIASES", "alloy", "CHATTERBOX_VOICE_ALIASES must be ALIAS=VOICE"),
        ("HOST", "0.0.0.0", "takes a key"),
    ],
)
def test_variables_are_checked(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(f"CHATTERBOX_{name}", value)
    with pytest.raises(ConfigError, match=message):
        server_options({})


@pytest.mark.parametrize(
    "enabled, bits, expected",
    [
        (None, None, {}),
        ("true", None, {"use_quantization": True, "quantization_method": "bnb-4bit"}),
        ("true", "8", {"use_quantization": True, "quantization_method": "bnb-8bit"}),
        (None, "4", {"use_quantization": True, "quantization_method": "bnb-4bit"}),
        ("false", "8", {"use_quantization": False}),
    ],
)
def test_variables_of_other_servers(
    monkeypatch: pytest.MonkeyPatch, enabled: str | None, bits: str | None, expected: dict[str, object]
) -> None:
    for name, value in (("QUANTIZATION_ENABLED", enabled), ("QUANTIZATION_BITS", bits)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert common_quantization({}) == expected
    for own in ({"quantization_method": "awq"}, {"use_quantization": False}, {"quantization_strategy": "nf4"}):
        assert common_quantization(own) == {}
    monkeypatch.setenv("CHATTERBOX_USE_QUANTIZATION", "true")
    assert common_quantization({}) == {}


def test_other_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZATION_BITS", "16")
    with pytest.raises(ConfigError, match="QUANTIZATION_BITS must be 4 or 8, not '16'"):
        common_quantization({})


@contextmanager
def served(voices: Path, *models: str | Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, running and ready, and its address.

    Args:
        models: babble where none is named.
        variables: of the environment.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = map(str, models or ("babble",))
    words = ["serve", "--model", *named, "--device", "cpu", "--port", str(port), "--no-watermark"]
    environment = os.environ | {"CHATTERBOX_VOICES": str(voices)} | variables
    process = subprocess.Popen(
        [sys.executable, "-m", "chatterbox_vllm", *words], stderr=subprocess.PIPE, text=True, env=environment
    )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: process.poll() is not None or _answers(url), 400)
        assert process.poll() is None, process.communicate()[1]
        yield process, url
    finally:
        process.kill()
        process.communicate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_starts_again_after_a_kill_and_ends_in_order(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    body = {"model": "tts-1", "voice": "alloy", "input": TEXT, "extra_body": {"seed": 1}}
    with (
        served(tmp_path) as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        client.audio.speech.with_streaming_response.create(**body, response_format="pcm") as answer,
    ):
        next(answer.iter_bytes(64))
        process.kill()
    with served(tmp_path) as (process, url), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        whole = client.audio.speech.create(**body, response_format="wav")
        wave, rate = decode_audio(whole.content)
        assert rate == 24_000 and len(wave) > 0.5 * rate
        with client.audio.speech.with_streaming_response.create(**body, response_format="pcm") as answer:
            parts = list(answer.iter_bytes())
        assert sum(map(len, parts)) == 2 * len(wave)
        health = httpx.get(f"{url}/health").json()
        assert health["quantization"]["t3"]["method"] is None and health["queue"]["completed"] == 2
        assert "chatterbox_kv_blocks 0.0" in httpx.get(f"{url}/metrics").text

        clip = a_clip()
        consent = client.audio.voice_consents.create(name="Anna", language="en", recording=("a.wav", clip))
        voice = client.audio.voices.create(audio_sample=("a.wav", clip), consent=consent.id, name="Anna")
        named = client.audio.speech.create(**body | {"voice": "Anna"}, response_format="wav")
        same = client.audio.speech.create(**body | {"voice": {"id": voice.id}}, response_format="wav")
        assert named.content == same.content != whole.content

        # A long answer is on its way when the server is told to end.
        long = body | {"input": 4 * TEXT}
        with client.audio.speech.with_streaming_response.create(**long, response_format="pcm") as answer:
            parts = answer.iter_bytes(4096)
            got = len(next(parts))
            process.send_signal(signal.SIGTERM)
            got += sum(map(len, parts))
        assert got > 2 * len(wave)
        assert process.wait(60) == 0


def test_two_models_by_turns_where_memory_is_for_one(tmp_path: Path) -> None:
    """Each speaks as it would alone, converts as well, and gives its room back to the other."""
    pytest.importorskip("vllm")
    from chatterbox_vllm import ChatterboxTTS, ChatterboxVC

    body = {"input": TEXT, "seed": 3, "response_format": "pcm"}
    files = {"file": ("clip.wav", a_clip())}
    room = {"CHATTERBOX_MODELS_MEMORY_GB": "3", "CHATTERBOX_MAX_BATCH_SIZE": "1"}
    with (
        served(tmp_path, "small", "babbler=babble", **room) as (_, url),
        httpx.Client(base_url=f"{url}/v1", timeout=120) as client,
    ):
        said: dict[str, list[bytes]] = {"small": [], "babbler": []}
        for model in ("small", "babbler", "small", "babbler"):
            answer = client.post("/audio/speech", json=body | {"model": model, "stream": False})
            assert answer.status_code == 200, answer.text
            said[model].append(answer.content)
            found = httpx.get(f"{url}/health").json()["models"]
            assert [name for name, each in found.items() if each["loaded"]] == [model]
            assert all(0 < each["expected_bytes"] < 3 << 30 for each in found.values())
        assert all(first == second for first, second in said.values())
        wave = {"response_format": "wav", "seed": "5", "diffusion_steps": "2"}
        converted = client.post("/audio/conversions", files=files, data=wave | {"model": "babbler"})
        assert converted.status_code == 200, converted.text
        streamed = client.post("/audio/conversions", files=files, data=wave | {"response_format": "pcm"})
        assert streamed.status_code == 200 and len(streamed.content) > 2 * 24_000
        listed = {model["id"]: model["root"] for model in client.get("/models").json()["data"]}
        assert listed["babbler"] == "babbler" and listed["small"] == listed["tts-1"] == "small"

    with ChatterboxTTS.from_pretrained("babble", "cpu", max_batch_size=1, watermark=False) as tts:
        assert pcm16(tts.generate(TEXT, seed=3)[0].numpy()) == said["babbler"][0]
    with ChatterboxVC.from_pretrained("babble", "cpu", watermark=False) as vc:
        alone = vc.generate(a_clip(), seed=5, diffusion_steps=2)[0].numpy()
    assert encode_whole("wav", alone, 24_000) == converted.content
