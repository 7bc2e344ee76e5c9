"""From a model's name to its directory: the cache, and a hub that is a small server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from chatterbox_vllm.errors import ConfigError, ModelUnavailableError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.setup.models import resolve_model


class Hub(BaseHTTPRequestHandler):
    """Serves `files` of one repository as the hub does; remembers what was asked for."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        _, owner, name, resolve, revision, file = self.path.split("?")[0].split("/", 5)
        data = self.files.get(file)
        self.asked.append(f"{self.command} {owner}/{name}@{revision} {file}")
        if data is None or resolve != "resolve":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision if len(revision) == 40 else "c" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files = {file: file.encode() * 1000 for file in ENGLISH.files}
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_downloads_the_pinned_revision_once(hub: type[Hub]) -> None:
    directory = resolve_model("english")
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == hub.files
    assert all(f"{ENGLISH.repository}@{ENGLISH.revision}" in line for line in hub.asked)
    hub.asked.clear()
    assert resolve_model("english") == directory
    assert hub.asked == []  # a commit cannot change, so a complete cache needs no hub


def test_another_repository_and_revision(hub: type[Hub]) -> None:
    del hub.files[ENGLISH.builtin_voice]  # a voice of its own is optional
    directory = resolve_model("someone/finetuned", revision="v2")
    assert {p.name for p in directory.iterdir()} == set(hub.files)
    assert any("GET someone/finetuned@" in line for line in hub.asked)


def test_a_repository_of_something_else(hub: type[Hub]) -> None:
    del hub.files[ENGLISH.t3]
    with pytest.raises(ModelUnavailableError, match=r"t3_cfg\.safetensors.*is it a Chatterbox model"):
        resolve_model("someone/else")


def test_offline_names_three_ways_out(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="directory.*HF_HOME.*'demo'"):
        resolve_model("english")


def test_directories_and_wrong_names(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    for name in ("no-such-model", tmp_path / "missing", "a/b/c", ""):
        with pytest.raises(ConfigError, match="english"):
            resolve_model(name)
