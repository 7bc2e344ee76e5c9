"""Options and settings of the whole test run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import parity_table
from .reasons import refuse_unnamed_skip

# Spin-waiting OpenMP threads on shared cores cost an order of magnitude; vLLM must not pin cores either.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens", type=Path, default=None, help="parity goldens to test against (default: those kept in the tests)"
    )


PARITY = Path(__file__).parent / "parity"


def _skipped_markers(config: pytest.Config) -> dict[str, str]:
    """Markers that this run leaves out, and what brings them in. Whoever gives -m has chosen already."""
    return {} if config.option.markexpr else {"gpu": "-m gpu"}


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"left out: tests marked {name} (run them with: {way})" for name, way in _skipped_markers(config).items()]


# First of all hooks, so that -m full_size sees the marker.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(PARITY):
            item.add_marker("full_size")
    skipped = _skipped_markers(config)
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in skipped)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests, a file's go to one of them, and all of parity to the first.

    A file's models serve all its tests, and there is memory for the full-size model once. `--dist loadgroup` would
    say the same, but pytest 9 does not show pytest-xdist 3.8 the groups.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/parity" if nodeid.startswith("tests/parity/") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # by the number of tests; parity, which takes longest, would not be first
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_unnamed_skip(report)
    parity_table.attach(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a process of several says to the one that prints: tests of bad texts log halves of surrogate pairs."""

    def sendable(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, dict):
            return {key: sendable(each) for key, each in value.items()}
        return type(value)(map(sendable, value)) if isinstance(value, list | tuple) else value

    return sendable((yield))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    parity_table.collect(report)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    parity_table.write(terminalreporter)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_unnamed_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def garbage_is_looked_for_once() -> Iterator[None]:
    """Where an engine ends, ours is the one look for garbage. vLLM's two before it would find what it finds.

    Each goes through all that these tests have imported, a second or more, and about a hundred engines end.
    """
    collect = gc.collect

    def unless_vllm_asks(generation: int = 2) -> int:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return 0 if asks.startswith("vllm.") else collect(generation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", unless_vllm_asks)
        yield


@pytest.fixture(scope="session")
def babbler(own_cache: None) -> Path:
    """The babbling checkpoint, built anew in the cache of this run, where `--model babble` finds it, too."""
    from chatterbox_vllm.families.babble import babble_directory

    return babble_directory()


@pytest.fixture(scope="session")
def turbo_babbler(own_cache: None) -> Path:
    """Turbo's babbling checkpoint, likewise."""
    from chatterbox_vllm.families.babble_turbo import babble_turbo_directory

    return babble_turbo_directory()


@pytest.fixture(scope="session")
def multilingual_babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A babbling checkpoint of the multilingual model, in the pickles that it is published in."""
    from chatterbox_vllm.families.babble import MULTILINGUAL_BABBLE_CONFIG, build_babble

    directory = tmp_path_factory.mktemp("multilingual-babble")
    build_babble(directory, MULTILINGUAL_BABBLE_CONFIG)
    return directory


@pytest.fixture(scope="session")
def small() -> Iterator[Any]:
    """The small model in an engine that all tests of what is said share. They take it through `speaker`."""
    pytest.importorskip("vllm")
    from chatterbox_vllm.tts import ChatterboxTTS

    with ChatterboxTTS.from_pretrained("small", "cpu", max_batch_size=4, max_model_len=512, watermark=False) as tts:
        yield tts


@pytest.fixture
def speaker(small: Any) -> Iterator[Any]:
    """The small model, speaking; the voice in use is put back after the test."""
    before = small.conds
    yield small
    small.conds = before


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a voice, in a file that bears its speaker's name."""
    from tests.fake_server import a_clip

    file = tmp_path_factory.mktemp("clips") / "Anna.wav"
    file.write_bytes(a_clip())
    return file


@pytest.fixture(scope="module")
def one_browser(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser that all tests of a file share, with the clip at its microphone."""
    from tests.pages import listening

    with listening(tmp_path_factory.mktemp("browser"), clip) as found:
        yield found


@pytest.fixture
def no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library cannot be imported."""
    from chatterbox_vllm.quantization.storage import require_bitsandbytes

    require_bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
