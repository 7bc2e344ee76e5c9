"""Lets a model say the held-out sentences of a corpus, each in the voice of its speaker, for `training.judge`.

    python -m training.speak --model MODEL --corpus CORPUS --out OUT [--say cfg_weight=0] [--load dtype='"float32"']

Voices are cloned from clips of the corpus, as users clone them; what a clip holds is not said again. OUT gets
`spoken` (the model), `recorded` (the teacher) and `references` (the clips), wav files and a list of each:

    python -m training.judge OUT/spoken.tsv --references OUT/references.tsv
"""

from __future__ import annotations

import argparse
import ast
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatterbox_vllm import ChatterboxTTS
from training.data import RATE, Corpus
from training.lists import write_list
from training.reference import reference_utterances


def judged(corpus: Corpus, clips: dict[int, list[int]], every: int) -> dict[int, list[int]]:
    """Held-out utterances by speaker, without those in his clip; of all together every so many-th."""
    used = {i for clip in clips.values() for i in clip}
    held_out = [i for i, u in enumerate(corpus.utterances) if u.held_out and i not in used][::every]
    by_speaker: defaultdict[int, list[int]] = defaultdict(list)
    for i in held_out:
        by_speaker[corpus.utterances[i].speaker].append(i)
    return dict(by_speaker)


def keywords(given: list[str]) -> dict[str, Any]:
    """What NAME=VALUE options say; a value is a Python literal, or else a string."""
    parsed: dict[str, Any] = {}
    for option in given:
        name, _, value = option.partition("=")
        try:
            parsed[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parsed[name] = value
    return parsed


def speak(
    tts: ChatterboxTTS, corpus: Corpus, clips: dict[int, list[int]], utterances: dict[int, list[int]], out: Path,
    seed: int, options: dict[str, Any],
) -> dict[int, np.ndarray]:  # fmt: skip
    """Samples on the scale of int16, by utterance; texts that fail are said and left out."""
    spoken: dict[int, np.ndarray] = {}
    for speaker, own in utterances.items():
        texts = [corpus.utterances[i].text for i in own]
        clip = out / f"{corpus.speakers[speaker].name}.clip.wav"
        write_clip(clip, corpus, clips[speaker])
        tts.prepare_conditionals(clip)
        for i, made in zip(
            own, tts.generate(texts, seed=seed, return_exceptions=True, progress=False, **options), strict=True
        ):
            if isinstance(made, Exception):
                print(f"{corpus.utterances[i].text!r}: {made}", flush=True)
            else:
                spoken[i] = (made[0].clamp(-1, 1).numpy() * 32_767).round()
    return spoken


def write_clip(path: Path, corpus: Corpus, utterances: list[int]) -> None:
    """One wav file of some utterances with pauses between them."""
    from chatterbox_vllm.audio.encode import write_audio

    pause = np.zeros(RATE // 4, np.float32)
    parts = [part for i in utterances for part in (corpus.audio(i).astype(np.float32) / 32_768, pause)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    write_audio(path, torch.from_numpy(np.concatenate(parts[:-1])), RATE)


def main() -> None:
    given = parser().parse_args()
    corpus = Corpus(given.corpus)
    named = set(given.speaker) or {speaker.name for speaker in corpus.speakers}
    held_out = {u.speaker for u in corpus.utterances if u.held_out and corpus.speakers[u.speaker].name in named}
    clips = {speaker: reference_utterances(corpus, speaker, given.clip_seconds) for speaker in sorted(held_out)}
    utterances = judged(corpus, clips, given.every)
    utterances = {speaker: own for speaker, own in utterances.items() if speaker in held_out}
    recordings = {i: corpus.audio(i) for own in utterances.values() for i in own}
    write_list(given.out, "recorded", recordings, corpus)
    write_list(given.out, "references", {i: corpus.audio(i) for clip in clips.values() for i in clip}, corpus)
    tts = ChatterboxTTS.from_pretrained(str(given.model), given.device, watermark=False, **keywords(given.load))
    begun = time.monotonic()
    spoken = speak(tts, corpus, clips, utterances, given.out, given.seed, keywords(given.say))
    taken = time.monotonic() - begun
    write_list(given.out, "spoken", spoken, corpus)
    seconds = sum(map(len, spoken.values())) / RATE
    print(f"{len(spoken)} of {len(recordings)} sentences, {seconds:.0f} s of speech in {taken:.0f} s")


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True, help="name or directory")
    arguments.add_argument("--corpus", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--speaker", action="append", default=[], help="only this one; may be given several times")
    arguments.add_argument("--every", type=int, default=1, help="of the sentences, every so many-th")
    arguments.add_argument("--clip-seconds", type=float, default=5.0, help="of the clip that a voice is cloned from")
    arguments.add_argument("--say", action="append", default=[], help="NAME=VALUE for `generate`")
    arguments.add_argument("--load", action="append", default=[], help="NAME=VALUE for `from_pretrained`")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--seed", type=int, default=1)
    return arguments


if __name__ == "__main__":
    main()
