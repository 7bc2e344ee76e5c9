"""What commands have in common: options from the table of settings, words in errors, how much is said, tables."""

from __future__ import annotations

import inspect
import io
import logging
import re
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer

from chatterbox_vllm.audio.encode import FORMATS
from chatterbox_vllm.cli import main
from chatterbox_vllm.cli.arguments import Command, Strategy, from_settings, setting_type
from chatterbox_vllm.cli.audio import AudioFormat
from chatterbox_vllm.cli.run import Commands
from chatterbox_vllm.cli.tables import Grid, drawn, of_rows, show
from chatterbox_vllm.cli.texts import given_text, read_texts
from chatterbox_vllm.cli.verbosity import shown
from chatterbox_vllm.cli.wording import as_typed
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import AUTO, STRATEGIES
from chatterbox_vllm.settings import BY_KEYWORD, GROUPS
from tests.command_lines import all_commands, options_of

OPTIONS = {
    "max_model_len": "--max-model-len",
    "dtype": "--dtype",
    "device": "--device",
    "seed": "--seed",
    "cuda_graphs": "--cuda-graphs/--no-cuda-graphs",
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_model_len must be a positive integer, not 0", "--max-model-len must be a positive integer, not 0"),
        ("with max_model_len=2048, and more", "with --max-model-len 2048, and more"),
        ("lower max_model_len.", "lower --max-model-len."),
        ("use dtype='bfloat16' or 'float16'", "use --dtype bfloat16 or 'float16'"),
        ("use device='cpu'.", "use --device cpu."),
        (
            "cuda_graphs=True needs CUDA; cuda_graphs=False does not",
            "--cuda-graphs needs CUDA; --no-cuda-graphs does not",
        ),
        ("device must be auto, not 'seed'", "--device must be auto, not 'seed'"),
        # Words and paths that are no keywords.
        ("no such device in seed /tmp/max_model_len/x.wav", "no such device in seed /tmp/max_model_len/x.wav"),
        ("not 'max_model_len' and not s3gen_dtype", "not 'max_model_len' and not s3gen_dtype"),
    ],
)
def test_errors_name_options(message: str, expected: str) -> None:
    assert as_typed(message, OPTIONS) == expected


def test_every_setting_has_one_option() -> None:
    """Where a command has a setting, its option is spelled as the table says."""
    by_name = {
        name: setting.option.split("/")[0]
        for group in GROUPS.values()
        for setting in group
        if setting.option and (name := setting.keyword)
    }
    commands = {name.partition(" ")[2]: command for name, command in all_commands()}
    assert set(by_name) <= {parameter.name for name in ("say", "serve") for parameter in commands[name].params}
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name in by_name:
                assert parameter.opts[0] == by_name[parameter.name], name
    # Earlier spellings, which scripts use.
    earlier = {
        "say": {"--steps", "--quantization", "--no-cuda-graphs", "--no-watermark", "-o", "-f"},
        "batch": {"--steps", "--quantization", "-d"},
        "bench": {"--batch", "--steps", "--text"},
        "estimate": {"--quantization"},
        "evaluate": {"--batch", "--steps", "--text"},
        "methods": {"--batch"},
        "quantize": {"--method", "--s3gen", "--voice-encoder", "--strategy", "--texts", "--no-double-quant"},
    }
    for name, options in earlier.items():
        assert options <= options_of(commands[name])


def test_numbers_and_flags_are_read_as_such() -> None:
    pytest.importorskip("vllm")
    from chatterbox_vllm.tts import ChatterboxTTS

    calls = (ChatterboxTTS.from_local, SpeechParameters)
    taken = {name: p.annotation for call in calls for name, p in inspect.signature(call).parameters.items()}
    typed = {name: {"int", "float", "bool", "str"} & {*re.findall(r"\w+", kind)} for name, kind in taken.items()}
    numbers = {name: kinds for name, kinds in typed.items() if kinds and "str" not in kinds}
    read = {name: setting_type(BY_KEYWORD[name]).__name__ for name in numbers if BY_KEYWORD[name].option}
    assert {"multi_step", "kv_cache_bytes", "temperature", "watermark"} <= set(read)
    assert {name: kind for name, kind in read.items() if kind not in numbers[name]} == {}


def test_choices_are_those_of_the_library() -> None:
    assert set(get_args(Strategy)) == {*STRATEGIES, AUTO}
    # Bare samples go to standard output alone: as a file nothing could play them.
    assert {f".{name}" for name in get_args(AudioFormat)} == {*FORMATS, ".pcm"}


def read(*words: str) -> dict:
    """What a command with one option to repeat and --json makes of its words."""
    app = typer.Typer(cls=Commands)
    seen: dict = {}
    usual = ["a"]

    @from_settings()
    def some(
        *, only: Annotated[list[str], typer.Option()] = usual, json: Annotated[str | None, typer.Option()] = None
    ) -> None:
        seen.update(only=only, json=json)

    app.command(cls=Command)(some)
    app.callback()(lambda: None)
    assert typer.main.get_command(app).main(["some", *words], standalone_mode=False) == 0
    return seen


def test_options_that_may_be_repeated_take_several_words() -> None:
    assert read() == {"only": ["a"], "json": None}
    assert read("--only", "b", "c", "--json", "x") == {"only": ["b", "c"], "json": "x"}
    assert read("--json", "-", "--only", "b", "--only", "c") == {"only": ["b", "c"], "json": "-"}
    assert read("--json", "--only", "b") == {"only": ["b"], "json": "-"}
    assert read("--only", "b", "--json") == {"only": ["b"], "json": "-"}


def said(verbose: int, quiet: bool, capsys: pytest.CaptureFixture[str]) -> list[str]:
    logger = logging.getLogger("chatterbox_vllm.some")
    with shown(verbose, quiet):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "%s", logging.getLevelName(level))
    return [line.removeprefix("chatterbox-vllm: ") for line in capsys.readouterr().err.splitlines()]


def test_verbose_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("chatterbox_vllm").level
    assert said(0, False, capsys) == ["warning: WARNING", "error: ERROR"]
    assert said(0, True, capsys) == ["error: ERROR"]
    assert said(1, False, capsys) == ["info: INFO", "warning: WARNING", "error: ERROR"]
    assert said(2, False, capsys)[0] == "debug: DEBUG"
    ours = logging.getLogger("chatterbox_vllm")
    assert ours.level == before and ours.propagate and not ours.handlers
    # Where an error rose.
    assert main(["say", "...", "-o", "x.wav", "-vv"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_tables() -> None:
    rows = [{"stage": "T3", "batch": 1, "median": 12.3456}, {"stage": "T3", "batch": 128, "median": 23684.4}]
    assert drawn(of_rows(rows)).splitlines() == ["stage  batch  median", "T3         1   12.35", "T3       128  23,684"]
    single = of_rows([{"failed": [], "peak MiB": None, "graphs": True, "settings": {"steps": 10}}], "Bench")
    assert drawn(single).splitlines() == [
        "Bench",
        "failed    none",
        "peak MiB  -",
        "graphs    yes",
        "settings  steps 10",
    ]
    assert "╭" in drawn(of_rows(rows), terminal=True) and "12.35" in drawn(of_rows(rows), terminal=True)
    # Never broken where a program reads it, and no markup in what is not ours.
    long = Grid("", [("[red]" + "x" * 300, "y")])
    file = io.StringIO()
    show(long, long, file=file)
    assert file.getvalue() == "\n\n".join([f"[red]{'x' * 300}  y"] * 2) + "\n"


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffGood morning.\n\n  Good night. \n".encode())
    assert given_text(None, path) == "Good morning.\n\n  Good night. \n"
    assert read_texts(path) == ["Good morning.", "Good night."]
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no text"):
        read_texts(path)
    with pytest.raises(ConfigError, match="no text to speak"):
        given_text(None, path)
