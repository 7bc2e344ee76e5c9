"""vLLM finds T3 by the entry point that the installed package declares, and other models pay nothing for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tomllib

pytest.importorskip("vllm")

GROUP, NAME = "vllm.general_plugins", "chatterbox_t3"


@pytest.fixture(scope="module")
def entry() -> EntryPoint:
    """As the project declares it, installed or not."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return EntryPoint(NAME, project["entry-points"][GROUP][NAME], GROUP)


def test_entry_point_registers_the_architectures(entry: EntryPoint) -> None:
    entry.load()()
    from vllm import ModelRegistry

    from chatterbox_vllm.t3.vllm.gpt2_model import T3Gpt2ForSpeech
    from chatterbox_vllm.t3.vllm.model import T3ForSpeech

    assert ModelRegistry._try_load_model_cls("T3ForSpeech") is T3ForSpeech
    assert ModelRegistry._try_load_model_cls("T3Gpt2ForSpeech") is T3Gpt2ForSpeech


FOREIGN = """
import sys
from vllm import ModelRegistry
before = set(sys.modules)
from importlib.metadata import EntryPoint
EntryPoint({name!r}, {value!r}, {group!r}).load()()
assert "T3ForSpeech" in ModelRegistry.get_supported_archs()
print(*sorted(set(sys.modules) - before), sep="\\n")
"""


def test_a_process_that_serves_another_model_imports_a_few_names(entry: EntryPoint) -> None:
    script = FOREIGN.format(name=NAME, value=entry.value, group=GROUP)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    loaded = set(run.stdout.split())
    assert "chatterbox_vllm.t3.vllm.plugin" in loaded
    ours = {"chatterbox_vllm", "chatterbox_vllm.errors", "chatterbox_vllm.t3", "chatterbox_vllm.t3.vllm"}
    assert {name for name in loaded if name.startswith("chatterbox_vllm")} == ours | {"chatterbox_vllm.t3.vllm.plugin"}
    assert not loaded & {"bitsandbytes", "bitsandbytes.functional", "librosa", "safetensors"}
