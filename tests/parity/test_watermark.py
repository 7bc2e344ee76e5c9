"""The watermark on the published pipeline's own output."""

from __future__ import annotations

import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.watermark import Watermarker

BOUND = 1e-4


@pytest.fixture(scope="module")
def watermarker() -> Watermarker:
    return Watermarker()


def test_marked_waves(goldens, parity, watermarker):
    for name in sorted(path.stem for path in goldens.directory.glob("e2e_*.json")):
        arrays = goldens.arrays(name)
        for case in goldens.json(name):
            if f"{case}_raw" not in arrays:
                continue
            raw, marked = arrays[f"{case}_raw"].reshape(-1), arrays[f"{case}_wav"].reshape(-1)
            parity.absolute(f"watermark: {name} {case}", watermarker.apply(raw), marked, BOUND)


def test_published_marks_are_found(goldens, watermarker):
    arrays = goldens.arrays("e2e_english")
    for case in goldens.json("e2e_english"):
        assert watermarker.detect(arrays[f"{case}_wav"].reshape(-1), 24_000) > 0.5
    # Recorded speech is not taken for marked (the oracle's own unmarked babble is, by the published detector too).
    wave, rate = decode_audio(goldens.path("clips/rms_16k.wav"))
    assert watermarker.detect(wave, rate) < 0.5
