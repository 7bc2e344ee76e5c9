"""Made-up attention to a text, for the rules by which its end is held back or brought about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .weights_recipe import randint, uniform


@dataclass(frozen=True)
class Scenario:
    """How attention goes through a text.

    Attributes:
        size: text tokens.
        speed: of them that are said in a step.
        late: steps before it sets out.
        astray: steps at the beginning at which it is at the text's end.
        strength: attention to the token that is said.
        spread: attention that goes anywhere else, drawn anew at each step.
        returns_at: step from which it is at the beginning again; None for never.
        lost: share of the steps, from `returns_at` on, at which it is anywhere.
        vocabulary: of the speech tokens; few of them repeat often.
    """

    name: str
    size: int = 20
    steps: int = 60
    speed: float = 0.6
    late: int = 0
    astray: int = 0
    strength: float = 0.9
    spread: float = 0.0
    returns_at: int | None = None
    lost: float = 0.0
    vocabulary: int = 6561

    def attention(self) -> np.ndarray:
        """float32 [steps + 1, size]: the rows of start-of-speech, which stands twice, and of each token after it."""
        rows = np.zeros((self.steps + 1, self.size))
        drawn = uniform(f"alignment/{self.name}/spread", rows.size).reshape(rows.shape)
        anywhere = uniform(f"alignment/{self.name}/anywhere", 2 * len(rows)).reshape(-1, 2)
        for index, row in enumerate(rows):
            step = max(0, index - 1)
            at = int(max(0, step - self.late) * self.speed)
            if self.returns_at is not None and step >= self.returns_at:
                at = int((step - self.returns_at) * self.speed)
                at = int(anywhere[index, 0] * self.size) if anywhere[index, 1] < self.lost else at
            if step < self.astray:
                at = self.size - 1
            row[min(at, self.size - 1)] = self.strength
            row += self.spread * drawn[index] * (1 - self.strength)
        return rows.astype(np.float32)

    def tokens(self) -> list[int]:
        """Start-of-speech and what is drawn after it: the newest token at each step."""
        return [6561, *randint(f"alignment/{self.name}/tokens", self.steps - 1, self.vocabulary).tolist()]


# The first five are those of `analyzer_017.json`, whose attention is not kept: made anew from what was found of it.
RECORDED = (
    Scenario("normal"),
    Scenario("stuck_end", speed=10.0, late=2),
    Scenario("jump_back", speed=1.0),
    Scenario("repeat_tok", speed=0.5),
    Scenario("false_start", speed=1.0, late=4, astray=4),
)
MADE_UP = (
    Scenario("short", size=6, steps=40, spread=0.4),
    Scenario("spread", size=12, steps=90, speed=0.3, spread=0.6, strength=0.6),
    Scenario("weak", size=9, steps=70, speed=0.4, strength=0.35, spread=0.3),
    Scenario("late", size=25, steps=80, late=9, strength=0.8, spread=0.2),
    Scenario("again", size=15, steps=80, speed=0.9, returns_at=19, strength=0.8),
    Scenario("lost", size=30, steps=90, speed=0.8, returns_at=39, lost=0.7, strength=0.7, spread=0.3),
    Scenario("never", size=40, steps=60, speed=0.2, spread=0.5),
    Scenario("fast", size=35, steps=50, speed=3.0),
    Scenario("leaps", size=35, steps=30, speed=9.0),
    Scenario("astray", size=8, steps=50, speed=0.4, late=9, astray=9, spread=0.2),
    Scenario("same", size=20, steps=60, speed=0.5, vocabulary=5),
)
