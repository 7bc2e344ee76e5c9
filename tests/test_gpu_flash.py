"""Flash on a CUDA GPU at full size, in half precision and quantized. `-m gpu`; parity/test_flash.py has its goldens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.quantization.config import QuantizationConfig

from .parity.conftest import checkpoint_dir, find_published_tokenizer, place_for, turbo_dir  # noqa: F401 (fixtures)
from .parity.oracle.checkpoint import write_flash
from .test_gpu_turbo import check_speech

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def flash_dir(tmp_path_factory: pytest.TempPathFactory, turbo_dir: Path) -> Iterator[Path]:  # noqa: F811
    """The full-size synthetic Flash checkpoint; its voice encoder and S3Gen are Turbo's."""
    with place_for(tmp_path_factory, "flash") as directory:
        yield write_flash(directory, turbo_dir, find_published_tokenizer())


@pytest.mark.parametrize("method", [None, "bnb-4bit", "bnb-8bit"])
def test_it_speaks(flash_dir: Path, method: str | None) -> None:
    config = QuantizationConfig(method, method, method)
    with ChatterboxTTS.from_local(flash_dir, "cuda", max_model_len=640, quantization=config, watermark=False) as tts:
        info = tts.get_quantization_info()
        assert info["t3"]["method"] == info["s3gen"]["method"] == method
        check_speech(tts)
