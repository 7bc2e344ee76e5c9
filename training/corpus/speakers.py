"""The speakers of a corpus: the teacher's voices and mixtures of them.

A recipe says how the teacher makes a speaker:

- ``timbre``: voices and their weights, which sum to 1; the first half of the style.
- ``prosody``: the same for the second half, or null for that of the timbre.
- ``resample``: the speaker speaks at 1 / r of the pace and is played r times as fast, so pitch and formants move by r.
- ``british``: which pronunciation its lines are written in; the heavier half of the timbre decides.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from training.data import Speaker

HELD_OUT_VOICES = ("af_sky", "am_eric", "bf_isabella", "bm_daniel")
# Without the whisperer (af_nicole) and Father Christmas (am_santa), and without those held out.
VOICES = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nova", "af_river", "af_sarah",
    "am_adam", "am_echo", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck",
    "bf_alice", "bf_emma", "bf_lily", "bm_fable", "bm_george", "bm_lewis",
)  # fmt: skip
# Pairs whose Resemblyzer similarity was measured at 0.75 or more: a mixture of them is too near to both.
TOO_ALIKE = {
    frozenset(pair)
    for pair in (
        ("am_puck", "am_fenrir"),
        ("am_echo", "bm_fable"),
        ("af_kore", "af_alloy"),
        ("am_echo", "am_puck"),
        ("af_sarah", "af_heart"),
        ("af_heart", "af_bella"),
        ("af_nova", "af_heart"),
        ("bm_fable", "am_puck"),
        ("af_sarah", "af_kore"),
    )
}
RESAMPLED = (0.85, 0.90, 0.95, 1.05, 1.10, 1.15)
SHARE_RESAMPLED, SHARE_CROSSED, SHARE_OF_THREE = 0.5, 1 / 3, 0.3


def is_british(timbre: Mapping[str, float]) -> bool:
    return sum(weight for name, weight in timbre.items() if name.startswith("b")) > 0.5


def _recipe(timbre: dict[str, float], prosody: dict[str, float] | None = None, resample: float = 1.0) -> dict:
    return {"timbre": timbre, "prosody": prosody, "resample": resample, "british": is_british(timbre)}


def _mixture(rng: random.Random) -> dict[str, float]:
    """Two or three voices, none too like another, each with a weight of 0.3 to 0.7 (0.2 to 0.5 among three)."""
    while True:
        names = rng.sample(VOICES, 3 if rng.random() < SHARE_OF_THREE else 2)
        if any(frozenset((a, b)) in TOO_ALIKE for a in names for b in names):
            continue
        if len(names) == 2:
            share = rng.randrange(30, 71, 5) / 100
            return {names[0]: share, names[1]: round(1 - share, 2)}
        first, second = rng.randrange(25, 46, 5), rng.randrange(25, 46, 5)
        return {names[0]: first / 100, names[1]: second / 100, names[2]: round(1 - (first + second) / 100, 2)}


def _distance(a: Mapping, b: Mapping) -> float:
    """How far apart two recipes sound, roughly: the timbre that they do not share, and how far their ratios differ."""
    names = set(a["timbre"]) | set(b["timbre"])
    timbre = sum(abs(a["timbre"].get(name, 0) - b["timbre"].get(name, 0)) for name in names) / 2
    return timbre + 3 * abs(a["resample"] - b["resample"])


def make_speakers(mixtures: int, held_out_mixtures: int, rng: random.Random) -> list[Speaker]:
    """All speakers: the voices, the mixtures to train on, then what is held out (voices, then mixtures).

    No two mixtures are nearer than 0.3 by `_distance`; a voice shares at most 0.7 of any mixture's timbre.
    """
    recipes: list[dict] = []
    while len(recipes) < mixtures + held_out_mixtures:
        prosody = {rng.choice(VOICES): 1.0} if rng.random() < SHARE_CROSSED else None
        ratio = rng.choice(RESAMPLED) if rng.random() < SHARE_RESAMPLED else 1.0
        recipe = _recipe(_mixture(rng), prosody, ratio)
        if all(_distance(recipe, other) >= 0.3 for other in recipes):
            recipes.append(recipe)
    speakers = [Speaker(name, _recipe({name: 1.0}), False) for name in VOICES]
    speakers += [Speaker(f"mix_{i:03d}", recipe, False) for i, recipe in enumerate(recipes[:mixtures])]
    speakers += [Speaker(name, _recipe({name: 1.0}), True) for name in HELD_OUT_VOICES]
    speakers += [Speaker(f"unseen_{i:02d}", recipe, True) for i, recipe in enumerate(recipes[mixtures:])]
    return speakers
