"""The directory that vLLM loads T3 from: one place for one content, whole or not at all, with a way out."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from chatterbox_vllm.caches.disk import built_once
from chatterbox_vllm.t3.vllm.directory import ModelDirectory

DESCRIBED = {"hidden_size": 8}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "t3.safetensors"
    path.write_bytes(b"weights")
    return path


def test_one_place_for_one_content(cache: Path, weights: Path, tmp_path: Path) -> None:
    first = ModelDirectory(DESCRIBED, weights)
    assert (first.path / "config.json").read_text() == '{\n "hidden_size": 8\n}'
    assert (first.path / "model.safetensors").read_bytes() == b"weights"
    written = (first.path / "config.json").stat().st_ino
    first.close()
    # As a later start asks for it, through a link as a hub's cache has them.
    (tmp_path / "link").symlink_to(weights)
    assert ModelDirectory(dict(DESCRIBED), tmp_path / "link").path == first.path
    assert (first.path / "config.json").stat().st_ino == written
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"others")
    places = {first.path, ModelDirectory(DESCRIBED, other).path, ModelDirectory({"hidden_size": 9}, weights).path}
    assert set((cache / "t3").iterdir()) == places and len(places) == 3


def test_several_at_once(cache: Path, weights: Path) -> None:
    start, paths = threading.Barrier(8), []

    def make() -> None:
        start.wait()
        paths.append(ModelDirectory(DESCRIBED, weights).path)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [paths[0]] * 8 and list((cache / "t3").iterdir()) == [paths[0]]


def test_another_process_is_faster(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "place"

    def build(directory: Path, by: str = "us") -> None:
        (directory / "by").write_text(by)
        if by == "us":
            built_once(place, lambda directory: build(directory, "them"))

    built_once(place, build)
    assert (place / "by").read_text() == "them" and list(place.parent.iterdir()) == [place]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_once(tmp_path / "cache" / "place", build)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("fault", ["unwritable", "changed", "homeless"])
def test_a_temporary_one_where_it_must_be(
    fault: str, cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "unwritable":
        cache.write_text("a file, which root cannot write below either")
    elif fault == "changed":
        (ModelDirectory(DESCRIBED, weights).path / "config.json").write_text("{}")
    else:
        for variable in ("CHATTERBOX_VLLM_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with caplog.at_level(logging.WARNING, logger="chatterbox_vllm"):
        directory = ModelDirectory(DESCRIBED, weights)
    assert "the next start" in caplog.text and "set CHATTERBOX_VLLM_CACHE" in caplog.text
    assert cache not in directory.path.parents
    assert (directory.path / "config.json").read_text() == '{\n "hidden_size": 8\n}'
    assert (directory.path / "model.safetensors").read_bytes() == b"weights"
    directory.close()
    assert not directory.path.exists()
