"""The server's WebSockets: OpenAI's realtime protocol, and text that arrives in pieces."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.text.arriving import ArrivingText
from tests.fake_server import RATE, SECONDS_PER_CHARACTER, FakeEngine, Running, eventually, running

TEXT = "Speak this to me, please."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), max_text=600) as found:
        yield found


def opened(server: Running, path: str, **options: Any) -> ClientConnection:
    return connect(server.url.replace("http", "ws") + path, **options)


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def until(socket: ClientConnection, kind: str) -> list[Any]:
    """Messages up to the first of a kind; binary ones as bytes."""
    found: list[Any] = []
    while not found or isinstance(found[-1], bytes) or found[-1]["type"] != kind:
        message = socket.recv(timeout=10)
        found.append(message if isinstance(message, bytes) else json.loads(message))
    return found


def bytes_of(text: str) -> int:
    return 2 * round(len(text) * SECONDS_PER_CHARACTER * RATE)


@pytest.mark.parametrize("path", ["/v1/realtime?model=gpt-realtime", "/realtime"])
def test_realtime_as_open_webui_uses_it(server: Running, path: str) -> None:
    with opened(server, path, subprotocols=["realtime"]) as socket:
        assert socket.subprotocol == "realtime"
        (created,) = until(socket, "session.created")
        assert created["session"]["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24000}
        send(socket, "session.update", session={"audio": {"output": {"voice": "anna", "speed": 1.0}}})
        assert until(socket, "session.updated")[-1]["session"]["audio"]["output"]["voice"] == "anna"
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}
        send(socket, "conversation.item.create", item=item)
        until(socket, "conversation.item.done")
        send(socket, "response.create", response={"instructions": "Say it word for word."})
        created, *deltas, _, transcript, done = until(socket, "response.done")
        assert created["type"] == "response.created" and transcript["transcript"] == TEXT
        assert {event["type"] for event in deltas} == {"response.output_audio.delta"} and len(deltas) > 1
        assert sum(len(base64.b64decode(event["delta"])) for event in deltas) == bytes_of(TEXT)
        assert done["response"]["status"] == "completed" and done["response"]["usage"]["input_tokens"] == len(TEXT)
        assert server.engine.requests[-1].voice is server.engine.tts.named["anna"]


def test_realtime_answers_can_be_cancelled_and_errors_end_nothing(server: Running) -> None:
    with opened(server, "/v1/realtime") as socket:
        until(socket, "session.created")
        for event in (
            {"type": "input_audio_buffer.append"},
            {"type": "session.update"},
            {"type": "session.update", "session": {"speed": 9}},
            {"type": "session.update", "session": {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}},
            {
                "type": "session.update",
                "session": {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 8000}}}},
            },
            {"type": "session.update", "session": {"sample_rate": 8000}},
            {"type": "session.update", "session": {"response_format": "mp3"}},
            {"type": "response.create"},
            {"type": "response.create", "response": {"instructions": TEXT, "output_audio_format": "g711_ulaw"}},
            {"type": "response.create", "response": {"instructions": "x" * 601}},
            {"type": "response.create", "response": [1]},
        ):
            send(socket, event.pop("type"), **event)
            assert until(socket, "error")[-1]["error"]["type"] == "invalid_request_error"
        socket.send("no json")
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_json"
        socket.send(b"{}")
        assert "not text" in until(socket, "error")[-1]["error"]["message"]
        engine, dropped = server.engine, server.engine.dropped
        engine.gate.clear()
        try:
            send(socket, "response.create", response={"instructions": TEXT})
            until(socket, "response.output_audio.delta")
            send(socket, "response.create", response={"instructions": TEXT})
            assert until(socket, "error")[-1]["error"]["code"] == "response_active"
            send(socket, "response.cancel")
            assert until(socket, "response.done")[-1]["response"]["status"] == "cancelled"
            eventually(lambda: engine.dropped == dropped + 1)
        finally:
            engine.gate.set()
        send(socket, "response.create", response={"instructions": "fail"})
        assert until(socket, "response.done")[-1]["response"]["status"] == "failed"
        send(socket, "response.create", response={"instructions": TEXT})
        assert until(socket, "response.done")[-1]["response"]["status"] == "completed"


def test_text_in_pieces(server: Running) -> None:
    text = "The first sentence. The second one is here! And a rest"
    with opened(server, "/v1/audio/speech/stream") as socket:
        send(socket, "session.config", voice="bert", seed=5, language="English")
        for start in range(0, len(text), 3):
            send(socket, "input.text", text=text[start : start + 3])
        send(socket, "input.done")
        messages = until(socket, "session.done")
        assert messages[-1]["total_sentences"] == 3
    starts = [m for m in messages if isinstance(m, dict) and m["type"] == "audio.start"]
    assert [m["sentence_text"] for m in starts] == ["The first sentence.", "The second one is here!", "And a rest"]
    assert sum(len(m) for m in messages if isinstance(m, bytes)) == sum(bytes_of(m["sentence_text"]) for m in starts)
    assert {r.parameters.seed for r in server.engine.requests[-3:]} == {5}
    assert server.engine.requests[-1].voice is server.engine.tts.named["bert"]
    assert {r.language for r in server.engine.requests[-3:]} == {"en"}


def test_pieces_in_other_formats_errors_and_cancelling(server: Running) -> None:
    with opened(server, "/audio/speech/stream") as socket:
        for wrong in ({"voice": 5}, {"response_format": "ogg"}, {"language": "fr"}):
            send(socket, "session.config", **wrong)
            assert until(socket, "error")[-1]["error"]["param"]
        send(socket, "input.text", text=5)
        send(socket, "shout")
        assert [m["type"] for m in until(socket, "error") + until(socket, "error")] == ["error", "error"]
        send(socket, "input.text", text="x" * 601)
        assert until(socket, "error")[-1]["error"]["code"] == "too_much_text"
        send(socket, "session.config", response_format="mp3")
        send(socket, "input.text", text=TEXT)
        send(socket, "input.flush")
        audio = b"".join(m for m in until(socket, "audio.done") if isinstance(m, bytes))
        assert len(decode_audio(audio)[0]) / RATE == pytest.approx(len(TEXT) * SECONDS_PER_CHARACTER, abs=0.1)
        engine = server.engine
        engine.gate.clear()
        try:
            send(socket, "input.text", text=f"{TEXT} {TEXT} ")
            send(socket, "input.flush")
            until(socket, "audio.start")
            send(socket, "cancel")
            assert until(socket, "audio.done")[-1]["error"] is True
        finally:
            engine.gate.set()
        send(socket, "input.done")
        until(socket, "session.done")
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


@pytest.mark.parametrize("leaves", [False, True])
def test_all_text_has_come_and_the_client_changes_its_mind(server: Running, leaves: bool) -> None:
    engine, dropped = server.engine, server.engine.dropped
    engine.gate.clear()
    try:
        with opened(server, "/v1/audio/speech/stream") as socket:
            send(socket, "input.text", text=f"{TEXT} {TEXT}\n{TEXT}")
            send(socket, "input.done")
            until(socket, "audio.start")
            eventually(lambda: engine.running == 1)
            if not leaves:
                send(socket, "input.text", text=TEXT)
                assert "input.done" in until(socket, "error")[-1]["error"]["message"]
                send(socket, "cancel")
                assert until(socket, "audio.done")[-1]["error"] is True
                assert until(socket, "session.done")[-1]["total_sentences"] == 1
        eventually(lambda: engine.dropped == dropped + 1 and engine.running == 0)
    finally:
        engine.gate.set()


def test_what_a_configuration_does_not_say_and_one_that_is_refused(server: Running) -> None:
    with opened(server, "/v1/audio/speech/stream") as socket:
        send(socket, "session.config", seed=9, response_format=None)
        send(socket, "session.config", model="none of ours", seed=8)
        assert until(socket, "error")[-1]["error"]["code"] == "model_not_found"
        send(socket, "input.text", text=TEXT)
        send(socket, "input.done")
        assert until(socket, "audio.start")[-1]["format"] == "pcm"
        until(socket, "session.done")
    assert server.engine.requests[-1].parameters.seed == 9


class Broken(FakeEngine):
    """An engine with a fault that nobody has foreseen."""

    async def generate(self, request: Any, request_id: str | None = None, *, stream: bool = False) -> Any:
        yield SimpleNamespace(audio=self.wave(request), start=0)
        raise RuntimeError("a tensor of the wrong shape")  # which also stands for a closed socket


def test_faults_of_our_own_are_told_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def logged() -> int:
        return caplog.text.count("RuntimeError: a tensor of the wrong shape")

    with running(tmp_path, Broken) as broken:
        body = {"input": TEXT, "stream_format": "sse", "response_format": "pcm"}
        assert "internal_error" in httpx.post(broken.url + "/v1/audio/speech", json=body).text
        assert logged() == 1
        with opened(broken, "/v1/audio/speech/stream") as socket:
            send(socket, "input.text", text=TEXT)
            send(socket, "input.done")
            *_, error, done, end = until(socket, "session.done")
        assert [error["type"], done["type"], end["type"]] == ["error", "audio.done", "session.done"]
        assert error["error"]["code"] == "internal_error" and done["error"] is True
        assert logged() == 2
        with opened(broken, "/v1/realtime") as socket:
            send(socket, "response.create", response={"instructions": TEXT})
            answer = until(socket, "response.done")[-1]["response"]
        assert answer["status"] == "failed" and answer["status_details"]["error"]["code"] == "internal_error"
        assert logged() == 3


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/models"])
def test_a_socket_that_is_none(server: Running, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        opened(server, path)
    answer = refused.value.response
    assert answer.status_code == 404 and answer.headers["x-request-id"].startswith("req_")
    assert json.loads(answer.body)["error"]["code"] == "not_found"


def test_keys_and_origins_hold_for_sockets(server: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        opened(server, "/v1/realtime", origin="https://evil.example")
    with running(tmp_path_factory.mktemp("voices"), api_keys=("correct-horse",)) as locked:
        with pytest.raises(InvalidStatus, match="401"):
            opened(locked, "/v1/realtime")
        with opened(locked, "/v1/realtime", additional_headers={"Authorization": "Bearer correct-horse"}) as socket:
            until(socket, "session.created")
        names = ["realtime", "openai-insecure-api-key.correct-horse"]
        for path in ("/v1/realtime", "/v1/audio/speech/stream"):
            with opened(locked, path, subprotocols=names[::-1]) as socket:
                assert socket.subprotocol == "realtime"  # browsers hang up where none is chosen


def test_arriving_text_is_cut_where_sentences_certainly_end() -> None:
    text = ArrivingText()
    assert text.add("Dr. Who came. ") == "" and text.add("It") == "Dr. Who came."
    assert text.add(" cost 3.") == "" and text.add("14 pounds") == "" and text.rest() == "It cost 3.14 pounds"
    assert text.add("A line\nand") == "A line" and text.rest() == "and" and text.rest() == ""
    long = "word " * 40 + "stop, " + "word " * 40
    assert text.add(long) == ("word " * 40 + "stop,") and len(text) > 100
