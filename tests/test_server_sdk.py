"""The official SDK against a running server, over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator

import openai
import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.voices.library import VoiceLibrary
from tests.fake_server import RATE, SECONDS_PER_CHARACTER, Running, a_clip, eventually, running

TEXT = "It is a truth universally acknowledged, that servers are spoken to."
SECONDS = len(TEXT) * SECONDS_PER_CHARACTER
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices")) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def seconds_of(data: bytes, form: str) -> float:
    if form == "pcm":
        return len(data) / 2 / RATE
    wave, rate = decode_audio(data)
    assert rate == (48_000 if form == "opus" else RATE)
    return len(wave) / rate


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(client: openai.OpenAI, form: str) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=form)
    assert seconds_of(answer.content, form) == pytest.approx(SECONDS, abs=0.1)
    media = {"mp3": "audio/mpeg", "opus": "audio/ogg"}.get(form, f"audio/{form}")
    assert answer.response.headers["content-type"] == media
    assert answer.response.headers["x-request-id"].startswith("req_")


def test_mp3_in_chunks_is_what_comes_where_nothing_is_named(client: openai.OpenAI) -> None:
    headers = client.audio.speech.create(model="gpt-4o-mini-tts", voice="marin", input=TEXT).response.headers
    assert headers["content-type"] == "audio/mpeg" and headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("speed", [0.25, 2.0, 4.0])
def test_speed(client: openai.OpenAI, speed: float) -> None:
    for form in ("pcm", "wav"):  # as it comes, and whole
        answer = client.audio.speech.create(model="tts-1", voice="ash", input=TEXT, response_format=form, speed=speed)
        assert seconds_of(answer.content, form) == pytest.approx(SECONDS / speed, rel=0.1)


@pytest.mark.parametrize(("form", "rate"), [("pcm", 8000), ("wav", 16_000), ("flac", 44_100), ("mp3", 22_050)])
@pytest.mark.parametrize("stream", [True, False])
def test_sampling_rates(client: openai.OpenAI, form: str, rate: int, stream: bool) -> None:
    more = {"sample_rate": rate, "stream": stream}
    answer = client.audio.speech.create(model="tts-1", voice="ash", input=TEXT, response_format=form, extra_body=more)
    if form == "pcm":
        assert len(answer.content) == 2 * round(SECONDS * rate)
        return
    wave, found = decode_audio(answer.content)
    assert found == rate and len(wave) / rate == pytest.approx(SECONDS, abs=0.15)


def test_a_rate_that_opus_has_not(client: openai.OpenAI) -> None:
    for rate, known in ((44_100, "48000"), (11_025, "22050")):  # of the format, and of the server
        with pytest.raises(openai.BadRequestError, match=known) as refused:
            more = {"sample_rate": rate}
            client.audio.speech.create(model="tts-1", voice="ash", input="Hi.", response_format="opus", extra_body=more)
        assert refused.value.param == "sample_rate"


def test_audio_arrives_before_all_of_it_is_made(client: openai.OpenAI, server: Running) -> None:
    server.engine.gate.clear()
    try:
        create = client.audio.speech.with_streaming_response.create
        with create(model="tts-1", voice="coral", input=TEXT, response_format="pcm") as answer:
            parts = answer.iter_bytes(4096)
            assert len(next(parts)) == 4096 and server.engine.running == 1
            server.engine.gate.set()
            rest = b"".join(parts)
    finally:
        server.engine.gate.set()
    assert 4096 + len(rest) == round(SECONDS * RATE) * 2


def test_a_client_that_leaves_is_a_request_that_ends(client: openai.OpenAI, server: Running) -> None:
    engine = server.engine
    dropped = engine.dropped
    engine.gate.clear()
    try:
        create = client.audio.speech.with_streaming_response.create
        with create(model="tts-1", voice="coral", input=TEXT, response_format="mp3") as answer:
            next(answer.iter_bytes(16))
        eventually(lambda: engine.dropped == dropped + 1 and not engine.running)
        # The same where nothing has been answered yet.
        with pytest.raises(openai.APITimeoutError):
            client.audio.speech.create(model="tts-1", voice="coral", input=TEXT, response_format="wav", timeout=0.3)
        eventually(lambda: engine.dropped == dropped + 2 and not engine.running)
    finally:
        engine.gate.set()


def test_events(client: openai.OpenAI) -> None:
    create = client.audio.speech.with_streaming_response.create
    with create(
        model="gpt-4o-mini-tts", voice="sage", input=TEXT, response_format="mp3", stream_format="sse"
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert len(deltas) > 3 and {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert seconds_of(audio, "mp3") == pytest.approx(SECONDS, abs=0.1)
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["input_tokens"] == len(TEXT) and usage["output_tokens"] == round(25 * SECONDS)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_events_tell_of_a_failure_on_the_way(client: openai.OpenAI) -> None:
    create = client.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="sage", input="fail late: " + TEXT, stream_format="sse") as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert events[0]["type"] == "speech.audio.delta" and events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "server_error"


def test_a_stream_that_fails_on_the_way_does_not_look_whole(client: openai.OpenAI) -> None:
    create = client.audio.speech.with_streaming_response.create
    with (
        pytest.raises(Exception, match="(incomplete|closed|peer)"),
        create(model="tts-1", voice="sage", input="fail late: " + TEXT, response_format="pcm") as answer,
    ):
        answer.read()


def test_many_at_once(server: Running) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one(n: int) -> float:
                text = TEXT + "." * n
                async with client.audio.speech.with_streaming_response.create(
                    model="tts-1", voice="verse", input=text, response_format="pcm"
                ) as answer:
                    data = b"".join([part async for part in answer.iter_bytes()])
                return len(data) / 2 / RATE - len(text) * SECONDS_PER_CHARACTER

            assert max(map(abs, await asyncio.gather(*map(one, range(24))))) < 0.001
            answer = await client.audio.speech.create(model="tts-1", voice="verse", input=TEXT, response_format="wav")
            assert seconds_of(answer.content, "wav") == pytest.approx(SECONDS, abs=0.01)

    asyncio.run(main())


def test_errors_are_the_ones_that_the_sdk_knows(client: openai.OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **fields: object) -> openai.APIStatusError:
        body = {"model": "tts-1", "voice": "alloy", "input": TEXT} | fields
        with pytest.raises(kind) as caught:
            client.audio.speech.create(**body)  # type: ignore[arg-type]
        assert caught.value.request_id.startswith("req_")
        return caught.value

    assert refused(openai.BadRequestError, response_format="ogg").param == "response_format"
    assert refused(openai.BadRequestError, input="").param == "input"
    assert refused(openai.BadRequestError, input="x" * 4097).code == "string_above_max_length"
    assert refused(openai.BadRequestError, speed=5).param == "speed"
    assert refused(openai.BadRequestError, voice="nobody").code == "voice_not_found"
    assert refused(openai.BadRequestError, extra_body={"seed": -1}).param == "seed"
    assert refused(openai.BadRequestError, extra_body={"language": "fr"}).code == "language_not_supported"
    assert refused(openai.NotFoundError, model="whisper-1").code == "model_not_found"
    assert refused(openai.BadRequestError, input="mute").code == "invalid_value"
    assert refused(openai.InternalServerError, input="fail").code == "generation_failed"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="x", messages=[])
    assert caught.value.code == "not_found"


def test_our_own_fields_reach_the_engine(client: openai.OpenAI, server: Running) -> None:
    own = {
        "seed": 7,
        "temperature": 0.5,
        "exaggeration": 1.5,
        "cfg_weight": 0.2,
        "language": "en-GB",
        "mood": "fine",
    }
    answer = client.audio.speech.create(
        model="chatterbox", voice="anna", input=TEXT, instructions="Whisper.", extra_body=own
    )
    request = server.engine.requests[-1]
    found = request.parameters
    assert (found.seed, found.temperature, found.exaggeration, found.cfg_weight) == (7, 0.5, 1.5, 0.2)
    assert request.voice is server.engine.tts.named["anna"]
    assert answer.response.headers["x-chatterbox-seed"] == "7"
    assert answer.response.headers["x-chatterbox-ignored"] == "mood, instructions"


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"chatterbox", "fake", "tts-1", "gpt-4o-mini-tts"} <= set(names)
    assert client.models.retrieve("tts-1-hd").id == "tts-1-hd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whisper-1")


def test_consents_and_voices(client: openai.OpenAI, server: Running) -> None:
    consents = client.audio.voice_consents
    clip = a_clip()
    made = [consents.create(name=f"Anna {n}", language="en-US", recording=("a.wav", clip)) for n in range(3)]
    assert made[0].object == "audio.voice_consent" and made[0].language == "en-US"
    assert {c.id for c in consents.list(limit=2)} == {c.id for c in made}  # the SDK asks for the second page
    assert consents.retrieve(made[1].id).name == "Anna 1"
    assert consents.update(made[1].id, name="Anna the second").name == "Anna the second"
    assert consents.delete(made[2].id).deleted
    with pytest.raises(openai.NotFoundError):
        consents.retrieve(made[2].id)

    voices = client.audio.voices
    voice = voices.create(audio_sample=("v.wav", clip), consent=made[0].id, name="Anna: the one & only / ../../x")
    assert voice.object == "audio.voice" and voice.type == "audio_sample" and voice.id.startswith("voice_")
    kept = VoiceLibrary(server.voices).get(voice.id)
    for name in ({"id": voice.id}, voice.id, voice.name):
        client.audio.speech.create(model="tts-1", voice=name, input=TEXT)
        assert server.engine.requests[-1].voice is server.engine.tts.named[kept.path.stem]
    with pytest.raises(openai.ConflictError):
        voices.create(audio_sample=("v.wav", clip), consent=made[0].id, name=voice.name)
    with pytest.raises(openai.NotFoundError, match="no consent"):
        voices.create(audio_sample=("v.wav", clip), consent=made[2].id, name="Berta")
    with pytest.raises(openai.BadRequestError, match="cannot be decoded"):
        voices.create(audio_sample=("v.wav", b"no audio at all" * 99), consent=made[0].id, name="Berta")
    files = {path.relative_to(server.voices).as_posix() for path in server.voices.rglob("*") if path.is_file()}
    assert all(re.fullmatch(r"(names|contents|consents)/(cons_)?[0-9a-f-]{24,64}\.[a-z]+", name) for name in files), (
        files
    )
    assert voices.delete(voice.id).object == "audio.voice.deleted"
    with pytest.raises(openai.NotFoundError):
        voices.delete(voice.id)
    left = [path.relative_to(server.voices).parts[0] for path in server.voices.rglob("*") if path.is_file()]
    assert set(left) == {"consents"}
