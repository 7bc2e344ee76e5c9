"""ULTRA_LOW_VRAM.md says what the code does: its table, its names, its commands and its example."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm.quantization.config import STRATEGIES
from chatterbox_vllm.setup.tiers import GIB, TIERS, Tier
from tests.command_lines import parse

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ULTRA_LOW_VRAM.md").read_text(encoding="utf-8")
METHODS = {"bnb-4bit": "NF4", "bnb-8bit": "INT8", None: "not quantized"}
ENROLMENT = {"cpu": "on the CPU", "released": "loaded for each enrolment", "kept": "on the card"}


def row(tier: Tier) -> list[str]:
    plan, methods = tier.plan, tier.plan.quantization
    return [
        str(tier.gb),
        f"{tier.budget / GIB:g}",
        *(METHODS[method] for method in (methods.t3, methods.s3gen, methods.voice_encoder)),
        str(plan.max_model_len),
        str(plan.max_batch_size),
        str(plan.max_batched_tokens),
        "vLLM's own sizes" if plan.graph_sizes is None else ", ".join(map(str, plan.graph_sizes)),
        f"{plan.s3gen_batch} / {plan.s3gen_frames}",
        ENROLMENT[plan.enrolment],
    ]


def test_the_table_is_the_tiers() -> None:
    section = TEXT.partition("## What a tier holds")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[2:] == [row(tier) for tier in TIERS]
    # Nothing of the plan is left out: quantization, the KV cache (computed, said below the table) and what follows.
    assert len(rows[0]) == len(rows[2]) and all(tier.plan.kv_cache_bytes is None for tier in TIERS)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_commands_are_ones_that_there_are() -> None:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    switches = (ROOT / "start.sh").read_text(encoding="utf-8")
    known = {"chatterbox-vllm": 0, "./start.sh": 0, "python": 0}
    for line in lines:
        program, *words = shlex.split(line)
        known[program] += 1
        if program == "python":
            assert (ROOT / words[0]).is_file()
            continue
        if program == "./start.sh":
            assert f"        {words[0]})" in switches
            words = words[1:]
        parse(words)  # fails where it knows an option not
    assert all(known.values())


def test_names_are_ones_that_there_are() -> None:
    assert all(f"`{strategy}`" in TEXT for strategy in STRATEGIES)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    variables = set(re.findall(r"CHATTERBOX_[A-Z0-9_]+", TEXT))
    assert variables and all(f'"{name}"' in sources for name in variables)
    for path in re.findall(r"`((?:src|benchmarks)/[\w/.-]*)`", TEXT):
        assert (ROOT / path).exists(), path
    for block in blocks("python"):
        compile(block, "ULTRA_LOW_VRAM.md", "exec")


def test_the_monitored_example_runs(babbler: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (example,) = (block for block in blocks("python") if "MonitoredChatterbox" in block)
    assert example.count('"english"') == 1
    program = example.replace('"english"', f'{str(babbler)!r}, "cpu"')
    # A command that another test ran in this process may have left vLLM's log switched on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d{4,} Figures\(results=1, failure_rate=0\.0, .*\) \[\]\n", done.stdout), done.stdout
