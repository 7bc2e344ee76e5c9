"""The page at `/` in a real browser: what its user sees and hears."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.browser import Browser, PageError, chromium
from tests.fake_server import RATE, SECONDS_PER_CHARACTER, Running, eventually, running
from tests.pages import TEXT, page_of, parts, spoken, words, write

SECONDS = len(TEXT) * SECONDS_PER_CHARACTER

# The address of what was last played as a whole.
PLAYED = """(() => {
  const { play } = HTMLMediaElement.prototype;
  HTMLMediaElement.prototype.play = async function () { await play.call(this); window.played = this.src; };
})()"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), max_requests=2, max_text=1000) as found:
        yield found


@pytest.fixture
def page(one_browser: Browser, server: Running) -> Iterator[Browser]:
    with page_of(one_browser, server) as found:
        yield found


def test_audio_plays_while_it_streams(page: Browser, server: Running) -> None:
    server.engine.gate.clear()  # only a fifth of a second comes
    write(page, TEXT)
    page.click("#speak")
    page.until("heard.level() > 0.1")
    assert server.engine.running == 1 and page.run("$('stage').dataset.state") == "streaming"
    page.until("$('stage').classList.contains('playing') && $('place').value > 0.1")
    assert "First audio after" in words(page, "said") and not page.run("$('stop').hidden")
    server.engine.gate.set()
    page.until("$('stage').dataset.state === 'whole'")
    page.until("!$('stage').classList.contains('playing')")
    assert sum(part["seconds"] for part in parts(page)) == pytest.approx(SECONDS, abs=1e-3)
    assert words(page, "clock") == "0:01.3 / 0:01.3" and page.run("$('stop').hidden")
    assert page.complaints == []
    origins = page.run("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)")
    assert set(origins) == {server.url}


def test_parts_follow_one_another_without_a_gap(page: Browser, server: Running) -> None:
    server.engine.pause = 0.03
    try:
        spoken(page)
    finally:
        server.engine.pause = 0.0
    found = parts(page)
    assert len(found) > 2 and {part["state"] for part in found[:-1]} <= {"waiting", "streaming"}
    gaps = [after["when"] - before["when"] - before["seconds"] for before, after in itertools.pairwise(found)]
    dry = sum(gap > 1e-6 for gap in gaps)
    assert min(gaps) > -1e-6 and dry < len(gaps)
    # A busy machine may be too slow; then the page says so.
    told = re.search(r"ran dry (once|\d+)", words(page, "said"))
    assert dry == (0 if told is None else int(told[1].replace("once", "1")))


def test_the_pictures_show_what_was_said(page: Browser) -> None:
    spoken(page)
    # The double's voice is a tone of 220 Hz: dark below 500 Hz, light above 2 kHz.
    shares = page.run(
        """(() => {
          const { width, height } = $('spectrogram');
          const { data } = $('spectrogram').getContext("2d").getImageData(width / 2, 0, 1, height);
          const rows = Array.from({ length: height }, (_, y) => data[4 * y] < 100);
          const dark = (rows) => rows.filter(Boolean).length / rows.length;
          const line = $('waveform').getContext("2d").getImageData(width / 2, 0, 1, $('waveform').height).data;
          const wave = line.filter((v, i) => i % 4 === 3 && v > 200).length / $('waveform').height;
          return [dark(rows.slice(0.85 * height)), dark(rows.slice(0, height / 2)), wave];
        })()"""
    )
    assert shares[0] > 0.4 and shares[1] == 0 and 0.2 < shares[2] < 0.4


def test_the_spectrum_is_right(page: Browser) -> None:
    wave = np.random.default_rng(0).normal(size=64).astype(np.float32)
    found = page.run(
        f"""import("/page/fft.js").then(({{ Fft }}) => {{
          const fft = new Fft(64), powers = new Float32Array(32);
          {wave.tolist()}.forEach((value, i) => {{ fft.real[fft.reversed[i]] = value; }});
          fft.powers(powers);
          return [...powers];
        }})"""
    )
    np.testing.assert_allclose(found, np.abs(np.fft.rfft(wave)[:32]) ** 2, rtol=1e-4, atol=1e-5)


def test_samples_may_come_in_pieces_of_any_size(page: Browser) -> None:
    samples = np.array([0, 1, -1, 258, -32768, 32767], "<i2")
    pieces = np.split(np.frombuffer(samples.tobytes(), np.uint8), [1, 2, 2, 7])
    found = page.run(
        f"""import("/page/samples.js").then(({{ PcmReader }}) => {{
          const reader = new PcmReader();
          return {[piece.tolist() for piece in pieces]}.flatMap((piece) => [...reader.read(Uint8Array.from(piece))]);
        }})"""
    )
    assert found == samples.tolist()


def test_stopping_ends_the_request(page: Browser, server: Running) -> None:
    server.engine.gate.clear()
    dropped = server.engine.dropped
    for end in (lambda: page.click("#stop"), lambda: page.key("Escape")):
        page.click("#speak")
        page.until("$('stage').dataset.state === 'streaming'")
        end()
        dropped += 1
        eventually(lambda: server.engine.dropped == dropped and not server.engine.running)  # noqa: B023
        page.until(
            "$('stage').dataset.state === 'cut' && $('stop').hidden && !$('stage').classList.contains('playing')"
        )
    assert "cut short" in words(page, "spoken") and words(page, "problem") == ""


def test_a_clip_is_dropped_chosen_and_kept(page: Browser, server: Running, clip: Path, tmp_path: Path) -> None:
    page.drop("#drop", clip)
    page.until("$('voice').selectedOptions[0].label === 'Anna.wav' && !$('clip').hidden")
    assert words(page, "clip-words") == "A clip of 3.0 s"
    page.run(PLAYED)
    page.click("#clip-play")
    assert page.until("window.played").startswith("data:audio/wav;base64,")
    spoken(page)
    assert server.engine.requests[-1].voice is server.engine.tts.named["clip"]

    page.click("#clip-keep")
    page.until("$('keep').open")
    assert page.run("$('keep-name').value") == "Anna"
    page.click("#keep-do")
    assert "consent first" in page.until("$('keep-problem').textContent")
    page.choose("#keep-file", clip)
    page.until("$('keep-consent').textContent === 'Anna.wav'")
    page.click("#keep-do")
    page.until("!$('keep').open && $('voice').selectedOptions[0].parentElement.label === 'Library'")
    spoken(page)
    kept = page.run("$('voice').value")
    asked, known = server.engine.requests[-1].voice, dict(server.engine.tts.named)
    assert asked is not known.pop("clip") and any(asked is voice for voice in known.values())

    assert words(page, "clip-words") == "A clip of the speaker" and page.run("$('clip-keep').hidden")
    page.run("(window.played = null, 0)")
    page.click("#clip-play")
    assert page.until("window.played").startswith("data:audio/flac;base64,")

    page.run("window.confirm = () => true")
    page.click("#voice-remove")
    page.until("$('voice').value === 'default'")
    with httpx.Client(base_url=server.url) as http:
        assert kept not in [voice["id"] for voice in http.get("/v1/audio/voices").json()["voices"]]

    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio at all" * 99)
    page.choose("#file", noise)
    page.until("$('voice').selectedOptions[0].label === 'noise.wav'")
    page.click("#speak")
    assert "cannot be decoded" in page.until("$('voice-problem').textContent")
    assert page.run("$('voice').getAttribute('aria-invalid')") == "true"
    noise.write_bytes(bytes(11 << 20))
    page.choose("#file", noise)
    assert "has 11.0 MB" in page.until("$('clip-problem').textContent")


def test_a_voice_is_recorded(page: Browser, server: Running) -> None:
    listen = "navigator.mediaDevices.getUserMedia"
    page.run(
        f"(window.before = {listen}, {listen} = async () => {{ throw new DOMException('', 'NotAllowedError') }}, 0)"
    )
    page.click("#record")
    assert "not allowed" in page.until("$('clip-problem').textContent")
    page.run(f"({listen} = window.before, 0)")
    page.click("#record")
    page.until("$('record').getAttribute('aria-pressed') === 'true' && $('level').value > 0.05")
    time.sleep(1.5)  # what is enrolled has to be half a second of speech at least
    page.click("#record")
    page.until("$('voice').selectedOptions[0].label.startsWith('Recording')")
    assert page.run("$('record').getAttribute('aria-pressed')") == "false" and words(page, "clip-problem") == ""
    spoken(page)
    assert server.engine.requests[-1].voice is server.engine.tts.named["clip"]


def test_downloads(page: Browser, server: Running, tmp_path: Path) -> None:
    write(page, "9007199254740993", "seed")  # which no number of JavaScript holds
    spoken(page)
    made = len(server.engine.requests)
    assert server.engine.requests[-1].parameters.seed == 9007199254740993
    file = page.download("#download", tmp_path)
    assert file.name == "speech-9007199254740993.wav"
    with wave.open(str(file)) as found:
        assert (found.getframerate(), found.getnchannels(), found.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(found.readframes(found.getnframes()), "<i2")
    request = {"input": TEXT, "response_format": "pcm", "seed": 9007199254740993}
    assert len(server.engine.requests) == made  # it was made of what was heard
    assert samples.tobytes() == httpx.post(f"{server.url}/v1/audio/speech", json=request).content
    for form, start in (("mp3", None), ("opus", b"OggS"), ("flac", b"fLaC")):
        page.run(f"($('format').value = '{form}', $('format').dispatchEvent(new Event('change')))")
        assert "anew" in words(page, "format-note")
        file = page.download("#download", tmp_path)
        assert file.name == f"speech-9007199254740993.{form}"
        assert file.read_bytes().startswith(start or (b"ID3", b"\xff"))
        assert server.engine.requests[-1].parameters.seed == 9007199254740993


def test_what_was_spoken_can_be_played_used_and_deleted(page: Browser, server: Running) -> None:
    page.run("($('exaggeration').value = 1.5, $('exaggeration').dispatchEvent(new Event('input')))")
    spoken(page)
    assert server.engine.requests[-1].parameters.exaggeration == 1.5
    page.click("#reset")
    spoken(page, "Another one.")
    assert server.engine.requests[-1].parameters.exaggeration is None
    made, heard = len(server.engine.requests), len(parts(page))
    page.click("#spoken li:last-child .again")
    page.until(f"heard.parts.length > {heard} && heard.level() > 0.1")
    assert sum(part["seconds"] for part in parts(page)[heard:]) == pytest.approx(SECONDS, abs=1e-3)
    page.click("#play")
    page.until("!$('stage').classList.contains('playing')")
    stopped = page.run("$('place').valueAsNumber")
    page.run("$('place').focus()")
    page.key("ArrowRight")
    assert page.run("$('place').valueAsNumber") > stopped
    page.click("#spoken li:last-child .use")
    assert page.run("[$('text').value, $('exaggeration').valueAsNumber]") == [TEXT, 1.5]
    assert page.run("$('seed').value") == str(server.engine.requests[0 - 2].parameters.seed)
    page.click("#spoken li:last-child .delete")
    assert page.run("$('spoken').children.length") == 1 and page.run("$('stage').dataset.state") == "empty"
    page.click("#forget")
    assert page.run("$('visit').hidden") and len(server.engine.requests) == made


def test_errors_are_shown_where_they_belong(page: Browser, server: Running) -> None:
    write(page, " ")
    page.click("#speak")
    assert "Type something" in page.until("$('text-problem').textContent")
    write(page, "x" * 1001)
    page.click("#speak")
    assert "1001 characters" in page.until("$('text-problem').textContent")
    write(page, TEXT)
    write(page, "9", "temperature")
    page.click("#speak")
    assert "less than or equal to 5" in page.until("$('temperature-problem').textContent")
    assert page.run("document.activeElement.id") == "temperature" and words(page, "text-problem") == ""
    assert page.run("$('temperature').getAttribute('aria-invalid')") == "true"
    page.click("#reset")
    write(page, "7 dwarfs", "seed")
    page.click("#speak")
    assert "whole number" in page.until("$('seed-problem').textContent")
    write(page, "", "seed")
    page.run("$('seed').value = ''")
    write(page, "fail")
    page.click("#speak")
    assert "could not speak it" in page.until("$('problem').textContent")
    assert page.run("$('stage').dataset.state") == "empty"
    server.engine.pause = 0.2
    try:
        write(page, "fail late: " + TEXT)
        page.click("#speak")
        assert "can be heard" in page.until("$('problem').textContent")
    finally:
        server.engine.pause = 0.0
    assert page.run("$('stage').dataset.state") == "cut" and "cut short" in words(page, "spoken")


def test_a_browser_without_a_loudspeaker_still_downloads(page: Browser) -> None:
    page.run("(window.AudioContext = class { constructor() { throw new Error('no way out') } }, 0)")
    page.click("#speak")
    assert "cannot play it (no way out)" in page.until("$('download-problem').textContent")
    page.until("$('stage').dataset.state === 'whole' && !$('download').disabled")
    assert not page.run("$('stage').classList.contains('playing')")


def test_a_busy_server_says_when_to_come_again(page: Browser, server: Running) -> None:
    server.engine.gate.clear()
    body = {"input": TEXT, "response_format": "pcm"}
    with httpx.Client(base_url=server.url) as http, contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(http.stream("POST", "/v1/audio/speech", json=body))
        page.click("#speak")
        told = page.until("$('problem').textContent")
        assert told.startswith("The server is busy.") and "Try again in" in told
        server.engine.gate.set()
    eventually(lambda: not server.engine.running)
    spoken(page)
    assert words(page, "problem") == ""


def test_a_browser_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="does not start"), chromium("/bin/false", tmp_path):
        pass
