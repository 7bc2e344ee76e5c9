"""A batch's input: rows of text, JSON lines and CSV, and what is refused of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatterbox_vllm.batch.rows import Input, Row
from chatterbox_vllm.errors import ConfigError


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def rows_of(path: Path, format: str | None = None) -> list[Row]:
    with Input(str(path), format) as source:
        return list(source.rows())


def test_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffOne.\r\n\n  Two, three. \nca\udce9f\nLast".encode("utf-8", "surrogateescape"))
    rows = rows_of(path)
    assert [(row.index, row.line, row.id, row.text) for row in rows[:2]] == [
        (0, 1, "0000000", "One."),
        (1, 3, "0000001", "Two, three."),
    ]
    assert rows[2].error == "not UTF-8; convert the input" and rows[3].text == "Last"


def test_json_lines(tmp_path: Path) -> None:
    rows = rows_of(
        write(
            tmp_path / "in.jsonl",
            {"text": "One.", "id": 7, "voice": "a.wav", "seed": 3, "max_tokens": 50.0, "top_p": None},
            "{torn",
            "[1]",
            {"text": "x", "exageration": 1},
            {"text": " "},
            {"text": 5},
            {"id": "a"},
            {"text": "x", "id": [1]},
            {"text": "x", "voice": 5},
            '{"text": "\\ud800"}',
        )
    )
    assert rows[0] == Row(0, 1, "7", "One.", "a.wav", {"seed": 3, "max_tokens": 50})
    named = [
        "not JSON",
        "JSON object",
        "'exageration'",
        "no text",
        "no text",
        "no text",
        "id must be",
        "voice",
        "UTF-8",
    ]
    for row, name in zip(rows[1:], named, strict=True):
        assert name in (row.error or ""), row


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,Text,voice,temperature,max_tokens,seed\r\na,"One, two\r\nlines.", v.wav ,0.5,100,7\r\n\r\n'
        b"b,Plain.,,,,\nc,Short.\nd,x,,hot,,\ne,one,two,3,4,5,6\nf,caf\xe9\n"
    )
    rows = rows_of(path)
    assert rows[0] == Row(0, 3, "a", "One, two\r\nlines.", "v.wav", {"temperature": 0.5, "max_tokens": 100, "seed": 7})
    assert rows[1] == Row(1, 5, "b", "Plain.") and rows[2].text == "Short."
    assert rows[3].parameters == {"temperature": "hot"}
    assert "7 cells for 6 columns" in (rows[4].error or "") and "UTF-8" in (rows[5].error or "")
    for header in ("id,voice", "text,colour", "text,text", ""):
        with pytest.raises(ConfigError, match="must name the columns"):
            rows_of(write(tmp_path / "bad.csv", header, "x"))


@pytest.mark.parametrize(
    "id", ["../up", "a/b", "a\\b", ".hidden", "..", " a", "a\n", "", "x" * 201, "é" * 101, "\ud800"]
)
def test_unsafe_ids(tmp_path: Path, id: str) -> None:
    path = write(tmp_path / "in.jsonl", {"text": "a", "id": "ok"}, {"text": "b", "id": id})
    with Input(str(path)) as source, pytest.raises(ConfigError, match=r"row 1 \(line 2, id .* an id must not"):
        source.check()


def test_ids_that_repeat(tmp_path: Path) -> None:
    texts: list[Any] = [{"text": "a"}, {"text": "b", "id": "0000000"}]
    with Input(str(write(tmp_path / "in.jsonl", *texts))) as source, pytest.raises(ConfigError) as raised:
        source.check()
    assert "row 1 (line 2, id '0000000') has the same id as row 0 (line 1" in str(raised.value)


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    with Input(str(write(tmp_path / "empty.txt", "", " "))) as source, pytest.raises(ConfigError, match="no rows"):
        source.check()
    for name, fault in (("none.txt", "cannot be read"), ("x.doc", "--format"), ("-", "--format")):
        with pytest.raises(ConfigError, match=fault):
            Input(str(tmp_path / name) if name != "-" else name)
    path = write(tmp_path / "in.txt", "One.", "Two.")
    with Input(str(path)) as source, pytest.raises(ConfigError, match="was changed"):
        for row in source.rows():
            if row.index == 0:
                write(path, "One.", "Two.", "Three.")


def test_standard_input_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"One.\nTwo.\n")))
    with Input("-", "txt") as source:
        assert source.check() == 2
        assert [row.text for row in source.rows()] == ["One.", "Two."]
