"""Which utterances of a speaker stand for his voice."""

from __future__ import annotations

from training.data import RATE, Corpus


def reference_utterances(corpus: Corpus, speaker: int, seconds: float) -> list[int]:
    """Some utterances of a speaker, `seconds` together or a little more.

    Those that were trained on come first, of these those whose pitch moves as the teacher has it, and of these those
    of middling length.
    """
    own = [i for i, utterance in enumerate(corpus.utterances) if utterance.speaker == speaker]

    def unfit(i: int) -> tuple[bool, bool, float]:
        utterance = corpus.utterances[i]
        return utterance.held_out, utterance.movement != 1, abs(utterance.seconds - 4.0)

    own.sort(key=unfit)
    samples = 0
    for count, i in enumerate(own, 1):
        samples += corpus.utterances[i].samples
        if samples >= seconds * RATE:
            return own[:count]
    return own
