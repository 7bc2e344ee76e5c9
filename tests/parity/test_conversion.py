"""A recording to another voice's waveform, with the oracle's noise, before and after the watermark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chatterbox_vllm import ChatterboxVC, ConversionRequest

from .conftest import Goldens, Parity
from .test_end_to_end import WAVEFORM_BOUND, oracle_noise

ROW = "recording to waveform"


def test_recording_to_waveform(
    checkpoint_dir: Path, goldens: Goldens, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published class does: the source's speech tokens, and S3Gen alone."""
    facts, golden = goldens.json("e2e_vc")["vc"], goldens.arrays("e2e_vc")
    source, clip = (goldens.path(facts["kwargs"][name]) for name in ("audio", "target_voice_path"))
    with ChatterboxVC.from_local(checkpoint_dir, "cpu") as vc:
        vc.set_target_voice(clip)
        prompt = vc.speaker.prompt
        parity.identical("speech tokens of a conversion: prompt", prompt.tokens[None], golden["vc_prompt_token"])
        assert [1, *prompt.mel.shape] == golden["vc_prompt_feat_shape"].tolist()
        parity.relative("enrolment for a conversion: x-vector", prompt.xvector[None], golden["vc_xvector"], 1e-4)
        parity.relative("enrolment for a conversion: mel", prompt.mel[:10], golden["vc_prompt_feat_head"], 1e-4)

        raw: list[np.ndarray] = []
        watermarker = vc._engine.voicing.watermarker
        mark = watermarker.apply
        monkeypatch.setattr(watermarker, "apply", lambda wave: raw.append(wave.copy()) or mark(wave))
        noise = oracle_noise(vc, facts["tag"], vc.speaker, facts["n_speech_tokens"])
        (result,) = vc.run([ConversionRequest(source, vc.speaker, noise=noise)])
    assert result.error is None, result.error
    parity.identical("speech tokens of a conversion: source", [result.speech_tokens], golden["vc_speech_tokens"])
    parity.relative(ROW, raw[0], golden["vc_raw"], WAVEFORM_BOUND)
    parity.relative(f"{ROW}, watermarked", result.audio, golden["vc_wav"], WAVEFORM_BOUND)
