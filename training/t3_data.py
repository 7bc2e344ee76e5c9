"""Sequences for T3 from a corpus: sentences of one speaker, alone or joined, with a prompt from others of his.

An epoch lays every speaker's utterances in a new order in one flat tensor; a sequence is a stretch of it, and so is its
prompt, from anywhere in the rest of the speaker's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from chatterbox_vllm.checkpoint.config import T3Config
from training.t3_model import IGNORED, Sequences

_JOINED = (0.6, 0.28, 0.12)  # chances of one sentence, two and three
_MOST_SPEECH, _MOST_TEXT = 500, 300  # of joined ones: 20 s, and the engine's longest piece
_PROMPT_TOKENS = (50, 150)
_LEAST_PROMPT = 10
_NO_TEXT = 0.12
_NO_SPEAKER = 0.04
_FOREIGN_PROMPT = 0.04
_WRONG_TOKENS = 0.06  # of what T3 hears of its own speech, so that it looks at the text and forgives itself
_UNKNOWN_TEXT = 0.002
_ALIKE = 0.25  # of exaggeration: utterances are joined with others of the same step


def exaggeration(movement: float) -> float:
    """By which a user gets pitch that moves so far, see `training.data.Utterance`: 0.5 as the teacher, 1 half more."""
    return movement - 0.5


@dataclass(frozen=True)
class Epoch:
    """Utterances of a corpus in an order, and the sequences made of them.

    Attributes:
        tokens, text: of all, flat, int64 on the device.
        utterances: their numbers, int64 [n] on the device.
        sequences: int64 [sequences, 8] on the CPU; by column: first token, count; first text piece, count; speaker's
            first token, count of his tokens; place of the first utterance, how many.
        speakers: of the sequences' speakers the place of the first utterance and how many, int64 [sequences, 2].
    """

    tokens: torch.Tensor
    text: torch.Tensor
    utterances: torch.Tensor
    sequences: np.ndarray
    speakers: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Rows of text and speech, for bucketing."""
        return self.sequences[:, 1] + self.sequences[:, 3]


class Sentences:
    """Utterances with their tokens, text and speaker.

    Args:
        tokens: speech tokens of each.
        texts: text tokens of each, without start and stop.
        speakers: number of each one's speaker.
        embeddings: [n, E] voice embedding of each.
        emotions: [n] of each; that of joined ones is their mean.
        space: text token between two sentences.
    """

    def __init__(
        self,
        config: T3Config,
        tokens: Sequence[np.ndarray],
        texts: Sequence[list[int]],
        speakers: Sequence[int],
        embeddings: np.ndarray,
        emotions: np.ndarray,
        space: int,
        device: torch.device,
    ):
        self.config, self.device = config, device
        self.speakers = np.array(speakers)
        self._token_counts = np.array([len(row) for row in tokens])
        self._text_counts = np.array([len(row) + 1 for row in texts])  # and a space
        self._tokens = torch.from_numpy(np.concatenate(tokens).astype(np.int64)).to(device)
        flat = [np.array([*row, space], np.int64) for row in texts]
        self._text = torch.from_numpy(np.concatenate(flat)).to(device)
        self._embeddings = torch.from_numpy(np.asarray(embeddings, np.float32)).to(device)
        self._emotions = torch.from_numpy(np.asarray(emotions, np.float32)).to(device)
        self._steps = np.round(np.asarray(emotions) / _ALIKE)

    @property
    def tokens_per_piece(self) -> float:
        return float(self._token_counts.sum() / self._text_counts.sum())

    def epoch(self, random: np.random.Generator, chosen: set[int] | None = None) -> Epoch:
        """A new order; sequences of all utterances, joined at random, or of those `chosen`, each alone."""
        order = np.lexsort((random.random(len(self.speakers)), self._steps, self.speakers))
        token_ends, text_ends = self._token_counts[order].cumsum(), self._text_counts[order].cumsum()
        speakers = self.speakers[order]
        sizes = 1 + random.choice(3, len(order), p=_JOINED) if chosen is None else np.ones(len(order), int)
        sequences, owners = [], []
        for begin, end in _runs(speakers):
            first_token = token_ends[begin - 1] if begin else 0
            all_tokens = token_ends[end - 1] - first_token
            at = begin
            while at < end:
                token, piece = (int(ends[at - 1]) if at else 0 for ends in (token_ends, text_ends))
                size = min(int(sizes[at]), end - at)
                while size > 1 and (
                    token_ends[at + size - 1] - token > min(_MOST_SPEECH, all_tokens // 2)
                    or text_ends[at + size - 1] - piece - 1 > _MOST_TEXT
                ):
                    size -= 1
                speech = int(token_ends[at + size - 1]) - token
                text = int(text_ends[at + size - 1]) - piece - 1
                # The rest of the speaker's must hold a prompt, and the model's tables all positions.
                fits = speech < self.config.speech_positions and text <= self.config.text_positions - 2
                if fits and all_tokens - speech >= _LEAST_PROMPT and (chosen is None or int(order[at]) in chosen):
                    sequences.append((token, speech, piece, text, first_token, all_tokens, at, size))
                    owners.append((begin, end - begin))
                at += size
        return Epoch(
            _reordered(self._tokens, self._token_counts, order),
            _reordered(self._text, self._text_counts, order),
            torch.from_numpy(order).to(self.device),
            np.array(sequences, np.int64).reshape(-1, 8),
            np.array(owners, np.int64).reshape(-1, 2),
        )

    def batch(self, epoch: Epoch, indices: np.ndarray, random: np.random.Generator, disturb: bool = True) -> Sequences:
        """The sequences `indices` of an epoch; `disturb` drops text, speaker and prompt and spoils tokens at times."""
        config, device = self.config, self.device
        table = epoch.sequences[indices]
        speech_longest, text_longest = int(table[:, 1].max()), int(table[:, 3].max())
        prompt_count = int(random.integers(_PROMPT_TOKENS[0], _PROMPT_TOKENS[1] + 1)) if disturb else _PROMPT_TOKENS[1]
        prompt_count = min(prompt_count, int((table[:, 5] - table[:, 1]).min()), config.speech_prompt_tokens)
        # One copy to the device for all numbers.
        packed = torch.from_numpy(np.concatenate([table, epoch.speakers[indices]], 1)).to(device, non_blocking=True)
        token, count, piece, pieces, own, owned, place, size, first, utterances = packed.unbind(1)

        def draw(most: torch.Tensor) -> torch.Tensor:
            """[B] uniform integers from 0 to below `most`."""
            return (torch.rand(len(most), device=device) * most).long()

        steps = torch.arange(speech_longest, device=device)
        heard = epoch.tokens[(token[:, None] + steps).clamp(max=len(epoch.tokens) - 1)]
        targets = torch.cat([heard, heard[:, :1]], dim=1)
        after = torch.arange(speech_longest + 1, device=device) - count[:, None]
        targets = targets.masked_fill(after == 0, config.stop_speech_token).masked_fill(after > 0, IGNORED)

        steps = torch.arange(text_longest + 2, device=device)
        text = epoch.text[(piece[:, None] + steps - 1).clamp(min=0, max=len(epoch.text) - 1)]
        text = text.masked_fill(steps == 0, config.start_text_token)
        text = text.masked_fill(steps == pieces[:, None] + 1, config.stop_text_token)

        # Round the speaker's part, past the sequence itself.
        skipped = token - own + count + draw(owned - count - prompt_count + 1)
        steps = torch.arange(prompt_count, device=device)
        prompt = epoch.tokens[own[:, None] + (skipped[:, None] + steps) % owned[:, None]]
        other = first + (place - first + size + draw((utterances - size).clamp(min=1))) % utterances
        speaker = self._embeddings[epoch.utterances[other]]
        sums = F.pad(self._emotions[epoch.utterances].double().cumsum(0), (1, 0))
        emotion = ((sums[place + size] - sums[place]) / size).float()

        def chance(share: float, *shape: int) -> torch.Tensor:
            return torch.rand(shape, device=device) < share * disturb

        rows = len(indices)
        stranger = torch.randperm(rows, device=device)
        prompt = torch.where(chance(_FOREIGN_PROMPT, rows, 1), prompt[stranger], prompt)
        spoilt = epoch.tokens[torch.randint(len(epoch.tokens), heard.shape, device=device)]
        control = (text == config.start_text_token) | (text == config.stop_text_token)
        return Sequences(
            speaker=speaker.masked_fill(chance(_NO_SPEAKER, rows, 1), 0.0),
            prompt=prompt,
            emotion=emotion,
            text=text.masked_fill(chance(_UNKNOWN_TEXT, *text.shape) & ~control, 1),
            text_counts=pieces + 2,
            speech=torch.where(chance(_WRONG_TOKENS, *heard.shape), spoilt, heard),
            speech_counts=count,
            targets=targets,
            unconditional=chance(_NO_TEXT, rows),
            rows=config.conditioning_length + int((table[:, 1] + table[:, 3]).max()) + 4,
        )


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of every run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True))


def _reordered(flat: torch.Tensor, counts: np.ndarray, order: np.ndarray) -> torch.Tensor:
    """The stretches of `flat`, of these counts, in another order."""
    begins = counts.cumsum() - counts
    fresh = counts[order]
    shift = torch.from_numpy(begins[order] - (fresh.cumsum() - fresh)).to(flat.device)
    repeated = shift.repeat_interleave(torch.from_numpy(fresh).to(flat.device))
    return flat[repeated + torch.arange(len(flat), device=flat.device)]
