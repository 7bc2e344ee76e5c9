"""Where in its text speech is, told by attention, and when its end is held back or brought about.

Some of T3's attention heads look at the text token that is being said. The published analyzer of the multilingual model
(release 0.1.7, `AlignmentStreamAnalyzer`) kept their attention of all steps as a matrix and read its rules off it at
each. Here they are running sums and maxima, 7 numbers a request. Names and thresholds are the published ones.

An attention row is the mean of the heads' attention from the newest position to the text tokens, start and stop of text
included. Plain torch on any device; rows of a batch are requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# A request's state: the step that it expects, the text position, how many attention rows there were when the text was
# complete (0 before), the attention since then to each of the last three text tokens, and that to what came before.
STATE_WIDTH = 7
_STEP, _POSITION, _COMPLETED_AT, _TAIL, _REPEATED = 0, 1, 2, slice(3, 6), 6
# The position may go back by less than 4 text tokens in a step, and ahead by less than 7.
BACK, AHEAD = -4, 7
LAST = 3  # so many text tokens from its end on, a text counts as said
LONG_TAIL = REPETITION = 5.0
# Of a text of so many tokens or fewer the end is never held back, and no token counts as one that came before.
SHORT_TEXT = 5
# Logits of an end that is held back and of one that is brought about; all others lie far between.
HELD, FORCED = -(2.0**15), 2.0**15
_STRONG, _ASTRAY = 0.5, 0.1


@dataclass(frozen=True)
class Alignment:
    """What the newest attention rows say, all bool [N].

    Attributes:
        unfinished: the text is not said; speech should not end.
        long_tail: its last tokens have been attended to for too long since it was said; speech should end.
        repetition: earlier tokens have been attended to for too long since then; speech should end.
    """

    unfinished: torch.Tensor
    long_tail: torch.Tensor
    repetition: torch.Tensor


def follow(
    state: torch.Tensor, attention: torch.Tensor, sizes: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, Alignment]:
    """Take in an attention row of each request.

    A row whose step has been taken in before, or is none, is looked at and leaves its state as it is: those of a prompt
    that is not whole yet, and of tokens that are computed again.

    Args:
        state: [N, STATE_WIDTH] float32, zeros at the beginning.
        attention: [N, W] float32, W >= every size; beyond its size a row may hold anything.
        sizes: [N] integers, text tokens of each request, at least 3.
        steps: [N] integers, speech tokens before this one.

    Returns:
        the states after it, and what the rows say.
    """
    sizes, steps = sizes.unsqueeze(1), steps.unsqueeze(1)
    columns = torch.arange(attention.shape[1], device=attention.device)
    # In so many steps speech cannot have come further, so what points there is no alignment.
    attention = attention.masked_fill(columns > torch.minimum(steps, sizes - 1), 0.0)
    looked_at = attention.argmax(dim=1, keepdim=True)
    position, completed_at = state[:, _POSITION, None], state[:, _COMPLETED_AT, None]
    way = looked_at - position
    position = torch.where((way > BACK) & (way < AHEAD), looked_at, position)
    last = sizes - LAST
    complete = completed_at > 0
    # The first step sees two rows, as start-of-speech stands twice.
    completed_at = torch.where(~complete & (position >= last), steps + 2, completed_at)
    ending = attention.gather(1, last + torch.arange(LAST, device=attention.device))
    tail = state[:, _TAIL] + ending * complete
    before = attention.masked_fill(columns >= sizes - SHORT_TEXT, 0.0).amax(dim=1, keepdim=True)
    repeated = state[:, _REPEATED, None] + before * complete
    said = Alignment(
        unfinished=((looked_at < last) & (sizes > SHORT_TEXT)).squeeze(1),
        long_tail=tail.amax(dim=1) >= LONG_TAIL,
        repetition=repeated.squeeze(1) > REPETITION,
    )
    after = torch.cat([steps + 1, position, completed_at, tail, repeated], dim=1)
    return torch.where(steps >= state[:, _STEP, None], after, state), said


def text_position(state: torch.Tensor) -> torch.Tensor:
    """[N, STATE_WIDTH] -> [N]: the text token that speech is at."""
    return state[:, _POSITION]


def completed_at(state: torch.Tensor) -> torch.Tensor:
    """[N, STATE_WIDTH] -> [N]: attention rows when the text was said, both of start-of-speech counted; 0 before."""
    return state[:, _COMPLETED_AT]


def has_started(strongest: torch.Tensor, last_rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Whether speech has begun at the text's beginning, bool [N]; from then on it has. Nothing follows from it.

    Args:
        strongest: [N] float32, the most attention that one of the first 4 text tokens has had so far.
        last_rows: [N, 2, W] float32, the last two attention rows.
        sizes: [N] integers, text tokens of each request, at least 2.
    """
    ends = sizes[:, None, None] - 2 + torch.arange(2, device=sizes.device)
    astray = last_rows.gather(2, ends.expand(-1, last_rows.shape[1], -1)).amax(dim=(1, 2))
    return (strongest >= _STRONG) & (astray <= _ASTRAY)


def repeats_a_token(tokens: Sequence[int]) -> bool:
    """The analyzer's other reason to end speech: its last two tokens, start-of-speech counted, are the same.

    The engine does not ask: of the tokens of recorded speech one in 25 is the one before it again, so this would end it
    after a second or two.
    """
    return len(tokens) >= 3 and tokens[-1] == tokens[-2]
