"""Collections as `evaluation.collect` would write them, of noise and tones: no model is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from chatterbox_vllm.evaluation.collection import CaseFacts, Collection, RunFacts
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from tests.test_metrics import voice

FRAMES, POSITIONS = 75, 30


class Ears:
    """Stands for `VoiceJudge`: all speakers are one."""

    def hear(self, wave: np.ndarray) -> SimpleNamespace:
        speaker, prompt = SimpleNamespace(speaker_embedding=torch.ones(4)), SimpleNamespace(xvector=torch.ones(3))
        return SimpleNamespace(conditioning=speaker, prompt=prompt)


def made_up(directory: Path, plan: EvaluationPlan, name: str = "babble") -> Collection:
    """The collection of a model that did everything; two of one plan hold the same."""
    collection = Collection.create(directory)
    rng = np.random.default_rng(0)
    for case in plan.cases:
        wave = voice(FRAMES / 50, 24_000)
        collection.save("logits", case.index, rng.standard_normal((POSITIONS, 16)))
        collection.save("mel", case.index, rng.standard_normal((FRAMES, 80)))
        collection.save("pitch", case.index, np.full(FRAMES, 120.0))
        collection.save("wave", case.index, wave)
        collection.save("speech", case.index, wave)
    enrolled = {"t3": {"speaker_emb": torch.ones(4)}, "gen": {"embedding": torch.ones(3)}}
    torch.save(enrolled, collection.voice_path(0, "enrolled"))
    torch.save(enrolled, collection.voice_path(0))
    cases = [CaseFacts(case.index, [1] * POSITIONS, "stop", FRAMES / 50) for case in plan.cases]
    facts = RunFacts(f"/models/{name}", name, {}, {"device": "cpu"}, 1.0, 2.0, None, 1 << 30, cases, {"clip.wav": None})
    collection.write_facts(facts)
    return collection


def silence(collection: Collection, index: int, error: str) -> None:
    """Take away all that a model made of a case."""
    for kind in ("logits", "mel", "pitch", "wave", "speech"):
        (collection.directory / f"{kind}-{index}.npy").unlink()
    facts = collection.facts()
    facts.cases[index] = CaseFacts(index, error=error, s3gen_error=error)
    collection.write_facts(facts)
