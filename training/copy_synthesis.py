"""Says held-out utterances again from their own speech tokens: what flow and vocoder can do at best.

    python -m training.copy_synthesis --corpus CORPUS --tokens CODES --parts OUT --out WAVES --device cuda

For each utterance, the flow continues another one of its speaker. WAVES gets three folders of 24 kHz wav files and a
list of each for `training.judge`: `copied` (tokens, flow, vocoder), `vocoded` (the recording's mel, vocoder) and
`recorded`, which is the judge's list of references, too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.s3gen.prompt import MOST_PROMPT_TOKENS, FlowPrompt
from chatterbox_vllm.s3gen.request import S3GenRequest
from training.codes import Codes
from training.data import Corpus
from training.flow import load_flow
from training.frames import HOP_24K, Features
from training.lists import write_list
from training.small import SMALL
from training.weights import load_weights

KINDS = ("copied", "vocoded", "recorded")
_AT_ONCE = 16


def speaking_model(config: S3GenConfig, parts: Path, device: torch.device) -> S3Gen:
    """S3Gen with the trained flow and vocoder of `parts`, float32."""
    model = S3Gen(config)
    vocoder = {f"vocoder.{name}": value for name, value in load_weights(parts / "hift").items()}
    model.load_state_dict(load_flow(parts / "flow", config).published_state() | vocoder)
    return model.to(device)


def chosen(corpus: Corpus, count: int) -> list[int]:
    """Held-out utterances of at least 1 s, of as many speakers as there are, in turn; all where none is held out."""
    held_out = [i for i, u in enumerate(corpus.utterances) if u.held_out] or list(range(len(corpus.utterances)))
    seen: dict[int, int] = {}
    turns = []
    for i in held_out:
        utterance = corpus.utterances[i]
        if utterance.seconds >= 1.0:
            turns.append((seen.setdefault(utterance.speaker, 0), i))
            seen[utterance.speaker] += 1
    return [i for _, i in sorted(turns)[:count]]


def prompter(corpus: Corpus, utterance: int) -> int:
    """Another utterance of its speaker, the nearest to 4 s; itself where there is none."""
    speaker = corpus.utterances[utterance].speaker
    others = [i for i, u in enumerate(corpus.utterances) if u.speaker == speaker and i != utterance]
    return min(others, key=lambda i: abs(corpus.utterances[i].seconds - 4.0), default=utterance)


def prompt_of(features: Features, codes: Codes, utterance: int) -> FlowPrompt:
    """The flow's prompt of an utterance's first 10 s."""
    tokens = codes.of(utterance)[:MOST_PROMPT_TOKENS].astype(np.int64)
    begin = UPSAMPLING * int(codes.begins[utterance])
    mel = features.mels[begin : begin + UPSAMPLING * len(tokens)].float().cpu()
    return FlowPrompt(torch.from_numpy(tokens), mel, torch.from_numpy(codes.xvectors[utterance]))


def main(config: S3GenConfig = SMALL.s3gen, argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    device = torch.device(given.device)
    corpus, codes = Corpus(given.corpus), Codes.read(given.tokens)
    features = Features.of(corpus, device, config.flow.num_mels)
    model = speaking_model(config, given.parts, device)
    spoken: dict[str, dict[int, np.ndarray]] = {kind: {} for kind in KINDS}
    utterances = chosen(corpus, given.count)
    begun, seconds = time.monotonic(), 0.0
    for first in range(0, len(utterances), _AT_ONCE):
        some = utterances[first : first + _AT_ONCE]
        requests = []
        for i in some:
            prompt, tokens = prompt_of(features, codes, prompter(corpus, i)), codes.of(i).astype(np.int64)
            requests.append(S3GenRequest(torch.from_numpy(tokens), prompt, model.draw_noise(i, len(tokens), prompt)))
        begins = [UPSAMPLING * int(codes.begins[i]) for i in some]
        mels = [
            features.mels[a : a + UPSAMPLING * int(codes.counts[i])].float() for a, i in zip(begins, some, strict=True)
        ]
        waves = {
            "copied": model.synthesize(requests, given.steps),
            "vocoded": model.waveform(mels, [request.noise for request in requests]),
            "recorded": [
                features.audio[a * HOP_24K :][: len(mel) * HOP_24K].float() / 32_768
                for a, mel in zip(begins, mels, strict=True)
            ],
        }
        for kind, made in waves.items():
            spoken[kind].update((i, (w.cpu().numpy() * 32_767).round()) for i, w in zip(some, made, strict=True))
        seconds += sum(corpus.utterances[i].seconds for i in some)
    for kind in KINDS:
        write_list(given.out, kind, spoken[kind], corpus)
    print(f"{len(utterances)} utterances, {seconds:.0f} s of speech, in {time.monotonic() - begun:.0f} s")


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--corpus", type=Path, required=True)
    arguments.add_argument("--tokens", type=Path, required=True, help="directory of the corpus's codes")
    arguments.add_argument("--parts", type=Path, required=True, help="directory of `flow` and `hift`")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--count", type=int, default=60, help="utterances")
    arguments.add_argument("--steps", type=int, default=10, help="of the flow")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return arguments


if __name__ == "__main__":
    main()
