"""S3Gen's flows and vocoder against the goldens, and a batch of other lengths and voices against each row alone.

The reference conditioning of a case comes from the recipe (`tag/ptok`, `tag/pfeat`, `tag/xvec`) or from a clip that the
goldens do not name: the one whose length gives the case's prompt frames. The vocoder-only case shares the clip of the
case "main". That clip is a recording which this project does not carry; where it is not at hand, its cases are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest, fade_in
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.vocoder.source import SAMPLE_RATE
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.voice import Voice

from ..reasons import NO_CLIP
from .conftest import SHARED_PARITY, Goldens, Parity
from .oracle import weights_recipe as recipe

FLOW_ENCODER = ESTIMATOR = 1e-4
SPEAKER = 1e-4
MEL = 1e-3
F0 = 2e-3  # Hz; float32 is up to 7e-4 from float64
HIFT = 1e-4
WAVEFORM = 5e-3
BATCHED = 1e-5
# Hz. The goldens' pitch is float32 and ours, on a CPU, float64: they are up to 7e-4 apart. The source sums pitch over
# time, so that the difference grows: 2.5e-4 of the source after 0.4 s, 1e-3 after 1.6 s.
PITCH_NOISE = 1e-3

# By the goldens' file: what its rows of the table begin with, and its cases.
FLOWS = {
    "s3gen_standard": ("", ("main", "oddref", "tiny", "main_4step")),
    "s3gen_meanflow": ("meanflow, ", ("main", "oddref", "tiny", "main_1step")),
}
HARMONICS, MELS, FRAME = 9, 80, 480


@pytest.fixture(autouse=True, scope="module")
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test for each flow, and one test for each of its cases."""
    if "name" in metafunc.fixturenames:
        cases = [(flow, name) for flow, (_, names) in FLOWS.items() for name in names]
        metafunc.parametrize(("flow", "name"), cases, scope="module", indirect=["flow"])
    elif "flow" in metafunc.fixturenames:
        metafunc.parametrize("flow", FLOWS, scope="module", indirect=True)


@pytest.fixture(scope="module")
def flow(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(flow: str, checkpoint_dir: Path, turbo_dir: Path) -> Path:
    """The checkpoint that holds the flow."""
    return turbo_dir if flow == "s3gen_meanflow" else checkpoint_dir


@pytest.fixture(scope="module")
def model(directory: Path) -> S3Gen:
    config = config_of(directory)
    return S3Gen.from_weights(config.s3gen, Weights(directory / family_of(config.family).s3gen), "cpu")


@pytest.fixture
def row(flow: str) -> str:
    """What the names of the flow's rows in the table begin with."""
    return FLOWS[flow][0]


class Oracle:
    """Inputs of the golden cases."""

    def __init__(self, goldens: Goldens, flow: str, model: S3Gen, english: Path, parity: Parity):
        self.about, self.arrays = goldens.json(flow), goldens.arrays(flow)
        self.model, self.english, self.parity, self.row = model, english, parity, FLOWS[flow][0]
        self.clips = [*(goldens.directory / "clips").glob("*"), *(SHARED_PARITY.parent / "data" / "clips").glob("*")]
        self._enrolled: dict[int, list[FlowPrompt]] = {}

    def request(self, name: str) -> S3GenRequest:
        if name not in self.about["cases"]:
            pytest.skip(f"the goldens hold no case {name!r}")
        case = self.about["cases"][name]
        tokens = torch.from_numpy(self.arrays[f"{name}_speech_tokens"]).long()
        frames = 2 * (case["prompt_tokens"] + case["n_tokens"])
        z = _noise(f"{case['tag']}/cfm_z", MELS, frames)
        if self.model.config.flow.meanflow:
            z[:, -2 * len(tokens) :] = _noise(f"{case['tag']}/mf_noise", MELS, 2 * len(tokens))
        return S3GenRequest(tokens, self.prompt(name), _source_noise(case["tag"], case["mel_frames"], z))

    def prompt(self, name: str) -> FlowPrompt:
        case = self.about["cases"][name]
        speaker = torch.from_numpy(self.arrays[f"{name}_spks"][0])
        xvector = _noise(f"{case['tag']}/xvec", 192)
        if torch.allclose(_speaker(self.model, xvector), speaker, atol=1e-3):
            tokens = torch.from_numpy(recipe.randint(f"{case['tag']}/ptok", case["prompt_tokens"], 6561))
            return FlowPrompt(tokens, 2 * _noise(f"{case['tag']}/pfeat", case["prompt_frames"], MELS) - 4, xvector)
        return self._enrol(case["prompt_frames"], speaker)

    def _enrol(self, frames: int, speaker: torch.Tensor) -> FlowPrompt:
        if frames not in self._enrolled:
            # Enrolled by the English checkpoint's nets, whichever flow goes on from it.
            files = (Weights(self.english / f"{part}.safetensors") for part in ("s3gen", "ve"))
            enroller = VoiceEnroller(ModelConfig(), *files)
            waves = [decode_audio(clip) for clip in self.clips]
            fitting = [(w, r) for w, r in waves if abs(min(len(w) / r, 10) * 50 - frames) < 2]
            prompts = [enroller.enrol(wave, rate).prompt for wave, rate in fitting]
            self._enrolled[frames] = [prompt for prompt in prompts if len(prompt.mel) == frames]
        for prompt in self._enrolled[frames]:
            if torch.allclose(_speaker(self.model, prompt.xvector), speaker, atol=1e-3):
                return prompt
        self.parity.absent(f"{self.row}waveform from the mel", f"{NO_CLIP} ({frames} mel frames)")


@pytest.fixture(scope="module")
def oracle(goldens: Goldens, flow: str, model: S3Gen, checkpoint_dir: Path, parity: Parity) -> Oracle:
    return Oracle(goldens, flow, model, checkpoint_dir, parity)


def _noise(key: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(recipe.noise(key, math.prod(shape)).reshape(shape))


def _source_noise(tag: str, frames: int, z: torch.Tensor) -> S3GenNoise:
    uniform = recipe.uniform(f"{tag}/hift_phase_u", HARMONICS).astype(np.float32)
    phase = torch.from_numpy(uniform) * (2 * math.pi) - math.pi
    phase[0] = 0
    return S3GenNoise(z, phase, _noise(f"{tag}/hift_noise", HARMONICS, FRAME * frames))


def _source_bound(model: S3Gen, samples: int) -> float:
    """How far the source may be off after `samples` where pitch is off by `PITCH_NOISE` all the time.

    Harmonic h runs ahead by 2 pi h seconds * PITCH_NOISE radians, has the sine's amplitude and enters with its weight
    in the mixing layer, whose tanh makes nothing larger.
    """
    source = model.vocoder.m_source
    harmonics = torch.arange(1, HARMONICS + 1)
    reach = float((source.l_linear.weight[0].abs() * harmonics).sum()) * source.config.source_amplitude
    return HIFT + reach * 2 * math.pi * PITCH_NOISE * samples / SAMPLE_RATE


def _speaker(model: S3Gen, xvector: torch.Tensor) -> torch.Tensor:
    return model.speaker(torch.nn.functional.normalize(xvector, dim=-1))


def test_flow_and_waveform(name: str, row: str, oracle: Oracle, model: S3Gen, parity: Parity) -> None:
    request, golden = oracle.request(name), oracle.arrays
    case = oracle.about["cases"][name]

    hidden: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    calls: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
        for module, kept in ((model.encoder.encoder, hidden), (model.encoder, means), (model.estimator, calls))
    ]
    try:
        flow = model.flow([request], steps=case["n_timesteps"])[0]
    finally:
        for hook in hooks:
            hook.remove()

    encoded = hidden[0]
    parity.identical(f"{row}shapes and counts: {name} encoder", encoded.shape, golden[f"{name}_enc_shape"])
    head, tail = golden[f"{name}_enc_head"], golden[f"{name}_enc_tail"]
    parity.absolute(f"{row}flow encoder: {name} head", encoded[0, : len(head)], head, FLOW_ENCODER)
    parity.absolute(f"{row}flow encoder: {name} tail", encoded[0, -len(tail) :], tail, FLOW_ENCODER)
    mu = golden[f"{name}_mu"]  # all of it, or its last frames
    parity.absolute(f"{row}flow encoder: {name} mu", means[0][0, -len(mu) :], mu, FLOW_ENCODER)
    speaker = _speaker(model, request.prompt.xvector)[None]
    parity.relative(f"{row}speaker projection: {name}", speaker, golden[f"{name}_spks"], SPEAKER)

    parity.identical(f"{row}shapes and counts: {name} estimator", len(calls), golden[f"{name}_n_est_calls"])
    # The goldens keep the last frames of a call.
    for call, key in ((calls[0], f"{name}_est0"), (calls[-1], f"{name}_est_last")):
        kept = golden[key].shape[-1]
        parity.absolute(f"{row}estimator, one call: {key}", call.transpose(1, 2)[..., -kept:], golden[key], ESTIMATOR)

    prompt, tail = len(request.prompt.mel), golden[f"{name}_mel_prompt_tail"]
    parity.absolute(f"{row}mel after the solver: {name}", flow[prompt:].T, golden[f"{name}_mel"], MEL)
    before = flow[prompt - tail.shape[-1] : prompt].T
    parity.absolute(f"{row}mel after the solver: {name} prompt", before, tail, MEL)

    wave = model.waveform([flow[prompt:]], [request.noise])[0]
    parity.relative(f"{row}waveform from tokens: {name}", wave, golden[f"{name}_wav"], WAVEFORM)


def test_vocoder(name: str, row: str, oracle: Oracle, model: S3Gen, parity: Parity) -> None:
    if name not in oracle.about["cases"]:
        pytest.skip(f"the goldens hold no case {name!r}")
    golden = oracle.arrays
    mel = torch.from_numpy(golden[f"{name}_mel"])[None]
    frames = mel.shape[-1]
    noise = _source_noise(oracle.about["cases"][name]["tag"], frames, torch.empty(0))

    f0 = torch.from_numpy(golden[f"{name}_f0"])
    pitch = model.vocoder.pitch(mel, [frames])
    parity.absolute(f"{row}pitch from the given mel, Hz: {name}", pitch, f0, F0)
    source = model.vocoder.m_source(f0, noise.phase[None], noise.source[None])[0]
    parity.identical(f"{row}shapes and counts: {name} source", len(source), golden[f"{name}_source_len"])
    head, tail = golden[f"{name}_source_head"], golden[f"{name}_source_tail"]
    parity.absolute(f"{row}source from the given pitch: {name} head", source[: len(head)], head, HIFT)
    parity.absolute(f"{row}source from the given pitch: {name} tail", source[-len(tail) :], tail, HIFT)
    own = model.vocoder.m_source(pitch, noise.phase[None], noise.source[None])[0, : len(head)]
    parity.absolute(f"{row}source from the mel: {name}", own, head, _source_bound(model, len(head)))
    wave = fade_in(model.vocoder.decode(mel, [frames], source[None])[0])
    parity.absolute(f"{row}HiFT from the given mel and source: {name}", wave, golden[f"{name}_wav"], HIFT)


def test_vocoder_on_a_real_mel(row: str, oracle: Oracle, model: S3Gen, parity: Parity) -> None:
    golden = oracle.arrays
    frames = len(golden["hiftonly_wav"]) // FRAME
    mel = oracle.prompt("main").mel[20 : 20 + frames].T[None]
    noise = _source_noise(oracle.about["hift_only"]["tag"], frames, torch.empty(0))
    source = model.vocoder.m_source(model.vocoder.pitch(mel, [frames]), noise.phase[None], noise.source[None])
    head = golden["hiftonly_source_head"]
    parity.absolute(
        f"{row}source from the mel: real mel", source[0, : len(head)], head, _source_bound(model, len(head))
    )
    wave = model.vocoder.decode(mel, [frames], source)[0]
    parity.relative(f"{row}waveform from the mel: real mel", wave, golden["hiftonly_wav"], WAVEFORM)


def test_one_ragged_estimator_call(row: str, oracle: Oracle, model: S3Gen, parity: Parity) -> None:
    about, golden = oracle.about["est_only"], oracle.arrays["estonly_out"]
    tag, frames, rows = about["tag"], about["T"], len(about["t"])
    x, mu, cond = (_noise(f"{tag}/{key}", rows, MELS, frames).transpose(1, 2) for key in ("x", "mu", "cond"))
    speaker = _noise(f"{tag}/spk", rows, MELS)[:, None].expand(-1, frames, -1)
    # Row 1 ends where the golden's zeros begin.
    padding = torch.from_numpy((golden == 0).all(axis=1))
    assert padding[1, 40:].all() and padding.sum() == frames - 40, about["mask"]
    start, end = torch.tensor(about["t"]), torch.tensor(about["r"] or about["t"])
    time = model.estimator.time_table(start, end)
    out = model.estimator(torch.cat([x, mu, speaker, cond], dim=-1), time, padding)
    parity.absolute(f"{row}estimator, one call: ragged", out.transpose(1, 2), golden, ESTIMATOR)


def test_a_batch_equals_each_row_alone(row: str, oracle: Oracle, model: S3Gen, directory: Path, parity: Parity) -> None:
    prompt = Voice.unchecked(directory / "conds.pt").prompt  # of 200 frames; the other rows have 86 and 30 in all
    tokens = torch.from_numpy(recipe.randint("batch/tokens", 20, 6561))
    frames = 2 * (len(prompt.tokens) + len(tokens)) - len(prompt.mel)
    z = _noise("batch/cfm_z", MELS, len(prompt.mel) + frames)
    requests = {name: oracle.request(name) for name in ("tiny", "oddref")}
    requests["long prompt"] = S3GenRequest(tokens, prompt, _source_noise("batch", frames, z))
    noises = [request.noise for request in requests.values()]
    together = model.mel(list(requests.values()), steps=2)
    waves = model.waveform(together, noises)
    for i, (name, request) in enumerate(requests.items()):
        (alone,) = model.mel([request], steps=2)
        parity.relative(f"{row}batched against alone, mel: {name}", together[i], alone, BATCHED)
        # Of the same mel. The sixth digit of a mel moves pitch, which the phase sums up, by 6e-4 of a waveform.
        (wave,) = model.waveform([together[i]], [noises[i]])
        parity.relative(f"{row}batched against alone, waveform of a mel: {name}", waves[i], wave, BATCHED)
        (whole,) = model.waveform([alone], [noises[i]])
        parity.relative(f"{row}batched against alone, waveform: {name}", waves[i], whole, WAVEFORM)
