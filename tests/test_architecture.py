"""The house's rule: imports run downward only, and vLLM is imported in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import chatterbox_vllm

PACKAGE = Path(chatterbox_vllm.__file__).parent
# From the top floor to the ground. A room may import from its own floor's package and from every floor below.
FLOORS = (
    "cli",
    "bench server",
    "serving evaluation batch",
    "multilingual tts_turbo",
    "tts vc",
    "loaded",
    "setup",
    "engine",
    "families",
    "voices",
    "t3 s3gen",
    "quantization",
    "checkpoint",
    "audio text",
    "caches",
    "cpu cuda settings",
    "errors",
)
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
# The public face and the ways in: `import chatterbox_vllm` and `python -m chatterbox_vllm`.
FACES = ("__init__", "__main__")
VLLM = "t3/vllm"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package by its path without ".py", and its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """The full names of all modules that a module imports anywhere, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "chatterbox_vllm":
                yield from (f"chatterbox_vllm.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_run_downward() -> None:
    upward = []
    for name, tree in modules():
        room = name.partition("/")[0]
        if room in FACES:
            continue
        assert room in HEIGHT, f"{name} is on no floor: give it a room, or FLOORS a new one"
        for target in imported(tree):
            own, _, other = target.partition(".")
            other = other.partition(".")[0]
            if own != "chatterbox_vllm" or other in ("", room) or other not in HEIGHT:
                continue
            if HEIGHT[other] >= HEIGHT[room]:
                upward.append(f"{name} imports {target}")
    assert not upward, "\n".join(upward)


def test_vllm_is_imported_in_one_place() -> None:
    strangers = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if target.partition(".")[0] == "vllm" and not name.startswith(VLLM)
    ]
    assert not strangers, "\n".join(strangers)
