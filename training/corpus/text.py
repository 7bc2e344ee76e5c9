"""Chooses what the corpus says: sentences for the words they bring, and what is held out for evaluation."""

from __future__ import annotations

import lzma
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from training.data import CorpusError

WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
# Lines with one of these are left out: the sources hold a few crude ones.
CRUDE = re.compile(
    r"\b(?:ass|asses|asshole|bastard|bitch|blowjob|boobs?|bullshit|cocks?|crap|cunt|damn|dick|fag|faggot|fuck\w*|goddamn|"
    r"nigg\w+|negro\w*|niggardly|orgasm\w*|penis|porn\w*|prick|pussy|rape[ds]?|raping|rapist|semen|sex\w*|shit\w*|slut\w*|"
    r"sperm|tits|twat|vagina|wank\w*|whore\w*)\b",
    re.IGNORECASE,
)
ENOUGH = 4  # sentences that each word is wanted in
# Frequent words that sound like others are told apart by their sentence; the rest may not stand in what is judged.
FREQUENT = """
    a all an and are at be been but by can could did do does eye eyes for four had has have he hear her here him
    his hour i in is it know made me meet mind my new no not of on one or our see seen she sea so some son sun
    than that the their them there they this to too two wait was way we week were what when where which who
    whole will with would write right you your
"""


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def key(text: str) -> str:
    """The same for texts that differ in capitals, spaces or punctuation alone."""
    return " ".join(words(text))


def read_sentences(paths: Sequence[Path]) -> list[str]:
    """The lines of text files, plain or .xz, without repeats, crude ones and quotation marks.

    Raises:
        CorpusError: a file does not exist or holds no line.
    """
    found: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            raise CorpusError(f"there is no file {path} to take sentences from")
        blob = path.read_bytes()
        text = (lzma.decompress(blob) if path.suffix == ".xz" else blob).decode("utf-8")
        for line in text.split("\n"):
            # A straight quotation mark is read as a closing one on both sides.
            line = line.replace('"', "").strip()
            if line and not CRUDE.search(line):
                found.setdefault(key(line), line)
    if not found:
        raise CorpusError(f"{', '.join(map(str, paths))} hold no sentence")
    return list(found.values())


def choose(sentences: Sequence[str], common: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` sentences in random order, first of all those that bring each common word `ENOUGH` times.

    Rare words choose first: what is chosen for them brings the frequent ones along. The rest is drawn evenly.
    """
    holding: dict[str, list[int]] = defaultdict(list)
    order = list(range(len(sentences)))
    rng.shuffle(order)
    for i in order:
        for word in set(words(sentences[i])):
            holding[word].append(i)
    have: Counter[str] = Counter()
    chosen: dict[int, None] = {}
    for word in sorted((word for word in common if word in holding), key=lambda word: len(holding[word])):
        for i in holding[word]:
            if have[word] >= ENOUGH or len(chosen) >= count:
                break
            if i not in chosen:
                chosen[i] = None
                have.update(set(words(sentences[i])))
    for i in order:
        if len(chosen) >= count:
            break
        chosen[i] = None
    picked = [sentences[i] for i in chosen]
    rng.shuffle(picked)
    return picked


def join(sentences: Iterable[str], shortest: int, longest: int, rng: random.Random) -> list[str]:
    """Texts of two sentences or more, `shortest` to `longest` characters each, all lengths alike often."""
    made: list[str] = []
    parts: list[str] = []
    wanted = rng.randint(shortest, longest)
    for sentence in sentences:
        size = len(" ".join(parts))
        if parts and size + 1 + len(sentence) > longest:
            if len(parts) > 1 and size >= shortest:
                made.append(" ".join(parts))
            parts = []
        parts.append(sentence)
        if len(parts) > 1 and len(" ".join(parts)) >= wanted:
            made.append(" ".join(parts))
            parts, wanted = [], rng.randint(shortest, longest)
    return made


def homophones(common: Sequence[str], phonemize: Callable[[str], str]) -> set[str]:
    """Common words that sound like another one, stress apart."""
    sound: dict[str, list[str]] = defaultdict(list)
    for word in common:
        sound[re.sub("[ˈˌ.]", "", phonemize(word))].append(word)
    return {word for alike in sound.values() if len(alike) > 1 for word in alike}


def evaluation(
    sentences: Sequence[str], common: Sequence[str], alike: set[str], rng: random.Random
) -> tuple[list[str], set[str]]:
    """200 texts to judge by, and the keys of the sentences in them, which may not be trained on.

    A recogniser should write each in one way only: words are among the common ones, homophones are left out unless they
    are `FREQUENT`, and so are names and hyphens. 50 are short (2 to 4 words), 80 of 5 to 9 words, 40 of 10 to 14, 30
    long: two joined, 16 to 26 words.
    """
    known = set(common) - (alike - set(FREQUENT.split()))

    def plain(text: str) -> bool:
        return "-" not in text and not re.search(r"(?<!^)(?<![.?!] )\b[A-Z](?!\b)", text) and set(words(text)) <= known

    fit = [text for text in sentences if plain(text)]
    rng.shuffle(fit)
    texts: list[str] = []
    for least, most, count in ((2, 4, 50), (5, 9, 80), (10, 14, 40), (8, 13, 60)):
        some = [text for text in fit if least <= len(words(text)) <= most and text not in texts][:count]
        if len(some) < count:
            raise CorpusError(
                f"only {len(some)} of the {count} evaluation sentences of {least} to {most} words are to be had: "
                "give more text"
            )
        texts += some
    single, pairs = texts[:170], texts[170:]
    used = {key(text) for text in texts}
    return single + [f"{a} {b}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)], used
