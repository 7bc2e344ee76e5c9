"""S3Gen in chunks: the vocoder's stretches are the whole, and a chunk depends on nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatterbox_vllm import Voice
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.s3gen.flow import batch as graphs_of_flow
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.streaming import flow as graphs_of_chunks
from chatterbox_vllm.s3gen.streaming import vocoder as graphs_of_stretches
from chatterbox_vllm.s3gen.streaming.state import StreamChunk, StreamState
from chatterbox_vllm.s3gen.streaming.vocoder import MelStretch, VocoderState, held_back

from .test_s3gen import CONFIG, apart, build

STEPS = 3
LOOKAHEAD = CONFIG.flow.lookahead


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> S3Gen:
    return build(CONFIG, tmp_path_factory.mktemp("s3gen") / "s3gen.safetensors")


def a_prompt(tokens: int, odd: int, seed: int = 1) -> FlowPrompt:
    generator = torch.Generator().manual_seed(seed)
    return FlowPrompt(
        torch.randint(0, 50, (tokens,), generator=generator),
        torch.randn(2 * tokens + odd, 8, generator=generator),
        torch.randn(6, generator=generator),
    )


def in_stretches(model: S3Gen, mels: list[torch.Tensor], cuts: list[list[int]], seeds: list[int]) -> list[torch.Tensor]:
    """Each mel in stretches of these lengths, the n-th stretches of all mels together."""
    vocoder = model.chunks.vocoder
    states = [VocoderState.start(CONFIG.hift, model.device) for _ in mels]
    waves: list[list[torch.Tensor]] = [[] for _ in mels]
    for turn in range(max(map(len, cuts))):
        rows = [i for i in range(len(mels)) if turn < len(cuts[i])]
        stretches = []
        for i in rows:
            first = sum(cuts[i][:turn])
            part = mels[i][first : first + cuts[i][turn]]
            stretches.append(MelStretch(states[i], part, turn == len(cuts[i]) - 1, seeds[i]))
        with torch.inference_mode():
            for i, spoken in zip(rows, vocoder(stretches), strict=True):
                assert spoken.finite.all()
                waves[i].append(spoken.wave)
                states[i] = spoken.state
    return [torch.cat(parts) for parts in waves]


CUTS = [[150], [1] * 150, [24, 26, 50, 50], [3, 100, 47], [149, 1], [60, 2, 2, 2, 2, 2, 80]]


def test_the_vocoder_in_stretches_is_the_whole(model: S3Gen) -> None:
    mel = torch.randn(150, 8, generator=torch.Generator().manual_seed(3))
    noise = model.draw_noise(7, 75, a_prompt(4, 0))
    (whole,) = model.waveform([mel], [noise])
    assert whole.std() > 1e-2
    for wave in in_stretches(model, [mel] * len(CUTS), CUTS, [7] * len(CUTS)):
        assert wave.shape == whole.shape
        assert float((wave - whole).abs().max()) < 1e-5


def test_samples_come_as_soon_as_they_are_certain(model: S3Gen) -> None:
    vocoder = model.chunks.vocoder
    held, mel = held_back(CONFIG.hift), torch.randn(60, 8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        (first,) = vocoder([MelStretch(VocoderState.start(CONFIG.hift, model.device), mel, False, 7)])
        assert len(first.wave) == 480 * (60 - held)
        (rest,) = vocoder([MelStretch(first.state, mel[:10], True, 7)])
    assert len(rest.wave) == 480 * (10 + held)


def stream(model: S3Gen, tokens: list[torch.Tensor], sizes: list[list[int]], states: list[StreamState]):
    """All utterances together, a chunk of each at a time. The last size takes the rest."""
    waves: list[list[torch.Tensor]] = [[] for _ in tokens]
    for turn in range(max(map(len, sizes))):
        rows = [i for i in range(len(tokens)) if turn < len(sizes[i])]
        chunks = []
        for i in rows:
            left = tokens[i][states[i].rendered :]
            last = turn == len(sizes[i]) - 1
            size = len(left) if last else sizes[i][turn]
            chunks.append(StreamChunk(states[i], left if last else left[: size + LOOKAHEAD], size, last))
        for i, (wave, state) in zip(rows, model.render_chunks(chunks, STEPS), strict=True):
            waves[i].append(wave)
            states[i] = state
    return [torch.cat(parts) for parts in waves]


def utterances(model: S3Gen) -> tuple[list[torch.Tensor], list[list[int]], list[FlowPrompt]]:
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(0, 50, (n,), generator=generator) for n in (90, 70, 40, 7, 30)]
    sizes = [[12, 25, 40, 0], [30, 30, 0], [1, 1, 28, 0], [0], [26, 0]]
    return tokens, sizes, [a_prompt(4, 0), a_prompt(9, 1), a_prompt(3, 1), a_prompt(5, 1), a_prompt(5, 0)]


def test_a_stream_has_as_many_samples_as_the_whole_and_does_not_depend_on_others(model: S3Gen) -> None:
    tokens, sizes, prompts = utterances(model)
    states = [model.start_stream(prompt, seed) for seed, prompt in enumerate(prompts)]
    waves = stream(model, tokens, sizes, list(states))
    for i, prompt in enumerate(prompts):
        noise = model.draw_noise(i, len(tokens[i]), prompt)
        (whole,) = model.synthesize([S3GenRequest(tokens[i], prompt, noise)], STEPS)
        assert waves[i].shape == whole.shape
        (alone,) = stream(model, [tokens[i]], [sizes[i]], [states[i]])
        assert apart(waves[i], alone) < 1e-4
        if len(sizes[i]) == 1:  # one chunk is the whole
            assert apart(waves[i], whole) < 1e-4


def test_behind_a_shorter_prompt_there_are_as_many_samples(model: S3Gen) -> None:
    (tokens, *_), (sizes, *_), _ = utterances(model)
    for odd in (0, 1):
        prompt = a_prompt(12, odd)
        assert prompt.of_last(12) is prompt is prompt.of_last(250)
        short = prompt.of_last(5)
        assert torch.equal(short.tokens, prompt.tokens[7:]) and torch.equal(short.mel, prompt.mel[14:])
        assert torch.equal(short.xvector, prompt.xvector) and short.key != prompt.key
        (wave,) = stream(model, [tokens], [sizes], [model.start_stream(short, 3)])
        (behind_all,) = stream(model, [tokens], [sizes], [model.start_stream(prompt, 3)])
        assert wave.shape == behind_all.shape and apart(wave, behind_all) > 1e-2


class Recorded:
    """As `GraphedFunction`, without graphs: what a call gave is gone with the next one, and all shapes were told."""

    given: tuple[torch.Tensor, ...] = ()

    def __init__(self, function, most, pool, steady=None):
        self.function, self.told = function, {}

    @property
    def count(self):
        return len(self.told)

    def record(self, *inputs):
        self.told[tuple(t.shape for t in inputs)] = tuple(torch.empty(t.shape, dtype=t.dtype) for t in inputs)

    def __call__(self, *inputs):
        kept = self.told[tuple(t.shape for t in inputs)]
        for own, given in zip(kept, inputs, strict=True):
            own.copy_(given)
        for output in self.given:  # of any of them
            if not any(output is own for own in kept):
                output.fill_(output.dtype.is_floating_point and float("nan"))
        found = self.function(*kept)
        Recorded.given = found if isinstance(found, tuple) else (found,)
        return found


def test_filled_up_to_the_sizes_of_graphs_the_audio_is_the_same(
    model: S3Gen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (graphs_of_chunks, graphs_of_flow, graphs_of_stretches):
        monkeypatch.setattr(module, "GraphedFunction", Recorded)
    graphed = build(CONFIG, tmp_path / "s3gen.safetensors")
    graphed.execution = replace(graphed.execution, cuda_graphs=True)
    tokens, sizes, prompts = utterances(model)
    with torch.inference_mode():
        for rows in range(1, 2 * len(tokens) + 1):
            for frames in (256, 512):  # the estimator's are told one by one in padded batches
                layout = graphed.token_to_mel.layout([frames] * rows)
                assert layout.frames == frames
                span, times = graphed.token_to_mel._span_and_times(STEPS)
                state, condition = torch.zeros(rows, frames, 8), torch.zeros(rows, frames, 24)
                graphed.token_to_mel._graphs.record(state, times[0], span[0], condition, *layout.tables)
    # Of 1, 2, 4 and 8 rows, but for 8 of the longest of the encoder's.
    assert graphed.chunks.record_graphs(len(tokens)) == 4 * 5 + 4 * 5 - 1
    for times in (1, 2):
        states = [model.start_stream(prompt, seed) for seed, prompt in enumerate(prompts * times)]
        expected = stream(model, tokens * times, sizes * times, list(states))
        if times == 2:
            graphed.chunks.record_graphs(2 * len(tokens))
        for wave, own in zip(stream(graphed, tokens * times, sizes * times, list(states)), expected, strict=True):
            assert apart(wave, own) < 3e-4  # another last bit of the mel shifts the phase, a running sum
    mels = [torch.randn(150, 8, generator=torch.Generator().manual_seed(3))] * len(CUTS)
    found, expected = (in_stretches(one, mels, CUTS, [7] * len(CUTS)) for one in (graphed, model))
    for wave, own in zip(found, expected, strict=True):
        assert float((wave - own).abs().max()) < 1e-5


def test_the_work_does_not_grow_with_the_utterance(model: S3Gen) -> None:
    tokens = torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(2))
    state, kept = model.start_stream(a_prompt(4, 1), 3), []
    for _ in range(5):
        chunk = StreamChunk(state, tokens[state.rendered :][:53], 50, False)
        ((_, state),) = model.render_chunks([chunk], STEPS)
        own = (state.tokens, state.vocoder.mel, state.vocoder.source)
        kept.append([(len(part), part.untyped_storage().nbytes()) for part in own])
    assert all(sizes == kept[0] for sizes in kept)


def test_a_chunk_that_cannot_be_is_refused(model: S3Gen) -> None:
    state, tokens = model.start_stream(a_prompt(4, 0), 1), torch.arange(10)
    for rendered, last in ((0, False), (11, False), (7, True)):
        with pytest.raises(ConfigError, match="rendered"):
            model.render_chunks([StreamChunk(state, tokens, rendered, last)], STEPS)
    with pytest.raises(GenerationError, match="no speech tokens"):
        model.render_chunks([StreamChunk(state, tokens[:0], 0, True)], STEPS)
    with pytest.raises(GenerationError, match="outside the codebook"):
        model.render_chunks([StreamChunk(state, tokens + 45, 10, True)], STEPS)
    with pytest.raises(ConfigError, match="steps"):
        model.render_chunks([StreamChunk(state, tokens, 10, True)], 0)


def log_mel(wave: torch.Tensor) -> torch.Tensor:
    """[bins, frames of 10 ms] in decibels; bins enough for what follows."""
    spectrum = torch.stft(wave, 1024, 240, window=torch.hann_window(1024), return_complex=True).abs()
    return 20 * torch.log10(spectrum[:300] + 1e-4)


def test_seams_are_no_further_from_the_whole_than_another_seed(babbler: Path) -> None:
    config = config_of(babbler)
    model = S3Gen.from_weights(config.s3gen, Weights(babbler / "s3gen.safetensors"), "cpu")
    prompt = Voice.load(babbler / "conds.pt", config).prompt
    tokens = torch.randint(0, 6561, (80,), generator=torch.Generator().manual_seed(4))
    noises = [model.draw_noise(seed, 80, prompt) for seed in (1, 2)]
    whole, other = model.synthesize([S3GenRequest(tokens, prompt, noise) for noise in noises], STEPS)
    (streamed,) = stream(model, [tokens], [[22, 20, 20, 0]], [model.start_stream(prompt, 1)])
    seams = torch.tensor([2 * frame for frame in (44, 84, 124)])  # of 10 ms
    near = (seams[:, None] + torch.arange(-4, 4)).flatten()
    apart_there = (log_mel(streamed) - log_mel(whole)).abs()[:, near].mean()
    seeds_apart = (log_mel(other) - log_mel(whole)).abs()[:, near].mean()
    assert apart_there < seeds_apart
    steps = (streamed[1:] - streamed[:-1]).abs()
    assert steps[[480 * frame - 1 for frame in (24, 64, 104)]].max() <= (whole[1:] - whole[:-1]).abs().max()
