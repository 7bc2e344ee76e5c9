"""What deploy/ names is there: paths, commands, variables, versions, times. No image is built here."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from chatterbox_vllm.cli.serve import server_options
from chatterbox_vllm.server.gate import OPEN_PATHS
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.settings import VARIABLES
from tests.command_lines import parse

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Of Python, of the operating system, and of the hub.
_OTHERS = {
    "PATH",
    "HOME",
    "PYTHONUNBUFFERED",
    "HF_HOME",
    "HF_TOKEN",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_NO_CACHE_DIR",
}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what stands behind them."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]


def stage(number: int) -> list[tuple[str, str]]:
    """The instructions of one stage; 1 is the first."""
    found, count = [], 0
    for word, rest in instructions():
        count += word == "FROM"
        if count == number:
            found.append((word, rest))
    return found


def environment(number: int) -> dict[str, str]:
    pairs = (pair for word, rest in stage(number) if word == "ENV" for pair in shlex.split(rest))
    return dict(pair.split("=", 1) for pair in pairs)


def unit() -> dict[str, list[str]]:
    """The [Service] section of the unit: all values of each key."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (DEPLOY / "chatterbox-vllm.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif "=" in line and not line.startswith("#") and section == "[Service]":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == kept
    for source in copied:
        assert (ROOT / source).exists(), source
    assert PROJECT["readme"] in copied and set(PROJECT["license-files"]) <= copied
    assert not any(fnmatch.fnmatch(name, pattern) for name in copied for pattern in ignored if pattern[0] not in "*!#")


def test_what_is_installed_is_what_the_project_names() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    start = (ROOT / "start.sh").read_text()
    (torch,) = set(re.findall(r"torch==[\d.]+\+cpu", text))
    assert torch in re.findall(r"torch==[\d.]+\+cpu", start)
    for word in ("torchvision torchaudio torchcodec", "https://download.pytorch.org/whl/cpu", PROJECT["name"]):
        assert word in text
    assert {"cpu", "cuda", "bnb"} <= set(PROJECT["optional-dependencies"])
    (python,) = re.findall(r"^ARG PYTHON=([\d.]+)$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_image_runs_our_command_as_nobody_special() -> None:
    final = stage(2)
    words = [json.loads(rest) for word, rest in final if word in ("ENTRYPOINT", "CMD")]
    assert words[0] == ["chatterbox-vllm"] and words[0][0] in PROJECT["scripts"]
    parse(words[1])
    (user,) = [rest for word, rest in final if word == "USER"]
    assert user.split(":")[0].isdecimal() and int(user.split(":")[0]) > 0
    assert final.index(("USER", user)) > max(i for i, (word, _) in enumerate(final) if word == "RUN")
    (check,) = [rest for word, rest in final if word == "HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])
    compile(command[2], "health", "exec")
    path = re.search(r"'(/[a-z/]+)'", command[2])
    assert path is not None and path[1] in OPEN_PATHS
    volumes = json.loads(next(rest for word, rest in final if word == "VOLUME"))
    given = environment(2)
    assert {"/" + given["CHATTERBOX_VOICES"].split("/")[1], given["HOME"]} == set(volumes)
    for name in ("HF_HOME", "CHATTERBOX_VLLM_CACHE"):
        assert given[name].startswith("/cache/")
    assert next(rest for word, rest in final if word == "EXPOSE") == given["CHATTERBOX_PORT"]


def test_variables_are_ones_that_there_are_and_no_secret_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    named = set(environment(1)) | set(environment(2))
    named |= {name for service in compose()["services"].values() for name in service["environment"]}
    named |= {pair.split("=")[0] for pair in unit()["Environment"]}
    assert named <= set(VARIABLES) | _OTHERS, named - set(VARIABLES) - _OTHERS
    for name in (*environment(1), *environment(2), *(rest for word, rest in instructions() if word == "ARG")):
        assert not re.search("KEY|TOKEN|SECRET|PASSWORD", name), name
    for name, value in environment(2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHATTERBOX_API_KEYS", "correct-horse")
    options = server_options({})
    assert (options.host, options.port) == ("0.0.0.0", 8000) and not options.keyless


def test_the_compose_file() -> None:
    found = compose()
    assert set(found["services"]) == {"cuda", "cpu"}
    port, volumes = environment(2)["CHATTERBOX_PORT"], {"/cache", "/voices"}
    for name, service in found["services"].items():
        assert service["profiles"] == [name] and service["build"]["args"] == {"DEVICE": name}
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
        parse(service["command"])
        (published,) = service["ports"]
        assert "127.0.0.1:" in published and published.rsplit(":", 1)[1] == port
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert set(mounted.values()) == volumes and set(mounted) == set(found["volumes"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert seconds(service["stop_grace_period"]) > ServerOptions().drain_seconds
        # Without a key nothing starts.
        assert service["environment"]["CHATTERBOX_API_KEYS"].startswith("${CHATTERBOX_API_KEYS:?")
    assert "deploy" in found["services"]["cuda"] and "deploy" not in found["services"]["cpu"]
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_unit() -> None:
    service = unit()
    (start,) = service["ExecStart"]
    program, *words = start.split()
    assert Path(program).name in PROJECT["scripts"]
    parse(words)
    assert seconds(service["TimeoutStopSec"][0]) > ServerOptions().drain_seconds
    assert service["Restart"] == ["on-failure"] and service["DynamicUser"] == ["yes"]
    (file,) = service["EnvironmentFile"]
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert file.removeprefix("-") in page and program.removesuffix("/.venv/bin/chatterbox-vllm") in page


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd")
    path = tmp_path / "chatterbox-vllm.service"
    text = (DEPLOY / path.name).read_text()
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert not said, said
    configparser.ConfigParser(strict=False, interpolation=None).read_string(text)
