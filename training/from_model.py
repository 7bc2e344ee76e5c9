"""Takes a model apart into what the training scripts leave, so that they can go on with it, on this corpus or another.

    python -m training.from_model MODEL --corpus CORPUS --out RUN

RUN gets the weights of `tokenizer`, `speakers`, `flow`, `hift` and `t3`, which `--resume` starts from, the text
tokenizer, and in `codes` what the model's own nets say of the corpus. So T3, flow and vocoder can be taught more
without another codebook. A model does not hold what training alone needs (the heads of the speech tokenizer, the
speakers' centres, the vocoder's discriminators); a training begins these afresh.

MODEL is a directory in the published layout, or `small` for the model in the package.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from chatterbox_vllm.audio.features import kaldi_fbank, speech_tokenizer_mel, trim_silence, voice_encoder_mel
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.families.english import ENGLISH, TOKENIZER
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.small import small_directory
from chatterbox_vllm.s3gen.networks import S3GenNetworks
from chatterbox_vllm.t3.llama import Llama
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder
from chatterbox_vllm.voices.nets.xvector import CAMPPlus
from training.codes import CODEBOOK, CODES, save_tokens, save_vectors
from training.data import Corpus
from training.features import corpus_features
from training.flow import FlowNetworks
from training.speakers import voice_embeddings, xvectors
from training.t3_model import TrainedT3
from training.text import FILE, character_features
from training.tokenizer import corpus_tokens
from training.weights import keep_weights

SMALL_NAME = "small"


class Nets:
    """The nets of a reference clip, as a model holds them."""

    def __init__(self, model: Path, config: ModelConfig, device: torch.device):
        s3gen, voice_encoder = Weights(model / ENGLISH.s3gen), Weights(model / ENGLISH.voice_encoder)
        self.tokenizer = _read(SpeechTokenizer(config.s3gen.tokenizer), s3gen, "tokenizer.").to(device)
        self.xvector = _read(CAMPPlus(config.s3gen.xvector), s3gen, "speaker_encoder.").to(device)
        self.voice_encoder = _read(VoiceEncoder(config.voice_encoder), voice_encoder, "").to(device)

    def write_codes(self, corpus: Corpus, config: ModelConfig, device: torch.device, out: Path) -> None:
        """What they say of every utterance, as `training.tokenizer` and `training.speakers` write it."""
        filters = self.tokenizer._mel_filters

        def power_mel(_: torch.Tensor, wave: torch.Tensor) -> torch.Tensor:
            start, end = trim_silence(wave)
            return voice_encoder_mel(wave[start:end], config.voice_encoder.num_mels).half()

        heard, mels, fbanks = corpus_features(
            corpus, device,
            lambda _, wave: speech_tokenizer_mel(wave, filters).T.half(),
            power_mel,
            lambda _, wave: kaldi_fbank(wave, config.s3gen.xvector.num_mels).half(),
        )  # fmt: skip
        save_tokens(out, corpus_tokens(self.tokenizer, heard))
        save_vectors(out, xvectors(self.xvector, fbanks), voice_embeddings(self.voice_encoder, mels))


def _read(module: nn.Module, weights: Weights, prefix: str) -> nn.Module:
    load_module(module, weights, prefix)
    return module.eval()


def keep_nets(nets: Nets, config: ModelConfig, out: Path) -> None:
    """Write `tokenizer` and `speakers`."""
    tokenizer = {f"tokenizer.{name}": value for name, value in nets.tokenizer.state_dict().items()}
    # Its tokens are the model's own, so voices that were enrolled with the model go with what is trained on.
    named = asdict(config.s3gen.tokenizer) | {CODEBOOK: config.codebook}
    keep_weights(out / "tokenizer", _on_cpu(tokenizer), named)
    of_speakers = {"voice_encoder": nets.voice_encoder, "xvector": nets.xvector}
    state = {f"{part}.{name}": value for part, net in of_speakers.items() for name, value in net.state_dict().items()}
    keep_weights(out / "speakers", _on_cpu(state), asdict(config))


def keep_s3gen(model: Path, config: ModelConfig, out: Path) -> None:
    """Write `flow` and `hift`."""
    published = S3GenNetworks(config.s3gen)
    for prefix, part in published.published_parts().items():
        load_module(part, Weights(model / ENGLISH.s3gen), prefix)
    flow = FlowNetworks(config.s3gen)
    state = published.state_dict()
    flow.codes.take(state.pop("encoder.input_embedding.weight"))
    wanted = flow.state_dict().keys()
    flow.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    keep_weights(out / "flow", flow.state_dict(), asdict(config.s3gen.flow))
    keep_weights(out / "hift", published.vocoder.state_dict(), asdict(config.s3gen.hift))


def keep_t3(model: Path, config: ModelConfig, out: Path) -> None:
    """Write `t3` and `text`."""
    text = out / "text" / FILE
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_bytes((model / TOKENIZER).read_bytes())
    weights = Weights(model / ENGLISH.t3)
    trained = TrainedT3(config.t3, character_features(Tokenizer.from_file(str(text)), config.t3.text_vocab_size))
    trained.take({key: weights.get(key).float() for key in Llama().published_shapes(config.t3)})
    keep_weights(out / "t3", trained.state_dict(), asdict(config.t3))


def _on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in state.items()}


def take_apart(model: Path, corpus: Corpus | None, out: Path, device: torch.device) -> None:
    """Write everything to `out`; without a corpus no codes.

    Raises:
        CheckpointError: the model's files do not fit its `config.json`.
    """
    config = config_of(model)
    keep_t3(model, config, out)
    keep_s3gen(model, config, out)
    nets = Nets(model, config, device)
    keep_nets(nets, config, out)
    if corpus is not None:
        nets.write_codes(corpus, config, device, out / CODES)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", help="a directory, or small")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--corpus", type=Path, help="whose codes are written; none without it")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()
    model = small_directory() if given.model == SMALL_NAME else Path(given.model)
    corpus = None if given.corpus is None else Corpus(given.corpus)
    begun = time.monotonic()
    take_apart(model, corpus, given.out, torch.device(given.device))
    print(f"{given.out}: the parts of {model}, in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
