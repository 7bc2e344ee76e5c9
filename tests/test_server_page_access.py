"""The page at `/` in a real browser: by keyboard, on screens of any width, in light and dark, for all its users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CONTROL, SHIFT, Browser
from tests.fake_server import Running, running
from tests.pages import TEXT, page_of, spoken, write

# Text whose colour is too close to what lies behind it: below 4.5 to 1, or 3 to 1 where it is large.
FAINT = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...rgba(colour)].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (rgba(colour)[3] > 250) return colour;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!element.checkVisibility() || element.matches(":disabled, .unseen, option") || !(text || element.value)) {
      continue;
    }
    const [a, b] = [light(style.color), light(behind(element))].sort((x, y) => y - x);
    if (a / b < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.push(`${element.id} ${element.className} ${a / b}`);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices")) as found:
        yield found


@pytest.fixture
def page(one_browser: Browser, server: Running) -> Iterator[Browser]:
    with page_of(one_browser, server) as found:
        yield found


def test_the_keyboard_alone(page: Browser, server: Running) -> None:
    page.run("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        page.key("Tab")
        name = page.run("document.activeElement.id || document.activeElement.parentElement.id")
        if not name or name in seen:
            break
        seen.append(name)
        ring = "[document.activeElement, document.activeElement.closest('.script')]"
        assert page.run(f"{ring}.some((e) => e && getComputedStyle(e).outlineStyle !== 'none')"), name
    sliders = [f"{name}{end}" for name in ("speed", *server.engine.tts.defaults) for end in ("", "-slide")]
    sliders = [name for name in sliders if not name.startswith("diffusion")]  # under "More"
    beside = ["voice", "choose", "record", *sliders, "more", "seed"]
    assert seen == ["engine", "text", "speak", "format", *beside]
    page.run("$('text').focus()")
    page.key("Enter", CONTROL)
    page.until("heard.level() > 0.1")
    page.key("Escape")
    page.until("!$('stage').classList.contains('playing')")
    page.until("$('stop').hidden")
    page.run("document.querySelector('.slide').focus()")
    page.key("ArrowRight")
    assert page.run("$('speed').valueAsNumber") == pytest.approx(1.05)
    page.key("Tab", SHIFT)
    assert page.run("document.activeElement.id") == "speed"
    page.run("$('text').focus()")
    page.key("Enter", CONTROL)
    page.until("$('stage').dataset.state === 'whole'")
    assert server.engine.requests[-1].text == page.run("$('text').value")
    page.run("play.focus()")
    before = page.run("$('stage').classList.contains('playing')")
    page.key("Space")
    page.until(f"$('stage').classList.contains('playing') !== {json.dumps(before)}")


def test_everything_has_a_name(page: Browser, clip: Path) -> None:
    page.drop("#drop", clip)
    spoken(page)
    page.run("($('more').open = true, $('engine').open = true)")
    roles = {"button", "textbox", "slider", "spinbutton", "combobox", "checkbox", "link", "image", "meter", "dialog"}
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(found) > 25
    assert [node for node in found if not node["name"]["value"].strip()] == []
    names = [n["name"]["value"] for n in found if n["role"]["value"] in ("button", "textbox")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_sideways_scrolling(page: Browser, clip: Path, width: int) -> None:
    page.size(width, 700, 2, mobile=width < 700)
    spoken(page, TEXT + " " + "Donaudampfschifffahrt" * 9)
    page.drop("#drop", clip)
    page.run("($('more').open = true, $('engine').open = true)")
    write(page, "9", "temperature")
    page.click("#speak")
    page.until("$('temperature-problem').textContent")
    assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    outside = f"(e) => e.checkVisibility() && !e.matches('.unseen') && e.getBoundingClientRect().right > {width + 0.5}"
    assert page.run(f"[...document.querySelectorAll('body *')].filter({outside}).map((e) => e.outerHTML)") == []
    small = "(e) => e.checkVisibility() && e.getBoundingClientRect().height < 28"
    assert page.run(f"[...document.querySelectorAll('button, select')].filter({small}).map((e) => e.id)") == []
    page.click("#clip-keep")
    page.until("$('keep').open")
    box = page.run("(({left, right}) => [left, right])($('keep').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Browser, clip: Path, scheme: str) -> None:
    page.prefer(prefers_color_scheme=scheme)
    page.drop("#drop", clip)
    spoken(page)
    write(page, "9", "temperature")
    page.click("#speak")
    page.until("$('temperature-problem').textContent")
    page.run("($('more').open = true, $('engine').open = true)")
    assert page.run(FAINT) == []
    page.click("#clip-keep")
    assert page.run(FAINT) == []
    red, green, blue = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (max(red, green, blue) < 60) == (scheme == "dark")


def test_less_motion(page: Browser) -> None:
    page.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    assert page.run("getComputedStyle($('drop')).transitionDuration") == "0s"
    spoken(page)
    page.until("!$('stage').classList.contains('playing')")
