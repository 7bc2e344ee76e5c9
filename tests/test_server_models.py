"""Several models in one server: chosen by name, loaded on demand, given back for each other, failing alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.server import keeper
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.pool import ModelPool, ServedModel
from chatterbox_vllm.server.voices import VoiceBook, preview_of_clip
from chatterbox_vllm.voices.entries import About
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.voice import Voice
from tests.fake_server import FakeEngine, FakeTTS, Running, a_clip, eventually, running
from tests.fakes import a_voice

TEXT = "Two of us live in one house."
GIB = 1 << 30


class House:
    """Counts how many engines are open at once."""

    def __init__(self) -> None:
        self.open: list[FakeEngine] = []
        self.most = 0
        self._lock = threading.Lock()

    def start(self) -> FakeEngine:
        with self._lock:
            self.open = [engine for engine in self.open if not engine.tts.shut_down]
            self.open.append(FakeEngine())
            self.most = max(self.most, len(self.open))
            return self.open[-1]


def say(client: httpx.Client, model: str | None = None, text: str = TEXT) -> httpx.Response:
    body = {"input": text, "response_format": "pcm"} | ({} if model is None else {"model": model})
    return client.post("/v1/audio/speech", json=body)


def client_of(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=20)


def states(client: httpx.Client) -> dict[str, Any]:
    return {name: found["status"] for name, found in client.get("/health").json()["models"].items()}


def test_the_model_field_chooses(tmp_path: Path) -> None:
    with running(tmp_path, others={"second": FakeEngine}) as server, client_of(server) as client:
        assert states(client) == {"fake": "ok", "second": "asleep"}
        assert client.get("/health").json()["ready"]
        for name in (None, "fake", "chatterbox", "tts-1", "gpt-realtime"):
            assert say(client, name).status_code == 200
        assert len(server.engines) == 1
        assert say(client, "second").status_code == 200
        assert len(server.engines) == 2 and len(server.engines[1].requests) == 1
        assert say(client, "fake").status_code == 200 and len(server.engines[0].requests) == 6
        assert states(client) == {"fake": "ok", "second": "ok"}
        refused = say(client, "third")
        assert refused.status_code == 404 and "use fake, second, chatterbox" in refused.json()["error"]["message"]


def test_lists_health_and_metrics_tell_of_each(tmp_path: Path) -> None:
    with running(tmp_path, others={"second": FakeEngine}) as server, client_of(server) as client:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert [listed[name]["root"] for name in ("fake", "second", "tts-1")] == ["fake", "second", "fake"]
        assert listed["fake"]["loaded"] and listed["tts-1"]["loaded"] and not listed["second"]["loaded"]
        assert client.get("/v1/models/second").json()["root"] == "second"
        figures = client.get("/metrics").text
        assert 'chatterbox_model_loaded{model="fake"} 1.0' in figures
        assert 'chatterbox_model_loaded{model="second"} 0.0' in figures
        assert client.post("/v1/warmup", params={"model": "second"}).status_code == 200
        assert 'chatterbox_model_loaded{model="second"} 1.0' in client.get("/metrics").text
        health = client.get("/health").json()
        assert health["model"] == "fake" and health["models"]["second"]["loaded"]
        assert health["models"]["second"]["loads"] == 1
        assert client.post("/v1/warmup", params={"model": "third"}).status_code == 404
        voices = client.get("/v1/audio/voices").json()["voices"]
        assert next(voice["models"] for voice in voices if voice["id"] == "anna") == ["fake", "second"]


def test_voices_of_one_model(tmp_path: Path) -> None:
    facts = {"second": {"voices": ("builtin", "clara")}}
    with running(tmp_path, others={"second": FakeEngine}, facts=facts) as server, client_of(server) as client:
        listed = client.get("/v1/audio/voices", params={"model": "second"}).json()["voices"]
        assert [voice["id"] for voice in listed if voice["kind"] == "model"] == ["default", "builtin", "clara"]
        assert {voice["speaks_as"] for voice in listed if voice["kind"] == "alias"} == {"clara"}
        assert client.get("/v1/audio/voices", params={"model": "third"}).status_code == 404


def test_a_name_with_voices_of_two_kinds_is_listed_once(tmp_path: Path) -> None:
    turbos = replace(a_voice(), recipe="turbo")
    facts = {"second": {"voice_kind": turbos.kind}, "third": {"voice_kind": "other"}}
    others = {"second": FakeEngine, "third": FakeEngine}
    with running(tmp_path, others=others, facts=facts) as server, client_of(server) as client:
        library = VoiceLibrary(server.voices)
        clip = About(preview=preview_of_clip(a_clip()))
        library.keep("ada", turbos, about=clip)
        library.keep("ada", a_voice(), about=clip)
        for model in (None, "fake", "second", "third"):
            params = {} if model is None else {"model": model}
            listed = client.get("/v1/audio/voices", params=params).json()["voices"]
            assert [voice["name"] for voice in listed if voice["kind"] == "library"] == ["ada"], model


def test_by_turns_where_there_is_room_for_one(tmp_path: Path) -> None:
    house = House()
    with (
        running(tmp_path, house.start, others={"second": house.start}, models_memory_gb=1.5) as server,
        client_of(server) as client,
    ):
        for name in ("fake", "second", "second", "fake", "second"):
            assert say(client, name).status_code == 200
        assert house.most == 1 and len(server.engines) == 4
        assert states(client) == {"fake": "asleep", "second": "ok"}
        assert client.get("/health").json()["ready"]


def test_three_models_and_room_for_two(tmp_path: Path) -> None:
    """The one that was used least recently goes."""
    house = House()
    others = {"second": house.start, "third": house.start}
    with (
        running(tmp_path, house.start, others=others, models_memory_gb=2) as server,
        client_of(server) as client,
    ):
        for name in ("fake", "second", "fake", "third"):
            assert say(client, name).status_code == 200
        assert states(client) == {"fake": "ok", "second": "asleep", "third": "ok"} and house.most == 2


def test_who_came_before_is_served_and_who_comes_later_waits(tmp_path: Path) -> None:
    house = House()
    with (
        running(tmp_path, house.start, others={"second": house.start}, models_memory_gb=1) as server,
        client_of(server) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        first = server.engine
        first.gate.clear()
        early = threads.submit(say, client, "fake")
        eventually(lambda: first.running == 1)
        other = threads.submit(say, client, "second")
        eventually(lambda: states(client)["second"] == "loading")
        late = threads.submit(say, client, "fake")
        time.sleep(0.3)
        assert not other.done() and not late.done() and len(first.requests) == 1
        first.gate.set()
        assert [each.result().status_code for each in (early, other, late)] == [200, 200, 200]
        assert len(first.requests) == 1 and first.tts.shut_down and len(server.engines) == 3
        assert house.most == 1


def test_many_requests_for_both(tmp_path: Path) -> None:
    house = House()
    with (
        running(tmp_path, house.start, others={"second": house.start}, models_memory_gb=1) as server,
        client_of(server) as client,
        ThreadPoolExecutor(12) as threads,
    ):
        answers = list(threads.map(lambda i: say(client, ("fake", "second")[i % 2]).status_code, range(40)))
        assert answers == [200] * 40 and house.most == 1
        assert len(server.engines) < 40  # those that wait are served together


def test_one_that_cannot_be_loaded_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.2)

    def broken() -> FakeEngine:
        raise DeviceError("the card has no room")

    with (
        running(tmp_path, others={"second": broken}, models_memory_gb=1) as server,
        client_of(server) as client,
    ):
        started = time.monotonic()
        refused = say(client, "second")
        assert time.monotonic() - started < 3  # two pauses, 1 s: after the last attempt nobody waits
        assert refused.status_code == 503 and "the card has no room" in refused.json()["error"]["message"]
        assert states(client)["second"] == "failed"
        assert say(client, "fake").status_code == 200  # loaded again
        health = client.get("/health").json()
        assert health["ready"] and "no room" in health["models"]["second"]["failure"]
        assert say(client, "second").status_code == 503
        assert not server.server.gave_up


def test_all_failing_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.01)
    works = [True]

    def start() -> FakeEngine:
        if not works:
            raise DeviceError("gone")
        works.pop()
        return FakeEngine()

    with running(tmp_path, start, others={"second": start}) as server, client_of(server) as client:
        assert say(client, "second").status_code == 503 and not server.server.gave_up
        say(client, "fake", "die")
        eventually(lambda: server.server.gave_up)


def test_an_engine_that_dies_while_another_waits_for_its_room(tmp_path: Path) -> None:
    house = House()
    with (
        running(tmp_path, house.start, others={"second": house.start}, models_memory_gb=1) as server,
        client_of(server) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        server.engine.gate.clear()
        early = threads.submit(say, client, "fake", TEXT)
        eventually(lambda: server.engine.running == 1)
        other = threads.submit(say, client, "second")
        eventually(lambda: states(client)["second"] == "loading")
        server.engine.failure = ZeroDivisionError("engine")
        server.engine.gate.set()
        with contextlib.suppress(httpx.HTTPError):  # its answer had begun
            early.result()
        assert other.result().status_code == 200 and house.most == 1


def a_model(name: str, size: int = 0) -> ServedModel:
    start: Callable[[], Any] = FakeEngine
    return ServedModel(name, start, bytes=size)


def test_figures_can_be_asked_for_while_a_model_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ModelPool([ServedModel("first", FakeEngine)], 4)
    looks = [FakeEngine(), None]  # it goes between two looks
    monkeypatch.setattr(keeper.Keeper, "engine", property(lambda _: looks.pop(0)))
    assert None not in list(pool.engines)


def test_a_model_that_is_loaded_after_the_end_is_closed() -> None:
    began, may_end = threading.Event(), threading.Event()
    loaded: list[FakeEngine] = []

    def start() -> FakeEngine:
        began.set()
        assert may_end.wait(10)
        loaded.append(FakeEngine())
        return loaded[0]

    async def ends_meanwhile() -> None:
        async with keeper.Keeper(start) as own:
            waiting = asyncio.create_task(own.use().__aenter__())
            assert await asyncio.to_thread(began.wait, 10)
        with pytest.raises(ApiError, match="there is no model"):
            await waiting

    asyncio.run(ends_meanwhile())
    may_end.set()
    eventually(lambda: bool(loaded) and loaded[0].closed and loaded[0].tts.shut_down)


def test_enrolments_of_clients_that_have_left_count_until_they_end(tmp_path: Path) -> None:
    may_end, running_now, most = threading.Event(), 0, 0
    lock = threading.Lock()

    class Slow(FakeTTS):
        def enrol_clip(self, clip: bytes, norm_loudness: bool | None = None) -> Voice:
            nonlocal running_now, most
            with lock:
                running_now += 1
                most = max(most, running_now)
            may_end.wait(10)
            with lock:
                running_now -= 1
            return a_voice()

    async def come_and_go() -> None:
        book, tts = VoiceBook(ServerOptions(voices_directory=tmp_path)), Slow()
        for _ in range(6):
            enrolling = asyncio.create_task(book.enrol(tts, b"clip"))
            await asyncio.sleep(0.02)
            enrolling.cancel()
        last = asyncio.create_task(book.enrol(tts, b"clip"))
        await asyncio.to_thread(eventually, lambda: running_now == 2)
        await asyncio.sleep(0.05)  # in which a third one could begin
        may_end.set()
        await last

    asyncio.run(come_and_go())
    assert most == 2


def test_what_cannot_be_served_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"large is expected to take 3\.00 GiB, and models_memory_gb leaves 2\.00"):
        ModelPool([a_model("small", GIB), a_model("large", 3 * GIB)], 10, budget=2 * GIB)
    with pytest.raises(ConfigError, match="called alike: one, one"):
        ModelPool([a_model("one"), a_model("one")], 10)
