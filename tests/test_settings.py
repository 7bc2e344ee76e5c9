"""The table of settings says what the code takes, and docs/settings.md says what the table says.

`python -m tests.test_settings` writes the page anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.settings import (
    BY_KEYWORD,
    GROUPS,
    MAX_MODEL_LEN,
    SERVER,
    SPEECH,
    TEXT,
    VARIABLES,
    VOICE,
    Setting,
    positive,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
_HEAD = """\
# Settings

Every setting, and every way to give it: a keyword in Python, an option of the command line, a variable of the
environment. The keyword or option goes before the variable, the variable before the tier, the tier before the default.
This page is written from `src/chatterbox_vllm/settings/`.
"""


def page() -> str:
    """The text of docs/settings.md."""
    sections = [_HEAD]
    for title, settings in GROUPS.items():
        rows = [f"## {title}", ""]
        keywords = any(s.keyword for s in settings)
        heads = (
            ["keyword", "option", "variable", "default", "meaning"] if keywords else ["variable", "default", "meaning"]
        )
        rows += [_row(heads), _row("---" for _ in heads)]
        for s in settings:
            cells = [_code(s.keyword), _code(s.option)] if keywords else []
            rows.append(_row([*cells, _code(s.variable), s.shown_default, s.meaning]))
        sections.append("\n".join(rows) + "\n")
    return "\n".join(sections)


def _row(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_settings"


def test_every_variable_of_the_code_is_in_the_table() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), ROOT / "start.sh", *ROOT.glob("example*.py"), *ROOT.glob("*.md")]
    read = [path.read_text(encoding="utf-8") for path in sources if "settings" not in path.parts]
    found = {name for text in read for name in re.findall(r"\bCHATTERBOX_[A-Z0-9_]+\b", text)}
    assert found and found <= set(VARIABLES)


def keywords_of(call: object) -> dict[str, object]:
    """The keywords of a function or class, with their defaults."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(call).parameters.values()  # type: ignore[arg-type]
    return {p.name: p.default for p in parameters if p.kind not in kinds and p.name not in ("cls", "self", "ckpt_dir")}


def test_every_keyword_is_in_the_table_with_its_default() -> None:
    pytest.importorskip("vllm")
    from chatterbox_vllm.tts import ChatterboxTTS

    calls = (ChatterboxTTS.from_pretrained, ChatterboxTTS.from_pretrained_quantized, ChatterboxTTS.from_local)
    taken = {name: default for call in calls for name, default in keywords_of(call).items()}
    # What is None in `SpeechParameters` takes the family's value, but the steps those of the model.
    taken |= {"seed": SpeechParameters().seed} | dataclasses.asdict(ENGLISH.defaults) | {"diffusion_steps": None}
    assert set(taken) == {s.keyword for s in BY_KEYWORD.values() if s not in (*VOICE, *TEXT, *SERVER)}
    assert {name: default for name, default in taken.items() if default != BY_KEYWORD[name].default} == {}

    reading = keywords_of(ChatterboxTTS.generate)
    assert {s.keyword for s in (*VOICE, *TEXT, *SPEECH)} <= set(reading)
    pauses = dataclasses.asdict(reading["pauses"])
    assert BY_KEYWORD["pauses"].unset == ", ".join(f"{kind} {seconds:g}" for kind, seconds in pauses.items())
    assert reading["clean_text"] is BY_KEYWORD["clean_text"].default


def test_every_field_of_the_servers_options_is_in_the_table_with_its_default() -> None:
    from chatterbox_vllm.server.options import ServerOptions

    fields = {f.name: f.default for f in dataclasses.fields(ServerOptions) if f.name != "voices_directory"}
    assert set(fields) == {s.keyword for s in SERVER}
    told = {s.keyword: s.default for s in SERVER if s.default is not None}
    assert told == {name: fields[name] for name in told}


def test_every_setting_says_what_it_does_without_a_value() -> None:
    for group in GROUPS.values():
        for setting in group:
            assert setting.meaning and setting.shown_default != "none", setting
            assert setting.default is None or not setting.unset, setting
            named = (setting.option or "--").removeprefix("--").partition("/")[0].replace("-", "_")
            assert setting.keyword.startswith(named), setting


def test_keyword_then_variable_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTERBOX_MAX_MODEL_LEN", " 700 ")
    assert MAX_MODEL_LEN.resolve(None, positive, 5) == 700 and MAX_MODEL_LEN.resolve(3, positive, 5) == 3
    monkeypatch.setenv("CHATTERBOX_MAX_MODEL_LEN", "")
    assert MAX_MODEL_LEN.resolve(None, positive, 5) == 5
    monkeypatch.setenv("CHATTERBOX_MAX_MODEL_LEN", "long")
    with pytest.raises(ConfigError, match="variable CHATTERBOX_MAX_MODEL_LEN must be a positive integer, not 'long'"):
        MAX_MODEL_LEN.resolve(None, positive, 5)
    assert Setting("seed", "of draws", unset="drawn").resolve(None, positive, None) is None  # has no variable


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
