"""A batch's input: rows of text, JSON lines and CSV, and what is refused of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatterbox_vllm.batch import csv_rows
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
    assert rows[2].error == "text is not UTF-8 at character 3; convert the input" and rows[3].text == "Last"


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
            '{"text": "x", "voice": "\\ud800.wav"}',
            {"text": "x", "temperature": 99},
            {"text": "x", "seed": True},
            {"text": "\u200b... \U0001f389 * * *"},
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
        "text holds half of a surrogate pair at character 1",
        "voice holds half",
        "temperature must be",
        "seed must be",
        "no text",
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
    assert rows[3].line == 7 and "temperature must be a number from 0 to 5, not 'hot'" in (rows[3].error or "")
    assert "7 cells for 6 columns" in (rows[4].error or "") and "UTF-8" in (rows[5].error or "")
    for header in ("id,voice", "text,colour", "text,text", ""):
        with pytest.raises(ConfigError, match="must name the columns"):
            rows_of(write(tmp_path / "bad.csv", header, "x"))


def test_a_clips_loudness(tmp_path: Path) -> None:
    rows = [{"norm_loudness": False, "voice": "a.wav"}, {"norm_loudness": 1, "voice": "a.wav"}, {"norm_loudness": True}]
    read = rows_of(write(tmp_path / "in.jsonl", *({"text": "x"} | row for row in rows)))
    assert read[0].norm_loudness is False and read[0].error is None
    assert "norm_loudness must be true or false, not 1" in (read[1].error or "")
    assert "norm_loudness is of a clip: name one" in (read[2].error or "")
    path = write(tmp_path / "in.csv", "text,voice,norm_loudness", "x,a.wav,FALSE", "x,a.wav,", "x,a.wav,no")
    assert [row.norm_loudness for row in rows_of(path)] == [False, None, None]
    assert "true or false, not 'no'" in (rows_of(path)[2].error or "")


def csv_of(tmp_path: Path, text: str) -> list[tuple[int, str, str | None]]:
    """Line, text and error of each row."""
    path = tmp_path / "in.csv"
    path.write_bytes(text.encode())
    return [(row.line, row.text, row.error) for row in rows_of(path)]


@pytest.mark.parametrize(
    ("lines", "faulty", "spoken"),
    [
        # Never closed: in the first row, in the last, in two of them, and in one after a text of two lines.
        (['a,"Hello.', "b,Two.", "c,Three."], [2], ["Two.", "Three."]),
        (["a,One.", 'b,"Two.'], [3], ["One."]),
        (['a,"One.', "b,Two.", 'c,"Three.', "d,Four."], [2, 4], ["Two.", "Four."]),
        (['a,"One,', 'more."', 'b,"Two.', "c,Three."], [4], ["One,\nmore.", "Three."]),
        # Closed by the quote that opens another row's cell.
        (['a,"One.', 'b,"Two."', "c,Three."], [2], ["Two.", "Three."]),
        # Closed in the middle of its own cell.
        (['a,"One" she said.', "b,Two."], [2], ["Two."]),
        # Quotes inside of a cell that begins without one are characters.
        (['a,Say "one".', 'b,5 inches (5").'], [], ['Say "one".', '5 inches (5").']),
    ],
)
def test_a_quote_that_errs_costs_its_own_row(
    tmp_path: Path, lines: list[str], faulty: list[int], spoken: list[str]
) -> None:
    rows = csv_of(tmp_path, "\n".join(["id,text", *lines]))
    assert [line for line, _, error in rows if error] == faulty
    assert all("quote" in error for _, _, error in rows if error)
    assert [text for _, text, error in rows if not error] == spoken


def test_a_quote_that_is_never_closed_is_given_up_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "_MOST_LINES", 50)
    rows = csv_of(tmp_path, 'text\n"Open.\n' + "Row.\n" * 200)
    assert len(rows) == 201 and rows[0][0] == 2 and rows[0][2] and not any(error for _, _, error in rows[1:])
    assert [line for line, _, _ in rows] == list(range(2, 203))


@pytest.mark.parametrize("sign", [";", "\t", ","])
def test_delimiters_of_spreadsheets(tmp_path: Path, sign: str) -> None:
    text = 'id,Text,exaggeration,max_tokens,,\r\na,One; two.,"0,7",100,,\r\n,,,,,\r\nb,Three.,,,,\r\n,,,,,\r\n'
    if sign != ",":
        text = text.replace('"0,7"', "0#7").replace(",", sign).replace("#", ",").replace("One; two.", '"One; two."')
    path = tmp_path / "in.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for lead in ("", f"sep={sign}\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + (lead + text).encode())
        assert rows_of(path) == [
            Row(0, 2 + bool(lead), "a", "One; two.", parameters={"exaggeration": 0.7, "max_tokens": 100}),
            Row(1, 4 + bool(lead), "b", "Three."),
        ]


def test_cells_without_a_column_and_numbers_with_thousands_are_told(tmp_path: Path) -> None:
    rows = csv_of(tmp_path, 'text,,max_tokens\nOne.,,\nTwo.,mine,\nThree.,,"1,000"\n')
    assert [error for _, _, error in rows][0] is None
    assert "column 2 holds 'mine'" in (rows[1][2] or "") and "'1,000'" in (rows[2][2] or "")


def test_utf_16_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\nHello.\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="UTF-16; save it as UTF-8"):
        Input(str(path))


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
