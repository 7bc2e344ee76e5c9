"""start.sh: what it passes on, what it answers without an installation, and what it says where something is missing."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chatterbox_vllm import __version__

ROOT = Path(__file__).parents[1]


def start(directory: Path, extras: str, *given: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess:
    """Run start.sh in a directory whose environment counts as installed, with a Python that says what it was told."""
    for file in ("start.sh", "pyproject.toml"):
        shutil.copy(ROOT / file, directory)
    python = directory / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\nprintf "%s\\n" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    digest = hashlib.sha256((directory / "pyproject.toml").read_bytes()).hexdigest()[:32]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (directory / ".venv" / ".chatterbox-vllm").write_text(f"{digest} cpu {version} {directory.resolve()}\n{extras}\n")
    return run(directory, *given, path=path)


def run(directory: Path, *given: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess:
    return subprocess.run(
        [shutil.which("bash"), directory / "start.sh", *given],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": path, "CHATTERBOX_VLLM_EXTRA": "cpu", "OMP_NUM_THREADS": "1"},  # as tests are told to run
    )


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["--ultra-low-vram", "say", "Hi."], ["say", "--tier", "4", "Hi."]),
        (["--low-vram", "say"], ["say", "--tier", "6"]),
        (["--ultra-low-vram", "serve", "--port", "9000"], ["serve", "--tier", "4", "--port", "9000"]),
        (["--medium-vram", "batch", "in.txt"], ["batch", "--tier", "8", "in.txt"]),
        (["--high-vram", "bench"], ["bench", "--tier", "24"]),
        (["--tier", "auto", "say"], ["say", "--tier", "auto"]),
        (["--tier=12", "say", "--", "-Hi."], ["say", "--tier=12", "--", "-Hi."]),
        (["say", "--tier", "12"], ["say", "--tier", "12"]),
        (["--version"], ["--version"]),
    ],
)
def test_start_passes_tiers_on(given: list[str], passed: list[str], tmp_path: Path) -> None:
    done = start(tmp_path, "cpu bnb", *given)
    assert done.stdout.splitlines() == ["-m", "chatterbox_vllm", *passed], done.stderr


def test_start_installs_what_small_tiers_need(tmp_path: Path) -> None:
    """Also where an environment was made without it."""
    done = start(tmp_path, "cpu dev", "--ultra-low-vram", "say", "Hi.")
    assert f"{tmp_path.resolve()}[cpu,bnb,dev]" in done.stderr
    assert (tmp_path / ".venv" / ".chatterbox-vllm").read_text().splitlines()[1] == "cpu bnb dev"
    assert done.stdout.splitlines()[-3:] == ["--tier", "4", "Hi."]


def test_every_installation_is_of_the_checkout_itself() -> None:
    """A copy of it would hide what changes afterwards from the commands and from the tests."""
    installs = [
        line for line in (ROOT / "start.sh").read_text().splitlines() if "install" in line and '"${here}[' in line
    ]
    assert len(installs) == 3 and all("--editable" in line for line in installs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--low-vram", "test"], "--tier 6 needs a command that it lays out"),
        (["--low-vram", "say", "Hi.", "--tier", "4"], "--tier 6 and --tier: give one of the two"),
        (["--tier", "say", "Hi."], "--tier needs the memory"),
        (["--low-vram"], "needs a command"),
    ],
)
def test_start_refuses_tiers_that_would_get_lost(given: list[str], said: str, tmp_path: Path) -> None:
    done = start(tmp_path, "cpu bnb", *given)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed."""
    for file in ("start.sh", "pyproject.toml", "src/chatterbox_vllm/__init__.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


@pytest.mark.parametrize("given", [["--help"], ["-h"], [], ["--version"]], ids=" ".join)
def test_help_and_version_install_nothing(given: list[str], fresh: Path) -> None:
    done = run(fresh, *given)
    assert done.returncode == 0 and not done.stderr and not (fresh / ".venv").exists()
    if given == ["--version"]:
        assert done.stdout == f"chatterbox-vllm {__version__}\n"
    else:
        assert "./start.sh test" in done.stdout and "CHATTERBOX_VLLM_PYTHON" in done.stdout
        assert "set -" not in done.stdout and "#" not in done.stdout


def test_without_a_python_it_says_where_to_get_one(fresh: Path) -> None:
    tools = fresh / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "readlink", "uname", "sed", "head", "flock", "cut", "sha256sum"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run(fresh, "say", "Hi.", path=str(tools))
    assert done.returncode == 2 and not (fresh / ".venv").exists()
    for way in ("Ubuntu 22.04", "ppa:deadsnakes/ppa", "uv python install", "python3-venv"):
        assert way in done.stderr


def test_it_is_bash_and_installs_what_the_project_names() -> None:
    assert subprocess.run(["bash", "-n", ROOT / "start.sh"], check=False).returncode == 0
    script, project = ((ROOT / file).read_text(encoding="utf-8") for file in ("start.sh", "pyproject.toml"))
    assert "pins torch==2.13.0+cpu" in project and "torch_cpu=torch==2.13.0+cpu" in script


@pytest.mark.parametrize(
    ("cores", "kilobytes", "given", "passed"),
    [
        (2, 20_000_000, [], ["-n", "2"]),
        (8, 18_000_000, [], ["-n", "2"]),
        (1, 20_000_000, [], []),
        (2, 17_999_999, [], []),
        (2, 20_000_000, ["tests/test_start.py"], ["tests/test_start.py"]),
    ],
)
def test_all_tests_share_two_cores(
    cores: int, kilobytes: int, given: list[str], passed: list[str], tmp_path: Path
) -> None:
    """Where there are two, and memory for both; what is named runs in one process."""
    tools = tmp_path / "tools"
    tools.mkdir()
    facts = f"MemTotal: 99999999 kB\nMemAvailable: {kilobytes} kB\n"
    (tools / "nproc").write_text(f"#!/bin/sh\necho ${{OMP_NUM_THREADS:-{cores}}}\n")  # as the real one does
    (tools / "awk").write_text(f"#!/bin/sh\nprintf '{facts}' | {shutil.which('awk')} \"$1\"\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    done = start(tmp_path, "cpu bnb dev", "test", *given, path=f"{tools}:/usr/bin:/bin")
    assert done.stdout.splitlines() == ["-m", "pytest", *passed], done.stderr
