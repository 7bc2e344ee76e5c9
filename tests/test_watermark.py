"""The watermark: it is found, and not heard."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from chatterbox_vllm.audio import watermark
from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.audio.resample_filter import filter_resample
from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.errors import ConfigError

CLIPS = Path(__file__).parent / "parity" / "goldens" / "clips"


@pytest.fixture(scope="module")
def watermarker() -> Watermarker:
    return Watermarker()


def speech() -> np.ndarray:
    import librosa

    wave, rate = decode_audio(CLIPS / "rms_16k.wav")
    return librosa.resample(wave, orig_sr=rate, target_sr=24000)


def test_watermark_is_found_and_inaudible(watermarker: Watermarker, capfd: pytest.CaptureFixture[str]):
    wave = speech()
    marked = watermarker.apply(wave)
    assert marked.dtype == np.float32
    assert marked.shape == wave.shape
    assert 0 < np.sqrt(np.mean((marked - wave) ** 2)) < 0.3 * np.sqrt(np.mean(wave**2))
    assert watermarker.detect(marked, 24000) > 0.9
    assert watermarker.detect(wave, 24000) < 0.1
    assert capfd.readouterr().out == ""


def test_the_mark_of_a_gpu_is_that_of_a_cpu(watermarker: Watermarker, monkeypatch: pytest.MonkeyPatch):
    """What differs there is how it is resampled."""
    wave = speech()
    marked = watermarker.apply(wave)
    monkeypatch.setattr(watermark, "_resampled", filter_resample)
    on_gpu = watermarker.apply(wave)
    assert not np.array_equal(on_gpu, marked)
    np.testing.assert_allclose(on_gpu, marked, rtol=0, atol=5e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_watermark_survives_the_file(tmp_path: Path, watermarker: Watermarker, suffix: str):
    path = write_audio(tmp_path / f"marked{suffix}", watermarker.apply(speech()), 24000)
    assert watermarker.detect(*decode_audio(path)) > 0.5


@pytest.mark.parametrize("samples", [0, 1, 100, 239, 241, 767, 960, 2401, 24001])
def test_watermark_of_any_length(watermarker: Watermarker, samples: int):
    marked = watermarker.apply(speech()[8000 : 8000 + samples])
    assert len(marked) == samples
    assert np.isfinite(marked).all()
    assert 0 <= watermarker.detect(marked, 24000) <= 1


def test_silence_stays_silent(watermarker: Watermarker):
    silence = np.zeros(24000, np.float32)
    np.testing.assert_allclose(watermarker.apply(silence), 0, atol=1e-6)
    assert watermarker.detect(silence, 24000) == 0


def test_the_watermark_needs_no_pkg_resources(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    Watermarker().load()


def test_missing_perth_names_the_switch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "perth.perth_net.perth_net_implicit.model.perth_net", None)
    with pytest.raises(ConfigError, match=r"cannot be loaded .*watermark=False"):
        Watermarker().load()
    with pytest.raises(ConfigError, match=r"cannot be loaded .*watermark=False"):
        Watermarker().apply(np.zeros(100, np.float32))
