"""Which utterances of a speaker stand for his voice."""

from __future__ import annotations

from training.data import RATE, Corpus


def reference_utterances(corpus: Corpus, speaker: int, seconds: float) -> list[int]:
    """Some utterances of a speaker, `seconds` together or a little more.

    Those that were trained on come first, and of these those of middling length.
    """
    own = [i for i, utterance in enumerate(corpus.utterances) if utterance.speaker == speaker]
    own.sort(key=lambda i: (corpus.utterances[i].held_out, abs(corpus.utterances[i].seconds - 4.0)))
    samples = 0
    for count, i in enumerate(own, 1):
        samples += corpus.utterances[i].samples
        if samples >= seconds * RATE:
            return own[:count]
    return own
