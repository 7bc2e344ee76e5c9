"""A talker and an S3Gen of a few lines each, for tests of the engine in milliseconds, without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from chatterbox_vllm import Voice
from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.engine.chunks import ChunkPlan
from chatterbox_vllm.engine.preparation import Preparation
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.run import run_all
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.synthesis import InlineSynthesis, ThreadedSynthesis
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.options import T3Output
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.speaker import SpeakerConditioning

CONFIG = T3Config(hidden_size=16, text_positions=60, speech_positions=500, perceiver_queries=2, perceiver_heads=2)
END = CONFIG.stop_speech_token
UNLUCKY = 13  # the token that the S3Gen here fails for

Script = Callable[[int, Sampling], list[int]]


class ScriptedTalker:
    """Finishes a request with the tokens that `script` gives for its prompt's rows, after as many steps."""

    def __init__(self, script: Script) -> None:
        self.script, self.running, self.aborted, self.most = script, {}, [], 0
        self.told_every: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.ends_held: list[int | None] = []

    def add(
        self,
        request_id,
        prompt,
        sampling,
        seed,
        uniforms=None,
        *,
        told_every=None,
        awaited=0,
        end_held_for=None,
        shared_prefix=None,
    ) -> None:
        assert request_id not in self.running
        self.ends_held.append(end_held_for)
        tokens = tuple(self.script(prompt.shape[0], sampling))
        if told_every is not None:
            self.told_every[request_id], self.told[request_id] = told_every, 0
        self.running[request_id] = (len(tokens), tokens)
        self.most = max(self.most, len(self.running))

    def step(self, should_yield: Callable[[], bool] | None = None) -> list[T3Output]:
        self.should_yield = should_yield
        done = []
        for request_id, (left, tokens) in list(self.running.items()):
            drawn, told = len(tokens) - left + 1, self.told.get(request_id, 0)
            if left > 1:
                self.running[request_id] = (left - 1, tokens)
                every = self.told_every.get(request_id)
                if every is not None and (told == 0 or drawn - told >= every):
                    self.told[request_id] = drawn
                    done.append(T3Output(request_id, tokens[told:drawn], None))
            else:
                del self.running[request_id]
                done.append(T3Output(request_id, tokens[told:], "stop" if tokens[-1] == END else "length"))
        return done

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += list(request_ids)
        for request_id in request_ids:
            del self.running[request_id]

    @property
    def unfinished(self) -> bool:
        return bool(self.running)


class ToneS3Gen:
    """A waveform whose samples are the speech tokens and a number of noise; fails for `UNLUCKY`."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.steps = 0

    def frames(self, speech_tokens, prompt):
        return 2 * (len(prompt.tokens) + speech_tokens), 2 * speech_tokens

    def frames_computed(self, lengths):
        return sum(lengths)

    def draw_noise(self, seed, speech_tokens, prompt):
        return torch.rand(1, generator=torch.Generator().manual_seed(seed))

    def launch(self, requests, steps, between=None):
        self._work([r.speech_tokens for r in requests], steps, between)
        return lambda: [torch.cat([r.speech_tokens.float(), r.noise]) for r in requests]

    def start_stream(self, prompt, seed):
        return SimpleNamespace(rendered=0, noise=self.draw_noise(seed, 0, prompt))

    def launch_chunks(self, chunks, steps, between=None):
        self._work([c.tokens for c in chunks], steps, between)
        return lambda: [(self._said(c), self._after(c)) for c in chunks]

    def _said(self, chunk):
        said = chunk.tokens[: chunk.rendered].float()
        return torch.cat([said, chunk.state.noise]) if chunk.last else said

    def _after(self, chunk):
        return SimpleNamespace(rendered=chunk.state.rendered + chunk.rendered, noise=chunk.state.noise)

    def _work(self, tokens, steps, between):
        self.batches.append(len(tokens))
        for _ in range(steps):
            self.steps += 1
            if between is not None:
                between()
        if any(UNLUCKY in own for own in tokens):
            raise RuntimeError("unlucky")


def a_voice() -> Voice:
    """One that fits `CONFIG`."""
    return Voice(
        SpeakerConditioning(torch.full((1, 256), 1 / 16), torch.tensor([1, 2, 3])),
        FlowPrompt(torch.tensor([4, 5]), torch.zeros(4, 80), torch.ones(192)),
    )


class Engine:
    """A scheduler and its scripted stages."""

    def __init__(self, script: Script, max_batch_size: int = 4, max_model_len: int = 400, threads: int = 0):
        torch.manual_seed(0)
        self.talker, self.s3gen = ScriptedTalker(script), ToneS3Gen()
        tokenizer = SimpleNamespace(
            encode=lambda text, language, prepared: [5] * len(text),
            special_tokens=frozenset(),
            tags=frozenset(),
            unknown_id=None,
        )
        builder = PromptBuilder(CONFIG).requires_grad_(False)
        self.prompts = PromptMaker(ModelConfig(t3=CONFIG), tokenizer, builder, max_model_len)
        self.voicing = InlineSynthesis(S3GenStage(self.s3gen, max_batch_size), None)
        preparation = Preparation(self.prompts, threads)
        self.scheduler = Scheduler(CONFIG, preparation, self.talker, self.voicing, max_batch_size, 4 * max_batch_size)

    def run(self, requests):
        return run_all(self.scheduler, requests)


class EngineBeside(Engine):
    """An engine whose S3Gen works in a thread, as on a GPU, and begins a batch of chunks for each release of `may`."""

    def __init__(self, script: Script, plan: ChunkPlan):
        super().__init__(script)
        self.scheduler.chunk_plan = plan
        self.threaded = ThreadedSynthesis(self.voicing.stage, None, torch.device("cpu"))
        self.scheduler.at_s3gen.synthesis = self.threaded
        self.may = threading.Semaphore(0)
        launch = self.s3gen.launch_chunks

        def waiting(*args: object) -> object:
            assert self.may.acquire(timeout=30)
            return launch(*args)

        self.s3gen.launch_chunks = waiting

    def close(self) -> None:
        self.may.release(100)
        self.threaded.close()


def letters(prompt_rows: int, sampling: Sampling) -> list[int]:
    """As many tokens as the text has letters, then the end."""
    return [100] * (prompt_rows - CONFIG.conditioning_length - 4) + [END]
