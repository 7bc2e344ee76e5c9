"""Makes the plan of a corpus: sentences, speakers, who says what. Deterministic by its seed; needs no GPU.

    python -m training.corpus.build PLAN --sentences cv.txt.xz wordnet.txt --hours 45

Needs the packages hibari-tts (pronunciations) and wordfreq (which words are common). Prints what it made, and how well
the 20,000 commonest words are covered.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.corpus import templates, text
from training.corpus.plan import Line, Plan
from training.corpus.speakers import make_speakers
from training.data import PHONEME_SYMBOLS, Speaker

COMMON, ALONE = 20_000, 3_000
SECONDS_PER_SYMBOL = 0.056  # the teacher's mean over its voices at its own pace, spaces and stress marks counted
LONGEST_SECONDS = 13.0
# Shares of the utterances; single sentences are what is left.
JOINED, NUMBERS, NAMES, LETTERS = 0.38, 0.04, 0.03, 0.01
MEAN_SECONDS = 4.4  # of this mixture; measured on a plan
JOINED_CHARACTERS = (80, 195)  # 5 to 12 seconds
VOICES_SHARE = 0.2  # of the utterances are spoken by the teacher's own voices
# Half the training lines keep the pitch that the teacher gives them; of the others it moves less or more. At both ends
# of the range no words were lost.
UNMOVED_SHARE, MOVEMENT = 0.5, (0.5, 2.0)
Phonemize = Callable[[str, bool], str]


@dataclass(frozen=True)
class Sizes:
    """How much to make."""

    hours: float
    mixtures: int
    held_out_mixtures: int

    @property
    def utterances(self) -> int:
        return int(self.hours * 3600 / MEAN_SECONDS)


def common_words(phonemize: Phonemize) -> list[str]:
    """The commonest words, most frequent first, as far as they are words: no abbreviations, no crude ones."""
    from wordfreq import top_n_list

    found = []
    for word in top_n_list("en", 60_000):
        fits = re.fullmatch(r"[a-z]{2,16}(?:'[a-z]+)?|[ai]", word) and not text.CRUDE.search(word)
        # What is read letter by letter is stressed on each.
        if fits and re.search("[aeiouy]", word) and phonemize(word, False).count("ˈ") < 2:
            found.append(word)
        if len(found) == COMMON:
            break
    return found


def training_texts(pool: Sequence[str], common: Sequence[str], sizes: Sizes, rng: random.Random) -> list[str]:
    """All texts to train on, in random order."""
    total = sizes.utterances
    joined = int(total * JOINED)
    parts = int(3.6 * joined)  # sentences in a joined text, those counted that fit nowhere
    chosen = text.choose(pool, common, int(total * (1 - JOINED - NUMBERS - NAMES - LETTERS)) + parts, rng)
    texts = text.join(chosen[:parts], *JOINED_CHARACTERS, rng)[:joined] + chosen[parts:]
    made = ((templates.number_line, NUMBERS), (templates.name_line, NAMES), (templates.letter_line, LETTERS))
    texts += [make(rng) for make, share in made for _ in range(int(total * share))]
    have = Counter(word for line in texts for word in set(text.words(line)))
    # Words that the sentences lack come in lists, until each has been said often enough.
    for turn in range(text.ENOUGH):
        missing = [word for word in common if have[word] + turn < text.ENOUGH]
        rng.shuffle(missing)
        while missing:
            size = rng.randint(3, 7)
            texts.append(templates.list_line(missing[:size], rng))
            missing = missing[size:]
    alone = common[: min(ALONE, total // 10)]
    texts += [templates.word_line(word, rng) for word in alone]
    rng.shuffle(texts)
    return texts


def deal(speakers: Sequence[Speaker], rng: random.Random) -> Iterator[int]:
    """Speakers to train on, endlessly: `VOICES_SHARE` to the voices, the rest to the mixtures, each equally often."""
    voices = [i for i, speaker in enumerate(speakers) if not speaker.held_out and len(speaker.recipe["timbre"]) == 1]
    mixtures = [i for i, speaker in enumerate(speakers) if not speaker.held_out and len(speaker.recipe["timbre"]) > 1]
    decks: dict[bool, list[int]] = {True: [], False: []}
    while True:
        of_voices = not mixtures or rng.random() < VOICES_SHARE
        deck = decks[of_voices]
        if not deck:
            deck += voices if of_voices else mixtures
            rng.shuffle(deck)
        yield deck.pop()


def evaluation_speakers(speakers: Sequence[Speaker], number: int) -> list[int]:
    """Who says evaluation sentence `number`: two voices and a mixture that are trained on; two voices and a mixture
    that are held out."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for i, speaker in enumerate(speakers):
        kinds.setdefault((speaker.held_out, len(speaker.recipe["timbre"]) == 1), []).append(i)
    chosen = []
    for (_, is_voice), members in sorted(kinds.items()):
        for turn in range(2 if is_voice else 1):
            # Neighbours in the list take turns, so that every member says sentences of every length.
            chosen.append(members[(2 * number + turn if is_voice else number) % len(members)])
    return list(dict.fromkeys(chosen))


def draw_movement(rng: random.Random) -> float:
    """How far the pitch of a line moves, see `training.data.Utterance`."""
    return 1.0 if rng.random() < UNMOVED_SHARE else round(rng.uniform(*MOVEMENT), 2)


def build(
    pool: Sequence[str], whole: Sequence[str], exclude: set[str], sizes: Sizes, phonemize: Phonemize, seed: int
) -> Plan:
    """The plan; evaluation lines come first, so that every corpus has them.

    Args:
        pool: sentences to choose from.
        whole: those of them that are whole sentences throughout, for the evaluation.
        exclude: keys (`text.key`) of sentences that may be neither trained on nor judged by.
        phonemize: text and whether it is British to the teacher's symbols.
    """
    rng = random.Random(seed)
    movements = random.Random(f"movement {seed}")  # of its own, so that it changes nothing else of the plan
    speakers = make_speakers(sizes.mixtures, sizes.held_out_mixtures, rng)
    common = common_words(phonemize)
    pool = [line for line in pool if text.key(line) not in exclude]
    alike = text.homophones(common, lambda word: phonemize(word, False))
    judged, used = text.evaluation(
        [line for line in whole if text.key(line) not in exclude], common[:10_000], alike, rng
    )
    pool = [line for line in pool if text.key(line) not in used]
    spoken = [(line, who, True) for n, line in enumerate(judged) for who in evaluation_speakers(speakers, n)]
    hands = deal(speakers, rng)
    spoken += [(line, next(hands), False) for line in training_texts(pool, common, sizes, rng)]
    lines = []
    for line, who, held_out in spoken:
        phonemes = phonemize(line, speakers[who].recipe["british"])
        fits = 2 <= len(phonemes) <= LONGEST_SECONDS / SECONDS_PER_SYMBOL and set(phonemes) <= set(PHONEME_SYMBOLS)
        if fits:
            speed = round(rng.triangular(0.9, 1.15, 1.0), 3)
            movement = 1.0 if held_out else draw_movement(movements)
            lines.append(Line(len(lines), who, speed, held_out, line, phonemes, movement))
    return Plan(speakers, lines)


def summary(plan: Plan, common: Sequence[str]) -> dict:
    """Counts of a plan, and how many of the common words its training lines hold."""
    training = [line for line in plan.lines if not line.held_out]
    seconds = [len(line.phonemes) * SECONDS_PER_SYMBOL / line.speed for line in training]
    have = Counter(word for line in training for word in text.words(line.text))
    return {
        "utterances": len(plan.lines),
        "held_out": len(plan.lines) - len(training),
        "speakers": len(plan.speakers),
        "training_hours": round(sum(seconds) / 3600, 1),
        "mean_seconds": round(sum(seconds) / max(1, len(seconds)), 2),
        "questions": sum(line.text.endswith("?") for line in training),
        "moved": sum(line.movement != 1 for line in training),
        "one_word": sum(" " not in line.text for line in training),
        "common_words": {
            f"{n} times": {str(size): sum(have[word] >= n for word in common[:size]) for size in (1000, 5000, COMMON)}
            for n in (1, 4)
        },
    }


def g2p() -> Phonemize:
    from hibari.g2p import G2P

    both = {british: G2P(british=british) for british in (False, True)}

    def phonemize(line: str, british: bool) -> str:
        phonemes = both[british](line)
        return phonemes if isinstance(phonemes, str) else phonemes[0]

    return phonemize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="the directory to write")
    parser.add_argument(
        "--sentences",
        type=Path,
        nargs="+",
        required=True,
        help="text files, a sentence a line, .xz too; the evaluation's come from the first",
    )
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="text files of sentences never to use")
    parser.add_argument("--hours", type=float, default=45)
    parser.add_argument("--mixtures", type=int, default=330, help="mixed speakers to train on")
    parser.add_argument("--held-out-mixtures", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    exclude = {text.key(line) for line in text.read_sentences(given.exclude)} if given.exclude else set()
    phonemize = g2p()
    sizes = Sizes(given.hours, given.mixtures, given.held_out_mixtures)
    pool, whole = text.read_sentences(given.sentences), text.read_sentences(given.sentences[:1])
    plan = build(pool, whole, exclude, sizes, phonemize, given.seed)
    plan.write(given.plan)
    print(json.dumps(summary(plan, common_words(phonemize)), indent=1))


if __name__ == "__main__":
    main()
