"""The loop between the stages, with a talker and an S3Gen of a few lines each: milliseconds, no model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from chatterbox_vllm import SpeechParameters, SpeechRequest, Voice
from chatterbox_vllm.config import T3Config
from chatterbox_vllm.engine.pipeline import Pipeline
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.t3_stage import T3Output
from chatterbox_vllm.errors import ConfigError, GenerationError, TextTooLongError
from chatterbox_vllm.models.t3.conditioning import PromptBuilder

CONFIG = T3Config(hidden_size=16, text_positions=60, speech_positions=500, perceiver_queries=2, perceiver_heads=2)
END = CONFIG.stop_speech_token


class ScriptedTalker:
    """Finishes a request with the tokens that `script` gives for its prompt, after as many steps."""

    def __init__(self, script) -> None:
        self.script, self.running, self.aborted, self.most = script, {}, [], 0

    def add(self, request_id, prompt, parameters, seed, uniforms=None) -> None:
        tokens = tuple(self.script(prompt.shape[0], parameters))
        self.running[request_id] = (len(tokens), tokens)
        self.most = max(self.most, len(self.running))

    def step(self) -> list[T3Output]:
        done = []
        for request_id, (left, tokens) in list(self.running.items()):
            if left > 1:
                self.running[request_id] = (left - 1, tokens)
            else:
                del self.running[request_id]
                done.append(T3Output(request_id, tokens, "stop" if tokens[-1] == END else "length"))
        return done

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += list(request_ids)
        for request_id in request_ids:
            del self.running[request_id]

    @property
    def unfinished(self) -> bool:
        return bool(self.running)


class ToneS3Gen:
    """A waveform whose samples are the speech tokens; fails for token 13."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def draw_noise(self, generator, speech_tokens, voice):
        return torch.rand(1, generator=generator)

    def synthesize(self, requests, steps):
        self.batches.append(len(requests))
        if any(13 in r.speech_tokens for r in requests):
            raise RuntimeError("unlucky")
        return [torch.cat([r.speech_tokens.float(), r.noise]) for r in requests]


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice(
        speaker_embedding=torch.full((1, 256), 1 / 16),
        speech_prompt=torch.tensor([1, 2, 3]),
        prompt_tokens=torch.tensor([4, 5]),
        prompt_mel=torch.zeros(4, 80),
        xvector=torch.ones(192),
    )


def make(script, max_batch_size: int = 4) -> tuple[Pipeline, ScriptedTalker, ToneS3Gen]:
    torch.manual_seed(0)
    talker, s3gen = ScriptedTalker(script), ToneS3Gen()
    tokenizer = SimpleNamespace(encode=lambda text: [5] * len(text))
    builder = PromptBuilder(CONFIG).requires_grad_(False)
    pipeline = Pipeline(
        CONFIG, tokenizer, builder, talker, S3GenStage(s3gen, max_batch_size), None, 400, max_batch_size
    )
    return pipeline, talker, s3gen


def letters(prompt_rows: int, parameters: SpeechParameters) -> list[int]:
    """As many tokens as the text has letters, then the end."""
    return [100] * (prompt_rows - CONFIG.conditioning_length - 4) + [END]


def test_every_request_gets_its_own_result(voice: Voice) -> None:
    pipeline, talker, s3gen = make(letters)
    texts = ["A" + "a" * (i % 7) + "." for i in range(25)]
    results = list(pipeline.run([SpeechRequest(t, voice, SpeechParameters(max_tokens=50, seed=1)) for t in texts]))
    assert sorted(r.index for r in results) == list(range(25))
    for result in results:
        assert result.error is None and result.finish_reason == "stop"
        assert len(result.speech_tokens) == len(texts[result.index])
    assert talker.most == 8  # admission is bounded
    assert max(s3gen.batches) <= 4 and len(s3gen.batches) < 25


def test_one_failure_does_not_lose_the_others(voice: Voice) -> None:
    def script(rows: int, parameters: SpeechParameters) -> list[int]:
        return [13 if parameters.max_tokens == 49 else 7, END]

    pipeline, _, _ = make(script)
    fine, unlucky = SpeechParameters(max_tokens=50), SpeechParameters(max_tokens=49)
    requests = [
        SpeechRequest("Fine.", voice, fine),
        SpeechRequest("  ", voice, fine),
        SpeechRequest("Unlucky.", voice, unlucky),
        SpeechRequest("x" * 500, voice, fine),
        SpeechRequest("Fine too.", voice, fine),
    ]
    results = {r.index: r for r in pipeline.run(requests)}
    assert [type(results[i].error) for i in range(5)] == [
        type(None),
        ConfigError,
        GenerationError,
        TextTooLongError,
        type(None),
    ]
    assert all((results[i].audio is None) == (results[i].error is not None) for i in range(5))
    assert "max_model_len" in str(results[3].error)


def test_what_is_no_speech_is_dropped(voice: Voice) -> None:
    pipeline, _, _ = make(lambda rows, parameters: [1, 6561, 8000, 2, END, 3, END])
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50))])
    assert result.speech_tokens == (1, 2)


def test_no_sound_at_all_is_an_error(voice: Voice) -> None:
    pipeline, _, _ = make(lambda rows, parameters: [END])
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50, seed=9))])
    assert isinstance(result.error, GenerationError) and "seed 9" in str(result.error)


def test_the_token_limit_is_told(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, _, _ = make(lambda rows, parameters: [1] * parameters.max_tokens)
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50))])
    assert result.finish_reason == "length" and "max_tokens=50" in caplog.text


def test_the_same_seed_gives_the_same_noise(voice: Voice) -> None:
    pipeline, _, _ = make(letters)

    def speak(seed: int | None, count: int) -> torch.Tensor:
        parameters = SpeechParameters(max_tokens=50, seed=seed)
        results = {r.index: r for r in pipeline.run([SpeechRequest("Abc.", voice, parameters)] * count)}
        return results[0].audio

    assert torch.equal(speak(5, 1), speak(5, 6))
    assert not torch.equal(speak(5, 1), speak(6, 1))
    assert not torch.equal(speak(None, 1), speak(None, 1))


def test_different_step_counts_are_not_mixed(voice: Voice) -> None:
    pipeline, _, s3gen = make(letters)
    requests = [
        SpeechRequest("Abc.", voice, SpeechParameters(max_tokens=50, diffusion_steps=4 + i % 2)) for i in range(4)
    ]
    assert len(list(pipeline.run(requests))) == 4
    assert s3gen.batches == [2, 2]


def test_stopping_early_drops_what_is_left(voice: Voice) -> None:
    pipeline, talker, _ = make(letters, max_batch_size=1)
    run = pipeline.run([SpeechRequest("A" * n + ".", voice, SpeechParameters(max_tokens=50)) for n in range(1, 9)])
    next(run)
    run.close()
    assert not talker.running and talker.aborted


def test_two_runs_at_once_are_refused(voice: Voice) -> None:
    pipeline, _, _ = make(letters)
    requests = [SpeechRequest("A" * n + ".", voice, SpeechParameters(max_tokens=50)) for n in range(1, 9)]
    first = pipeline.run(requests)
    next(first)
    with pytest.raises(ConfigError, match="earlier run"):
        next(pipeline.run(requests))
    assert len(list(first)) == 7
    assert len(list(pipeline.run(requests))) == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exaggeration", 2.5),
        ("cfg_weight", -0.1),
        ("cfg_weight", float("nan")),
        ("temperature", "hot"),
        ("min_p", 1.2),
        ("top_p", 0),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", 10.0),
        ("diffusion_steps", 0),
        ("seed", -1),
        ("seed", True),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        SpeechParameters(**{name: value})
