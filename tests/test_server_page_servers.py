"""The page of servers of many kinds: what they are doing, their models and languages, their key, and none at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.voices.entries import About
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.preview import preview_of
from tests.browser import Browser
from tests.fake_server import FakeEngine, a_clip, running
from tests.fakes import a_voice
from tests.pages import as_new, opened, parts, spoken, words, write

KEY = "correct-horse"


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    return as_new(one_browser)


def test_what_the_engine_does(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path) as found:
        opened(browser, found.url)
        assert browser.run("$('language-field').hidden")  # there is nothing to choose
        assert words(browser, "engine-words") == "ready" and words(browser, "engine-where") == "fake · cpu"
        write(browser, "die")
        browser.click("#speak")
        told = browser.until("$('problem').textContent")
        assert "being loaded" in told and "Try again in 5 seconds" in told
        look = "document.dispatchEvent(new Event('visibilitychange'))"  # rather than wait until it looks again
        browser.until(f"({look}, $('engine-facts').textContent.includes('Loaded againonce'))")
        spoken(browser)
        found.engine.gate.clear()
        browser.click("#speak")
        assert browser.until(f"({look}, $('engine-load').textContent)") == "1 under way"
        found.engine.gate.set()


LANGUAGES = {"en": "English", "de": "German", "ar": "Arabic"}


def polyglot() -> FakeEngine:
    """An engine that speaks any language."""
    engine = FakeEngine()
    engine.tts.check_language = lambda language: language  # type: ignore[method-assign]
    return engine


def test_languages(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path, polyglot, facts={"fake": {"languages": LANGUAGES}}) as found:
        opened(browser, found.url)
        assert browser.run("$('model-field').hidden")
        browser.until("!$('language-field').hidden")
        labels = browser.run("[...$('language').options].map((option) => option.label)")
        assert labels == ["told from the text", "Arabic", "English", "German"]
        spoken(browser)
        assert found.engine.requests[-1].language is None
        browser.run("$('language').value = 'de'")
        spoken(browser)
        assert found.engine.requests[-1].language == "de"


def test_models(browser: Browser, tmp_path: Path) -> None:
    """Parameters, languages and voices follow the model that is chosen, and the request names it."""
    second = {
        "languages": LANGUAGES,
        "parameters": {"temperature": 0.6},
        "voices": ("builtin", "clara"),
        "voice_kind": "+x",
    }
    library = VoiceLibrary(tmp_path)
    library.save("ada", a_voice(), about=About(preview=preview_of(*decode_audio(a_clip()))))
    library.save("bare", a_voice())
    with running(tmp_path, others={"second": polyglot}, facts={"second": second}) as found:
        opened(browser, found.url)
        assert not browser.run("$('model-field').hidden") and browser.run("$('language-field').hidden")
        assert browser.run("[...$('model').options].map((option) => option.label)") == ["fake", "second"]
        write(browser, "1.5", "exaggeration")
        spoken(browser)
        assert len(found.engines) == 1 and found.engine.requests[-1].parameters.exaggeration == 1.5
        assert words(browser, "spoken").count("fake · The model’s default") == 1

        browser.run("($('model').value = 'second', $('model').dispatchEvent(new Event('change')))")
        names = "[...$('voice').options].map((option) => option.value)"
        browser.until(f"{names}.includes('clara')")
        listed = browser.run("[...$('voice').options].map((option) => option.label)")
        assert "ada" in listed and not {"anna", "bare"} & set(listed)
        assert "alloy: clara" in listed, "other names stand for the voices of this model"
        assert browser.run("$('exaggeration').closest('.field').hidden && $('reset').hidden")
        assert browser.run("[$('temperature').value, $('language').options.length]") == ["0.6", 4]
        assert not browser.run("$('language-field').hidden")
        browser.until("$('engine-where').textContent === 'second · cpu'")
        assert words(browser, "engine-words") == "asleep until you speak"
        browser.run("($('language').value = 'de', $('voice').value = 'default')")
        spoken(browser)
        assert len(found.engines) == 2, "it is loaded when somebody speaks with it"
        request = found.engine.requests[-1]
        assert (request.parameters.exaggeration, request.language) == (None, "de")

        browser.click("#spoken li:last-child .use")
        browser.until("$('model').value === 'fake' && $('exaggeration').value === '1.5'")
        browser.until(f"{names}.includes('anna')")
        spoken(browser)
        assert len(found.engines[0].requests) == 2 and browser.complaints == []


def test_a_server_that_is_gone(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path) as found:
        opened(browser, found.url)
    browser.click("#speak")
    assert "does not answer" in browser.until("$('problem').textContent")
    browser.until("$('engine').dataset.state === 'away'")


def test_a_key_and_a_page_that_may_not_record(browser: Browser, tmp_path: Path) -> None:
    """A name of another machine, without https."""
    with running(tmp_path, host="0.0.0.0", api_keys=(KEY,)) as found:
        browser.open(f"http://speech.example:{found.port}/")
        browser.until("!$('key-form').hidden && document.activeElement.id === 'key'")
        browser.type("wrong-horse")
        browser.key("Enter")
        assert "not valid" in browser.until("$('key-problem').textContent")
        browser.type(KEY)
        browser.key("Enter")
        browser.until("$('key-form').hidden && $('voice').options.length > 3")
        spoken(browser)
        assert browser.run("[sessionStorage.length, localStorage.length]") == [1, 0]
        browser.click("#record")
        assert "over https" in browser.until("$('clip-problem').textContent")


def test_a_real_model_is_heard(browser: Browser, babbler: Path, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox
    from chatterbox_vllm.tts import ChatterboxTTS

    def start() -> AsyncChatterbox:
        return AsyncChatterbox(ChatterboxTTS.from_pretrained(babbler, "cpu", max_batch_size=2, max_model_len=512))

    with running(tmp_path, start, "babble") as found:
        try:
            opened(browser, found.url)
            assert browser.run("[$('temperature').value, $('temperature').max]") == ["0.8", "5"]
            browser.drop("#drop", clip)
            browser.until("$('voice').selectedOptions[0].label === 'Anna.wav'")
            write(browser, "One. Two. Three. Four.")
            browser.click("#speak")
            browser.until("heard.level() > 0.01", 60)
            browser.until("$('stage').dataset.state === 'whole'", 60)
            browser.until("!$('stage').classList.contains('playing')", 60)
            assert parts(browser)[0]["state"] == "streaming", "it began to play before all of it had come"
            assert browser.complaints == [] and browser.run("$('visit').hidden") is False
        finally:
            found.engine.close()
            found.engine.tts.shutdown()
