"""Fixtures of the parity tests: goldens and the full-size synthetic checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

# The functions themselves, taken before an engine starts: vLLM then puts one that does nothing in place of the second
# in `torch`, and all tests after these ran on these tests' threads, which moves the last bits of audio.
from torch import get_num_threads, set_num_threads

from chatterbox_vllm import ChatterboxTTS

from .. import parity_table
from ..reasons import NO_TOKENIZER, NO_TURBO_TOKENIZER
from .oracle.checkpoint import write_english, write_turbo

ENGLISH_TOKENIZER = "tokenizer.json"
HERE = Path(__file__).parent
SHARED_PARITY = HERE.parents[2] / "shared" / "parity"


class Goldens:
    """A goldens directory: `.json` beside `.npz`, and the clips."""

    def __init__(self, directory: Path):
        self.directory = directory

    def path(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            pytest.skip(f"{self.directory} holds no {name}")
        return path

    def json(self, name: str) -> Any:
        return json.loads(self.path(f"{name}.json").read_text())

    def arrays(self, name: str) -> Any:
        return np.load(self.path(f"{name}.npz"))


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> Goldens:
    return Goldens(request.config.getoption("--goldens") or HERE / "goldens")


def find_published_tokenizer(name: str = ENGLISH_TOKENIZER) -> Path | None:
    """A published tokenizer's file, which this project does not carry."""
    folders = [Path(os.environ.get("CHATTERBOX_TOKENIZER", "absent/")).parent, SHARED_PARITY / "tokenizers"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def find_turbo_tokenizer() -> Path | None:
    """The directory of the published GPT-2 tokenizer with its tags, which this project does not carry."""
    candidates = [os.environ.get("CHATTERBOX_TURBO_TOKENIZER", ""), SHARED_PARITY / "tokenizers" / "turbo"]
    return next((path for path in map(Path, filter(None, candidates)) if (path / "vocab.json").is_file()), None)


@pytest.fixture(scope="session")
def turbo_tokenizer(parity: Parity) -> Path:
    found = find_turbo_tokenizer()
    if found is None:
        parity.absent("text tokens, Turbo", f"{NO_TURBO_TOKENIZER} (set CHATTERBOX_TURBO_TOKENIZER to their directory)")
    return found


@pytest.fixture(scope="session")
def published_tokenizer(parity: Parity) -> Path:
    return need_published_tokenizer(parity, ENGLISH_TOKENIZER)


def need_published_tokenizer(parity: Parity, name: str) -> Path:
    """The file, or a skipped test."""
    found = find_published_tokenizer(name)
    if found is None:
        parity.absent("text tokens", f"{NO_TOKENIZER} (set CHATTERBOX_TOKENIZER to the path of {name})")
    return found


@contextmanager
def place_for(tmp_path_factory: pytest.TempPathFactory, variant: str) -> Iterator[Path]:
    """The directory of a full-size checkpoint, up to 3 GB; it is removed afterwards.

    CHATTERBOX_PARITY_CHECKPOINT keeps English's between runs, and those of others beside it.
    """
    kept = os.environ.get("CHATTERBOX_PARITY_CHECKPOINT")
    if kept:
        yield Path(kept if variant == "english" else f"{kept}-{variant}")
        return
    directory = tmp_path_factory.mktemp(variant)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The full-size synthetic English checkpoint."""
    with place_for(tmp_path_factory, "english") as directory:
        yield write_english(directory, find_published_tokenizer())


@pytest.fixture(scope="session")
def turbo_dir(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path) -> Iterator[Path]:
    """The full-size synthetic Turbo checkpoint."""
    with place_for(tmp_path_factory, "turbo") as directory:
        yield write_turbo(directory, "turbo", find_turbo_tokenizer(), checkpoint_dir)


@pytest.fixture(scope="module")
def nano_dir(tmp_path_factory: pytest.TempPathFactory, turbo_dir: Path) -> Iterator[Path]:
    """The full-size synthetic Nano checkpoint; all but T3 is Turbo's."""
    with place_for(tmp_path_factory, "nano") as directory:
        yield write_turbo(directory, "nano", find_turbo_tokenizer(), turbo_dir)


# For this package alone: other tests are not to have its threads, nor its memory.
@pytest.fixture(scope="package")
def english(checkpoint_dir: Path) -> Iterator[ChatterboxTTS]:
    """The whole model at its full size, float32, on the CPU."""
    threads = get_num_threads()
    # Beside another process of tests, threads would wait for each other's cores.
    set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1)
    with ChatterboxTTS.from_local(checkpoint_dir, "cpu", max_model_len=256, max_batch_size=16) as tts:
        yield tts
    set_num_threads(threads)


class Parity:
    """Checks an array against its golden and remembers the error for the table.

    Args:
        model: stands before the table's rows.
    """

    def __init__(self, model: str = ""):
        self.model = model

    def absent(self, stage: str, reason: str) -> NoReturn:
        """Skip the test, and say in the table which row is short of it."""
        parity_table.note_absent(self.model + stage, reason)
        pytest.skip(reason)

    def check(self, stage: str, error: float, bound: float) -> None:
        parity_table.note(self.model + stage, float(error), bound)
        assert error <= bound, f"{stage}: error {error:.3g} is over the bound {bound:.3g}"

    def absolute(self, stage: str, got: Any, golden: Any, bound: float) -> None:
        got, golden = np.asarray(got, np.float64), np.asarray(golden, np.float64)
        assert got.shape == golden.shape, f"{stage}: shape {got.shape}, golden {golden.shape}"
        self.check(stage, np.abs(got - golden).max(initial=0.0), bound)

    def relative(self, stage: str, got: Any, golden: Any, bound: float) -> None:
        """L2 norm of the difference over the L2 norm of the golden."""
        got, golden = np.asarray(got, np.float64), np.asarray(golden, np.float64)
        assert got.shape == golden.shape, f"{stage}: shape {got.shape}, golden {golden.shape}"
        self.check(stage, np.linalg.norm(got - golden) / np.linalg.norm(golden), bound)

    def identical(self, stage: str, got: Any, golden: Any) -> None:
        got, golden = np.asarray(got), np.asarray(golden)
        assert got.shape == golden.shape, f"{stage}: shape {got.shape}, golden {golden.shape}"
        self.check(stage, np.count_nonzero(got != golden), 0)


@pytest.fixture(scope="session")
def parity() -> Parity:
    return Parity()
