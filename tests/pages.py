"""What tests of the page share: a browser that listens, and what its user does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, chromium, find_chromium
from tests.fake_server import Running, eventually
from tests.reasons import NO_CHROMIUM

TEXT = "It is a truth universally acknowledged, that pages are listened to."

# What the page gives to the loudspeaker: when each part starts, and how loud it is at the moment.
_LISTENING = """
window.$ = (id) => document.getElementById(id);
window.heard = { parts: [], level: () => 0 };
const { start } = AudioBufferSourceNode.prototype, { connect } = AudioNode.prototype;
AudioBufferSourceNode.prototype.start = function (when) {
  heard.parts.push({ when, seconds: this.buffer.duration, state: $("stage").dataset.state });
  return start.call(this, when);
};
AudioNode.prototype.connect = function (to) {
  if (to instanceof AudioDestinationNode) {
    heard.analyser ??= new AnalyserNode(this.context, { fftSize: 32768 }); // the last 1.4 s
    const wave = new Float32Array(heard.analyser.fftSize);
    heard.level = () => (heard.analyser.getFloatTimeDomainData(wave), Math.max(...wave.map(Math.abs)));
    connect.call(this, heard.analyser);
  }
  return connect.call(this, to);
};
"""


@contextlib.contextmanager
def listening(directory: Path, clip: Path) -> Iterator[Browser]:
    """A browser whose microphone hears a clip, and that knows this machine as speech.example, too."""
    program = find_chromium()
    if program is None:
        pytest.skip(NO_CHROMIUM)
    microphone = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    heard = f"--use-file-for-fake-audio-capture={clip}"
    names = "--host-resolver-rules=MAP speech.example 127.0.0.1"
    with chromium(program, directory, *microphone, heard, names) as found:
        found.call("Page.addScriptToEvaluateOnNewDocument", source=_LISTENING)
        yield found


def as_new(browser: Browser) -> Browser:
    """The browser without what a test before has changed."""
    browser.size(1280, 900)
    browser.prefer(prefers_color_scheme="light")
    return browser


@contextlib.contextmanager
def page_of(browser: Browser, server: Running) -> Iterator[Browser]:
    """The page, ready; afterwards the server is at rest."""
    opened(as_new(browser), server.url)
    yield browser
    server.engine.gate.set()
    eventually(lambda: not server.engine.running)


def opened(browser: Browser, url: str) -> None:
    """Open the page and wait until it can speak."""
    browser.open(f"{url}/")
    browser.until("document.querySelectorAll('#voice option').length > 3 && $('engine').dataset.state === 'ok'")


def write(page: Browser, text: str, control: str = "text") -> None:
    """Replace what a control holds, as its user does."""
    page.run(f"(document.getElementById('{control}').focus(), document.getElementById('{control}').select())")
    page.type(text)


def words(page: Browser, control: str) -> str:
    """What an element says."""
    found = page.run(f"document.getElementById('{control}').textContent")
    assert isinstance(found, str)
    return found


def spoken(page: Browser, text: str = TEXT) -> None:
    """Speak a text to its end."""
    write(page, text)
    page.click("#speak")
    page.until("$('stage').dataset.state === 'whole' && $('stop').hidden")


def parts(page: Browser) -> list[dict[str, Any]]:
    """What went to the loudspeaker."""
    return list(page.run("heard.parts"))
