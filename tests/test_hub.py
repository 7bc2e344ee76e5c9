"""From a model's name to its files: the cache, and a hub that is a small server on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.checkpoint.reach import why_unreachable
from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import CheckpointError, ConfigError, ModelUnavailableError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.models import (
    default_model,
    download_model,
    local_directory,
    model_headers,
    resolve_converter,
    resolve_model,
)
from chatterbox_vllm.setup.quantize import quantize_model

FIRST, SECOND = "c" * 40, "d" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves commits of repositories as the hub does; remembers what was asked for and how much it sent."""

    commits: dict[str, dict[str, bytes]] = {}
    branches: dict[str, str] = {}
    asked: list[str] = []
    sent = 0
    refusal: tuple[int, str] | None = None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path != "/api/agent-harnesses":  # the library's own business
            self.asked.append(f"{self.command} {path}")
        if self.refusal is not None:
            self._send(self.refusal[0], b"", body, {"X-Error-Code": self.refusal[1]})
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/([\w-]+))?", path):
            self._as_json({"id": found[1], "sha": self._commit(found[2] or "main")}, body)
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)/tree/([\w-]+)", path):
            files = self.commits[self._commit(found[2])]
            listed = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            self._as_json(listed, body)
        elif found := re.fullmatch(r"/(\w+/\w+)/resolve/([\w-]+)/(.+)", path):
            self._file(self._commit(found[2]), found[3], body)
        else:
            self._send(404, b"", body, {})

    def _commit(self, revision: str) -> str:
        return self.branches.get(revision, revision)

    def _as_json(self, data: object, body: bool) -> None:
        if isinstance(data, dict) and data["sha"] not in self.commits:
            self._send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
            return
        self._send(200, json.dumps(data).encode(), body, {"Content-Type": "application/json"})

    def _file(self, commit: str, file: str, body: bool) -> None:
        data = self.commits[commit].get(file)
        if data is None:
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            last = min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {asked[1]}-{last}/{len(data)}"
            data, status = data[int(asked[1]) : last + 1], 206
        self._send(status, data, body, headers)

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            type(self).sent += len(data)
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    files = {file: file.encode() * 1000 for file in ENGLISH.files}
    Hub.commits = {ENGLISH.revision: files, FIRST: dict(files)}
    Hub.branches = {"main": FIRST, "v2": FIRST}
    Hub.asked, Hub.sent, Hub.refusal = [], 0, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`offline.now()`: nothing may be asked of the hub any more."""
    return SimpleNamespace(now=lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True))


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_downloads_the_pinned_revision_once(hub: type[Hub]) -> None:
    directory = resolve_model("english")
    assert files_in(directory) == hub.commits[ENGLISH.revision] and directory.name == ENGLISH.revision
    assert not [line for line in hub.asked if ENGLISH.repository not in line or ENGLISH.revision not in line]
    hub.asked.clear()
    assert resolve_model("english") == download_model("english") == directory
    assert hub.asked == []  # a commit cannot change, so a complete cache needs no hub


def test_other_files_of_a_repository_stay_there(hub: type[Hub]) -> None:
    hub.commits[FIRST] |= {"t3_other.safetensors": b"x" * 1000, CONFIG_FILE: b"{}"}
    assert set(files_in(resolve_model("someone/finetuned"))) == {*ENGLISH.files, CONFIG_FILE}


def test_a_conversion_downloads_s3gen_alone(hub: type[Hub]) -> None:
    directory = resolve_converter("english")
    assert {path.name for path in directory.iterdir()} == {ENGLISH.s3gen, ENGLISH.builtin_voice}
    hub.asked.clear()
    assert resolve_converter("english") == directory and not hub.asked
    assert resolve_model("english") == directory  # the rest comes beside it
    assert {path.name for path in directory.iterdir()} >= set(ENGLISH.files)


def test_another_repository_and_revision(hub: type[Hub]) -> None:
    del hub.commits[FIRST][ENGLISH.builtin_voice]  # a voice of its own is optional
    directory = resolve_model("someone/finetuned", revision="v2")
    assert files_in(directory) == hub.commits[FIRST]
    assert any("/api/models/someone/finetuned/revision/v2" in line for line in hub.asked)
    # The branch is looked up once; files are asked of the commit, so that all are of one.
    assert all(f"resolve/{FIRST}/" in line for line in hub.asked if "/resolve/" in line)


def test_a_branch_that_moved_is_fetched_anew(hub: type[Hub]) -> None:
    assert resolve_model("someone/finetuned").name == FIRST
    hub.commits[SECOND] = {file: b"new" + data for file, data in hub.commits[FIRST].items()}
    hub.branches["main"] = SECOND
    directory = resolve_model("someone/finetuned")
    assert directory.name == SECOND and files_in(directory) == hub.commits[SECOND]


def test_a_repository_of_something_else(hub: type[Hub]) -> None:
    del hub.commits[FIRST][ENGLISH.t3]
    with pytest.raises(ModelUnavailableError, match=r"t3_cfg\.safetensors.*is it a Chatterbox model"):
        resolve_model("someone/else")
    assert not any("/resolve/" in line and ".safetensors" in line and "GET" in line for line in hub.asked)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo"), "agree on its page at http.*HF_TOKEN"),
        ((401, "RepoNotFound"), "no repository someone/private.*HF_TOKEN"),
        ((404, "RevisionNotFound"), "someone/private has no revision 'v9'"),
        ((418, ""), r"someone/private cannot be downloaded \(.*418.*'small'"),
    ],
)
def test_what_the_hub_refuses_is_told(refusal: tuple[int, str], said: str, hub: type[Hub]) -> None:
    hub.refusal = refusal
    with pytest.raises(ModelUnavailableError, match=said):
        resolve_model("someone/private", revision="v9")
    with pytest.raises(ModelUnavailableError, match=said):
        model_headers("someone/private", revision="v9")


def test_offline_names_three_ways_out(hub: type[Hub], offline: SimpleNamespace) -> None:
    offline.now()
    for call in (resolve_model, model_headers):
        with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE is set.*directory.*HF_HOME.*'small'"):
            call("someone/finetuned")
    with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE is set.*not in the cache"):
        resolve_model("english")
    assert hub.asked == []


def test_the_classes_name_the_model_that_needs_no_hub(hub: type[Hub], offline: SimpleNamespace) -> None:
    pytest.importorskip("vllm")
    from chatterbox_vllm import ChatterboxTTS, ChatterboxVC

    offline.now()
    for published in (ChatterboxTTS, ChatterboxVC):
        with pytest.raises(ModelUnavailableError, match="not in the cache.*take the small model.*model='small'"):
            published.from_pretrained(device="cpu")


def test_a_cached_id_works_offline(
    hub: type[Hub],
    offline: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = resolve_model("someone/finetuned", revision="v2")
    hub.commits[SECOND] = dict(hub.commits[FIRST])
    hub.branches["main"] = SECOND
    second = resolve_model("someone/finetuned")
    offline.now()
    with caplog.at_level(logging.WARNING, "chatterbox_vllm"):
        assert resolve_model("someone/finetuned") == second
        assert f"taking commit {SECOND}" in caplog.text
        assert resolve_model("someone/finetuned", revision="v2") == first

    (second / ENGLISH.t3).unlink()
    assert resolve_model("someone/finetuned") == first  # the newest that is complete
    with pytest.raises(ModelUnavailableError, match=rf"in the cache commit {SECOND[:12]} lacks {ENGLISH.t3}\. Three"):
        resolve_model("someone/finetuned", revision="main")
    (first / ENGLISH.builtin_voice).unlink()  # optional, but this commit has one
    with pytest.raises(ModelUnavailableError, match=rf"{FIRST[:12]} lacks {ENGLISH.builtin_voice}"):
        resolve_model("someone/finetuned")
    # Where the cache does not know what a commit holds, as other versions of the library leave it.
    moved = shutil.copytree(tmp_path / "hub", tmp_path / "moved", symlinks=True, ignore=lambda *_: ["trees"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(moved))
    assert resolve_model("someone/finetuned").relative_to(moved).name == first.name


def test_an_interrupted_download_goes_on(hub: type[Hub], tmp_path: Path) -> None:
    directory = resolve_model("english")
    for file in (ENGLISH.s3gen, ENGLISH.builtin_voice):
        (directory / file).resolve().unlink()
        (directory / file).unlink()
    hub.asked.clear()
    assert files_in(resolve_model("english")) == hub.commits[ENGLISH.revision]
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {ENGLISH.s3gen, ENGLISH.builtin_voice}


def test_a_full_disk_is_told_before_the_download(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    hub.commits[FIRST][ENGLISH.t3] = bytes(3 << 20)
    with pytest.raises(ModelUnavailableError, match=r"needs 3 MiB more in .*hub, where 1 MiB are free.*HF_HOME"):
        resolve_model("someone/finetuned")
    assert not any("GET" in line and "/resolve/" in line for line in hub.asked)


@pytest.fixture(scope="module")
def quantized(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The babbling model with S3Gen in INT8."""
    directory = tmp_path_factory.mktemp("quantized") / "babble-int8"
    quantize_model(babbler, directory, QuantizationConfig(s3gen="bnb-8bit"))
    return directory


def test_a_quantized_repository(hub: type[Hub], quantized: Path) -> None:
    hub.commits[FIRST] = files_in(quantized)
    directory = resolve_model("someone/quantized")
    assert files_in(directory) == hub.commits[FIRST]
    assert config_of(directory).quantized.parts["s3gen"].method == "bnb-8bit"


def test_an_estimate_reads_headers_only(
    hub: type[Hub], quantized: Path, capsys: pytest.CaptureFixture[str], offline: SimpleNamespace
) -> None:
    hub.commits[FIRST] = files_in(quantized)
    headers = model_headers("someone/quantized")
    assert QuantizationMemoryEstimator(headers).tiers() == QuantizationMemoryEstimator(quantized).tiers()
    whole = sum(len(data) for data in hub.commits[FIRST].values())
    assert hub.sent < 0.05 * whole
    with pytest.raises(CheckpointError, match="only its header was fetched.*download the model"):
        headers.files["t3"].get("speech_head.weight")

    assert main(["estimate", "someone/quantized", "--tier", "4"]) == 0
    assert "4 GB" in capsys.readouterr().out
    resolve_model("someone/quantized")
    sent = hub.sent
    assert model_headers("someone/quantized").where.name == FIRST  # in the cache, so nothing is fetched
    assert hub.sent - sent < 1000
    offline.now()
    assert model_headers("someone/quantized").config == headers.config


def test_a_repository_of_another_family(hub: type[Hub], multilingual_babbler: Path, offline: SimpleNamespace) -> None:
    """Its config.json says which; the voice encoder and S3Gen are pickles, which have no header to fetch."""
    hub.commits[FIRST] = files_in(multilingual_babbler)
    headers = model_headers("someone/multilingual")
    assert headers.config == config_of(multilingual_babbler)
    assert QuantizationMemoryEstimator(headers).tiers() == QuantizationMemoryEstimator(multilingual_babbler).tiers()
    directory = resolve_model("someone/multilingual")
    assert files_in(directory) == hub.commits[FIRST]
    offline.now()
    assert resolve_model("someone/multilingual") == local_directory("someone/multilingual") == directory


def test_a_file_that_is_none(hub: type[Hub]) -> None:
    with pytest.raises(CheckpointError, match="someone/finetuned: .*is it a Chatterbox model"):
        model_headers("someone/finetuned")


class TestTheModelOfCommands:
    """What `say` and others speak with where no model is named."""

    def test_is_the_published_one_where_the_hub_answers(self, hub: type[Hub], caplog: pytest.LogCaptureFixture) -> None:
        assert default_model() == "english" and not caplog.records
        assert not any("/resolve/" in line for line in hub.asked)  # nothing is downloaded to find out
        hub.refusal = (404, "RepoNotFound")  # that is an answer: what it means is for the download to say
        assert default_model() == "english"

    def test_is_the_published_one_where_it_is_in_the_cache(
        self, hub: type[Hub], offline: SimpleNamespace, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert local_directory("english") is None
        directory = resolve_model("english")
        offline.now()
        assert default_model() == "english" and not caplog.records
        assert local_directory("english") == directory
        (directory / ENGLISH.t3).unlink()
        assert default_model() == "small" and local_directory("english") is None

    @pytest.mark.parametrize("why", ["HF_HUB_OFFLINE is set", "status 503", "did not answer within 0.2 s", "refused"])
    def test_is_the_small_one_else_and_that_is_said(
        self, why: str, hub: type[Hub], offline: SimpleNamespace, monkeypatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        if "OFFLINE" in why:
            offline.now()
        elif "503" in why:
            hub.refusal = (503, "")
        elif "refused" in why:
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        else:  # a name server that keeps silent, which nothing can hurry
            released = threading.Event()

            def silent(*_: object) -> None:
                released.wait(20)
                raise OSError("released")

            monkeypatch.setattr("chatterbox_vllm.checkpoint.hub.socket.getaddrinfo", silent)
            monkeypatch.setattr("chatterbox_vllm.setup.models.why_unreachable", lambda: why_unreachable(0.2))
        begun = time.monotonic()
        assert default_model() == "small"
        assert time.monotonic() - begun < 3
        (record,) = caplog.records
        for said in (why, "ResembleAI/chatterbox", "small", "chatterbox-vllm download english"):
            assert said in record.getMessage()
        if "did not" in why:
            released.set()

    def test_can_be_named_in_the_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CHATTERBOX_MODEL", str(tmp_path))
        assert default_model() == str(tmp_path)
        assert resolve_model() == resolve_model(None) == tmp_path
        monkeypatch.setenv("CHATTERBOX_MODEL", "")
        assert default_model() == "small"


def test_python_never_takes_another_model_than_it_was_asked_for(hub: type[Hub], offline: SimpleNamespace) -> None:
    offline.now()
    with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE.*model='small'"):
        resolve_model(None)


def test_directories_and_wrong_names(babbler: Path, tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert model_headers(babbler).where == babbler
    for name in ("no-such-model", tmp_path / "missing", "a/b/c", ""):
        for call in (resolve_model, model_headers):
            with pytest.raises(ConfigError, match="english.*small"):
                call(name)
    for name in ("babble", tmp_path):
        with pytest.raises(ConfigError, match="has no revisions: leave revision='v2' out"):
            resolve_model(name, revision="v2")
