"""What T3 says, heard by the tokenizer's own phoneme head: no vocoder and no recogniser are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.t3.sampling import RowValues, choose
from training.phonemes import PhonemeIds, edit_distance, greedy
from training.t3_model import IGNORED, Sequences, TrainedT3
from training.tokenizer_model import CTC_STEPS, Trained, codes_of

_SLOWEST = 1.5  # times the real length, after which a sentence is cut off


@torch.no_grad()
def speak(
    model: TrainedT3, batch: Sequences, seed: int = 0, penalty: float = ENGLISH.defaults.repetition_penalty
) -> list[list[int]]:
    """Speech tokens for every sequence's text, voice and prompt, drawn as the package does by default.

    Args:
        penalty: on tokens said before; a codebook of which much is in use needs less of it than the published one.

    All rows are computed anew for each token: for a handful of sentences now and then.
    """
    model.eval()
    rows, device = len(batch.text), batch.text.device
    defaults, config = ENGLISH.defaults, model.config
    both = _twice(replace(batch, unconditional=torch.zeros_like(batch.unconditional)))
    both = replace(both, unconditional=torch.arange(2 * rows, device=device) >= rows)
    prompt_rows = config.conditioning_length + batch.text.shape[1] + 2

    def column(value: float) -> torch.Tensor:
        return torch.full((rows, 1), value, device=device)

    values = RowValues(
        column(defaults.cfg_weight), column(penalty), column(defaults.temperature),
        column(defaults.min_p), None, None,
    )  # fmt: skip
    uniform = torch.Generator().manual_seed(seed)
    said = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    spoken = torch.zeros(rows, config.speech_vocab_size, dtype=torch.bool, device=device)
    longest = min(math.ceil(_SLOWEST * batch.speech.shape[1]), config.speech_positions - 1)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    while said.shape[1] < longest and not bool(stopped.all()):
        count = said.shape[1]
        heard = replace(
            both,
            speech=said.repeat(2, 1),
            speech_counts=torch.full((2 * rows,), count, device=device),
            targets=torch.full((2 * rows, count + 1), IGNORED, device=device),
            rows=prompt_rows + count,
        )
        states, _ = model.hidden(heard)
        logits = model.logits(states[:, -1]).float()
        draws = torch.rand(rows, 1, dtype=torch.float64, generator=uniform).to(device)
        token = choose(torch.cat(logits.split(rows), dim=1), values, spoken, draws)
        stopped |= token == config.stop_speech_token
        token = token.masked_fill(stopped, config.stop_speech_token)
        spoken.scatter_(1, token[:, None], True)
        said = torch.cat([said, token[:, None]], dim=1)
    return [_until(row, config.stop_speech_token) for row in said.tolist()]


@torch.no_grad()
def phoneme_errors(
    tokenizer: Trained, tokens: Sequence[Sequence[int]], phonemes: Sequence[str], ids: PhonemeIds
) -> float:
    """Phoneme error rate of tokens by the tokenizer's head, against what should have been said."""
    device = next(tokenizer.parameters()).device
    wrong = said = 0
    for row, target in zip(tokens, (ids.encode(p) for p in phonemes), strict=True):
        found: list[int] = []
        # Control tokens are no sound.
        row = [t for t in row if t < 3**8]
        if row:
            codes = codes_of(torch.tensor([row], device=device))
            inside = torch.ones(1, len(row), dtype=torch.bool, device=device)
            speaker = torch.zeros(1, dtype=torch.int64, device=device)
            logits, _ = tokenizer.heads(codes, inside, speaker)
            (found,) = greedy(logits, torch.tensor([CTC_STEPS * len(row)]))
        wrong += edit_distance(found, target)
        said += len(target)
    return wrong / max(said, 1)


def length_ratio(tokens: Sequence[Sequence[int]], real: Sequence[int] | np.ndarray) -> float:
    """How long they are, all together, to how long the real ones are."""
    return sum(map(len, tokens)) / max(1, int(np.sum(real)))


def _twice(batch: Sequences) -> Sequences:
    tensors = {k: v for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, **{k: torch.cat([v, v]) for k, v in tensors.items()})


def _until(row: list[int], stop: int) -> list[int]:
    return row[: row.index(stop)] if stop in row else row
