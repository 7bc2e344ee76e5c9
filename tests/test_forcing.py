"""Teacher forcing: the processor on its own, and in the engine, where it must give the engine's own logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.sampling import guided
from chatterbox_vllm.t3.vllm.forcing import ForcedTokens, TeacherForcing
from chatterbox_vllm.t3.vllm.sampler import SpeechSampler
from chatterbox_vllm.t3.vllm.stage import T3Stage
from chatterbox_vllm.voices.voice import Voice

TEXT = list(range(10, 40))


def update(size: int, added=(), removed=(), moved=()) -> BatchUpdate:
    rows = [(row, SamplingParams(extra_args=extra), None, said) for row, extra, said in added]
    return BatchUpdate(batch_size=size, added=rows, removed=list(removed), moved=list(moved))


def test_only_rows_that_carry_tokens_are_forced_wherever_they_move() -> None:
    processor = TeacherForcing(None, torch.device("cpu"), False)
    forced, said = ForcedTokens([4, 2], 6), []
    processor.update_state(update(2, [(0, {}, []), (1, {"forced": forced, "cfg_weight": 0.7}, said)]))
    logits = torch.randn(2, 12)  # two streams

    def guided(row: int) -> torch.Tensor:
        return logits[row, :6] + 0.7 * (logits[row, :6] - logits[row, 6:])

    def allowed(row: torch.Tensor) -> list[list[int]]:
        return [(stream > -100).nonzero().flatten().tolist() for stream in row.split(6)]

    out = processor.apply(logits.clone())
    torch.testing.assert_close(out[0], logits[0])
    assert allowed(out[1]) == [[4], [4]]
    torch.testing.assert_close(forced.logits[0], guided(1))
    assert forced.logits[1].isnan().all()

    said.append(4)
    processor.update_state(update(2, moved=[(0, 1, MoveDirectionality.SWAP)]))
    out = processor.apply(logits.clone())
    torch.testing.assert_close(out[1], logits[1])
    assert allowed(out[0]) == [[2], [2]]
    torch.testing.assert_close(forced.logits[1], guided(0))

    said.append(2)  # everything is said
    torch.testing.assert_close(processor.apply(logits.clone()), logits)


def test_bad_tokens() -> None:
    for tokens in ([], [6], [-1]):
        with pytest.raises(ConfigError, match="token"):
            ForcedTokens(tokens, 6)


FORCING: dict[str, Any] = {"teacher_forcing": True}


class Talk:
    """A T3 stage on the babbling checkpoint with its built-in voice; on CUDA under CUDA graphs."""

    def __init__(self, directory: Path, device: str, **options: Any):
        self.config = config_of(directory)
        weights = Weights(directory / "t3_cfg.safetensors")
        graphs = device == "cuda"
        options = {"max_model_len": 256, "max_batch_size": 4, **FORCING, **options}
        settings = T3Options(torch.float32, cuda_graphs=graphs, **options)
        builder = PromptBuilder.from_weights(self.config.t3, weights)
        speaker = Voice.load(directory / "conds.pt", self.config).conditioning
        conditioning = builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, 0.5)
        self.prompt = builder.prompt(conditioning, TEXT)
        self.stage = T3Stage(self.config.t3, weights, settings, resolve_device(device))

    def forced(self, tokens: list[int]) -> ForcedTokens:
        return ForcedTokens(tokens, self.config.t3.speech_vocab_size)

    def say(self, **requests: tuple[SpeechParameters, ForcedTokens | None]) -> dict[str, list[int]]:
        for name, (parameters, forced) in requests.items():
            self.stage.add(name, self.prompt, parameters.resolved(ENGLISH.defaults).sampling, seed=3, forced=forced)
        said: dict[str, list[int]] = {}
        while self.stage.unfinished:
            said.update({output.request_id: list(output.token_ids) for output in self.stage.step()})
        return said


def test_an_engine_that_serves_forces_nothing(babbler: Path) -> None:
    served = Talk(babbler, "cpu", teacher_forcing=False)
    try:
        processors = served.stage._engine.vllm_config.model_config.logits_processors
        assert [str(name) for name in processors] == ["chatterbox_vllm.t3.vllm.sampler:SpeechSampler"]
        with pytest.raises(ConfigError, match="teacher_forcing=True"):
            served.say(forced=(SpeechParameters(max_tokens=2), served.forced([1, 2])))
    finally:
        served.stage.close()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def talk(request: pytest.FixtureRequest, babbler: Path) -> Iterator[Talk]:
    talk = Talk(babbler, request.param)
    yield talk
    talk.stage.close()


def test_forcing_gives_the_logits_that_the_engine_speaks_with(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = SpeechParameters(max_tokens=40, cfg_weight=0.7)
    own: list[torch.Tensor] = []
    apply = SpeechSampler.apply

    def recording(self: SpeechSampler, logits: torch.Tensor) -> torch.Tensor:
        weight = torch.full((len(logits), 1), parameters.cfg_weight, device=logits.device)
        own.append(guided(logits, weight, talk.config.t3.speech_vocab_size)[0].cpu())
        return apply(self, logits)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechSampler, "apply", recording)
        spoken = talk.say(free=(parameters, None))["free"]
    assert len(spoken) > 20 and spoken[-1] == talk.config.t3.stop_speech_token
    forced = talk.forced(spoken)
    again = SpeechParameters(max_tokens=len(spoken), cfg_weight=0.7)
    assert talk.say(again=(again, forced))["again"] == spoken
    assert torch.equal(forced.logits, torch.stack(own[: len(spoken)]))  # vLLM may run a step ahead


def test_any_tokens_can_be_forced_beside_a_request_that_is_free(talk: Talk) -> None:
    parameters = SpeechParameters(max_tokens=30, temperature=0.6, min_p=0.3, repetition_penalty=1.5)
    alone = talk.say(free=(parameters, None))["free"]
    strange = torch.randint(0, 6561, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    short = strange[:7] + [talk.config.t3.stop_speech_token]
    requests = {"strange": talk.forced(strange), "short": talk.forced(short)}
    both = talk.say(
        strange=(parameters, requests["strange"]),
        free=(parameters, None),
        short=(SpeechParameters(max_tokens=8), requests["short"]),
    )
    assert both == {"strange": strange, "free": alone, "short": short}
    assert not requests["strange"].logits.isnan().any()
    # The same history, so the same thoughts, up to the order of sums in another batch.
    torch.testing.assert_close(requests["short"].logits[:7], requests["strange"].logits[:7], rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match="max_tokens=30"):
        talk.stage.add(
            "wrong", talk.prompt, parameters.resolved(ENGLISH.defaults).sampling, 0, forced=talk.forced(short)
        )


def test_prompts_taken_in_piece_by_piece_give_the_same_logits(talk: Talk, babbler: Path) -> None:
    tokens = list(range(100, 112))
    whole = talk.forced(tokens)
    talk.say(whole=(SpeechParameters(max_tokens=12), whole))
    # On a GPU the last piece is small enough for a graph, the others and the whole are not.
    assert 0 < len(talk.prompt) % 16 <= 4
    chunked = Talk(babbler, talk.stage.device.type, max_batched_tokens=16)
    try:
        pieces = chunked.forced(tokens)
        chunked.say(pieces=(SpeechParameters(max_tokens=12), pieces))
    finally:
        chunked.stage.close()
    torch.testing.assert_close(pieces.logits, whole.logits, rtol=1e-4, atol=1e-3)
