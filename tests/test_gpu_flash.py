"""Flash on a CUDA GPU at full size, in half precision and quantized. `-m gpu`; parity/test_flash.py has its goldens."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.quantization.config import QuantizationConfig

from .parity.conftest import checkpoint_dir, find_published_tokenizer, kept_beside, turbo_dir  # noqa: F401 (fixtures)
from .parity.oracle.checkpoint import write_flash
from .test_gpu_turbo import check_speech

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def flash_dir(tmp_path_factory: pytest.TempPathFactory, turbo_dir: Path) -> Path:  # noqa: F811
    """The full-size synthetic Flash checkpoint; its voice encoder and S3Gen are Turbo's."""
    return write_flash(kept_beside(tmp_path_factory, "flash"), turbo_dir, find_published_tokenizer())


@pytest.mark.parametrize("method", [None, "bnb-4bit", "bnb-8bit"])
def test_it_speaks(flash_dir: Path, method: str | None) -> None:
    config = QuantizationConfig(method, method, method)
    with ChatterboxTTS.from_local(flash_dir, "cuda", max_model_len=640, quantization=config, watermark=False) as tts:
        info = tts.get_quantization_info()
        assert info["t3"]["method"] == info["s3gen"]["method"] == method
        check_speech(tts)
