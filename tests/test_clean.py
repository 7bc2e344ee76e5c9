"""Texts that were written for the eye."""

from __future__ import annotations

import pytest

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.clean import Cleaning
from chatterbox_vllm.text.script import read_script


def read(text: str, **cleaning: object) -> list[str]:
    return [segment.text for segment in read_script(text, clean=Cleaning(**cleaning))]  # type: ignore[arg-type]


DOCUMENT = """\
# The Road

**Bold words** and `code`, an *em* and a [link](http://example.com/x?y=1&z=2), a ~~slip~~.

| Name | Age |
|------|-----|
| Ann  | 30  |

- one
- two
  - nested

3. three
4. four

> quoted
> text

```
x = 1
```

![a cat](cat.png) <b>Tom</b> &amp; Ann

---

    The end, indented.
"""


def test_markdown() -> None:
    segments = read_script(DOCUMENT, clean=True)
    assert [(segment.text, segment.pause) for segment in segments] == [
        ("The Road", 0.7),
        ("Bold words and code, an em and a link, a slip.", 0.7),
        ("Name, Age. Ann, 30.", 0.7),
        ("one. two. nested", 0.7),
        ("3. three. 4. four", 0.7),
        ("quoted text", 1.0),
        ("a cat Tom & Ann", 1.0),
        ("The end, indented.", 0.0),
    ]


def test_lines_stay_lines() -> None:
    assert read("The govern-\nment fell.\n\n## Later\n\nIt rained.") == ["The government fell.", "Later", "It rained."]
    assert read("He went home.\n\n\\* \\* \\*\n\nIt rained.") == ["He went home.", "It rained."]
    assert read("1986\\. It was late") == ["1986. It was late"]


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("See https://www.example.com/a/b?c=d_e_f#g, or not.", "See example dot com, or not."),
        ("See (http://example.co.uk:8080/).", "See (example dot co dot uk)."),
        ("At www.example.org.", "At example dot org."),
        ("Write to jo.doe@example.org!", "Write to jo dot doe at example dot org!"),
        ("<https://example.com> it is", "example dot com it is"),
        ("请看https://example.cn/a?b=1。", "请看example dot cn。"),
        ("https://example.jp/a?b=1を見てください。", "example dot jpを見てください。"),
        ("https://example.kr/a에서 보세요", "example dot kr에서 보세요"),
        ("发给jo@example.cn吧", "发给jo at example dot cn吧"),
        (
            "See https://example.com/a—it is “https://example.org/b” now",
            "See example dot com—it is “example dot org” now",
        ),
        ("https://ru.example.org/wiki/Москва есть", "ru dot example dot org есть"),
        ("[example.com/x](https://example.com/x) v1.2.3 and 3.14", "example.com/x v1.2.3 and 3.14"),
    ],
)
def test_addresses(text: str, spoken: str) -> None:
    assert read(text) == [spoken]
    assert read(text, addresses=False, markdown=False) == [text]


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("The king died.[12] His son,¹ who was young,* ruled.(3)", "The king died. His son, who was young, ruled."),
        ("Some word[^note] and word² in 5 km² of [1, 2] land†", "Some word and word in 5 km² of land"),
        ("See.[^1]\n\n[^1]: Note.", "See. Note."),
        ("He (3) saw [it] and 2*3*4", "He (3) saw [it] and 2*3*4"),
    ],
)
def test_footnotes(text: str, spoken: str) -> None:
    assert " ".join(read(text, markdown=False)) == spoken
    assert read(text, footnotes=False, markdown=False)[0] == text.partition("\n")[0]


def test_emoji() -> None:
    text = "Great news 🎉🎉 we won 👩\u200d👩\u200d👧 today! 😀 “Yes”"
    assert read(text) == ["Great news  we won  today!  “Yes”"]
    assert read(text, emoji="say") == [
        "Great news , party popper, we won , family woman woman girl, today! , grinning face, “Yes”"
    ]
    assert read(text, emoji="keep") == [text.replace("\u200d", "")]
    assert read("🎉", emoji="say") == [", party popper,"]
    with pytest.raises(ConfigError, match="no text to speak in '🎉'"):
        read("🎉")


def test_off_by_default() -> None:
    text = "**Bold** https://example.com 🎉 word[1]"
    assert [segment.text for segment in read_script(text)] == [text]


def test_pauses_and_control_tokens_in_markdown() -> None:
    segments = read_script(
        "# Title [pause:2s]\n\n[pause:1s](x) **[it]** is", clean=True, special_tokens=frozenset(("[it]",))
    )
    assert [segment.text for segment in segments] == ["Title", "(x) it is"]
    assert segments[0].pause == 3.0


@pytest.mark.parametrize("options", [{"emoji": "speak"}, {"markdown": 1}, {"footnotes": None}, {"addresses": "no"}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        Cleaning(**options)  # type: ignore[arg-type]
