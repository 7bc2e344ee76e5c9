"""T3 as it is trained: batches of padded sequences, in the layout that inference uses.

A token's row in the tables of embeddings, and in the head, is a sum: what it shares with others (the digits of its
code, the letters of a piece of text) and a part of its own. So a code that the corpus has three times is known by its
neighbours. `published` adds the parts up; inference knows nothing of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.llama import DOWN, GATE_UP, INPUT_NORM, OUT, POST_NORM, QKV, Llama, rotate, rotation

_CODE_DIGITS, _LEVELS = 8, 3
_EMBEDDING_DEVIATION = 0.4
_POSITION_AMPLITUDE = 0.3
_LONGEST_WAVE = 10_000.0
IGNORED = -100  # a target that has no loss


@dataclass(frozen=True)
class Sequences:
    """Padded sequences, on the device.

    Attributes:
        speaker: [B, E] voice embeddings.
        prompt: [B, n] speech tokens of another utterance.
        emotion: [B]; 0.5 is neutral.
        text: [B, longest] ids with start and stop, `text_counts` [B] of them inside.
        speech: [B, longest] tokens that T3 hears, `speech_counts` [B] of them inside.
        targets: [B, longest + 1] tokens that T3 shall say, the stop last, `IGNORED` from there on.
        unconditional: [B] bool, whether T3 gets no text.
        rows: of the longest sequence, all parts together.
    """

    speaker: torch.Tensor
    prompt: torch.Tensor
    emotion: torch.Tensor
    text: torch.Tensor
    text_counts: torch.Tensor
    speech: torch.Tensor
    speech_counts: torch.Tensor
    targets: torch.Tensor
    unconditional: torch.Tensor
    rows: int


class SharedTable(nn.Module):
    """A table [n, width] of `features` [n, f] times what is learnt for each feature, plus a part of each row's own."""

    def __init__(self, features: torch.Tensor, width: int, deviation: float):
        super().__init__()
        self.register_buffer("features", features)
        per_row = features.square().sum(1).mean().clamp(min=1.0).sqrt().item()
        self.shared = nn.Parameter(torch.randn(features.shape[1], width) * deviation / per_row)
        self.own = nn.Parameter(torch.randn(features.shape[0], width) * deviation * 0.1)

    def forward(self) -> torch.Tensor:
        return self.features @ self.shared + self.own

    @torch.no_grad()
    def take(self, table: torch.Tensor) -> None:
        """Become this table [n, width], as much of it as possible in what the rows share."""
        shared = torch.linalg.lstsq(self.features, table, driver="gelsd").solution
        self.shared.copy_(shared)
        self.own.copy_(table - self.features @ shared)


def code_features(config: T3Config) -> torch.Tensor:
    """The digits of every speech token, one-hot, float32 [vocabulary, 24]; zero for control tokens."""
    ids = torch.arange(_LEVELS**_CODE_DIGITS)
    digits = (ids[:, None] // _LEVELS ** torch.arange(_CODE_DIGITS)) % _LEVELS
    features = torch.zeros(config.speech_vocab_size, _CODE_DIGITS * _LEVELS)
    features[: len(ids)] = F.one_hot(digits, _LEVELS).flatten(1).float()
    return features


class Layer(nn.Module):
    """A Llama layer; linear layers of one input are one."""

    def __init__(self, config: T3Config, dropout: float):
        super().__init__()
        width, heads_width = config.hidden_size, config.num_heads * config.head_dim
        self.heads, self.dropout = config.num_heads, dropout
        self.input_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.post_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.qkv = nn.Linear(width, 3 * heads_width, bias=False)
        self.out = nn.Linear(heads_width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)
        for layer in (self.qkv, self.gate_up):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(width))
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(2 * config.num_layers * layer.in_features))

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """[B, T, H] -> [B, T, H], and the queries and keys [B, heads, T, head_dim]."""
        q, k, v = self.qkv(self.input_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (rotate(t, *rotation).to(v.dtype) for t in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training), q, k

    def published(self, index: int) -> dict[str, torch.Tensor]:
        weights = dict(zip(QKV, self.qkv.weight.chunk(3), strict=True))
        weights |= dict(zip(GATE_UP, self.gate_up.weight.chunk(2), strict=True))
        weights |= {OUT[0]: self.out.weight, DOWN[0]: self.down.weight}
        weights |= {INPUT_NORM: self.input_norm.weight, POST_NORM: self.post_norm.weight}
        return {Llama().key(index, name): weight for name, weight in weights.items()}

    @torch.no_grad()
    def take(self, index: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over layer `index` of what `published` gives."""

        def stored(*names: str) -> torch.Tensor:
            return torch.cat([tensors[Llama().key(index, name)] for name in names])

        modules = {QKV: self.qkv, GATE_UP: self.gate_up, OUT: self.out, DOWN: self.down}
        modules |= {(INPUT_NORM,): self.input_norm, (POST_NORM,): self.post_norm}
        for names, module in modules.items():
            module.weight.copy_(stored(*names))


class TrainedT3(nn.Module):
    """T3 with fresh weights.

    Args:
        text_features: see `training.text.character_features`.
        tokens_per_piece: of speech, for a piece of text. With it the learned positions start as waves that are in step
            where text and speech are.
        aligned: layers whose first head is shown where to look; see `alignment`.
    """

    def __init__(
        self,
        config: T3Config,
        text_features: torch.Tensor,
        tokens_per_piece: float = 1.7,
        dropout: float = 0.1,
        aligned: tuple[int, ...] = (1, 2),
    ):
        super().__init__()
        self.config, self.dropout, self.aligned = config, dropout, aligned
        self.builder = PromptBuilder(config)
        width = config.hidden_size
        codes = code_features(config)
        self.text_table = SharedTable(text_features, width, _EMBEDDING_DEVIATION)
        self.speech_table = SharedTable(codes, width, _EMBEDDING_DEVIATION)
        self.head_table = SharedTable(codes, width, 0.5 / math.sqrt(width))
        # Their places are taken by the tables.
        del self.builder.text_emb, self.builder.speech_emb
        _wave_positions(self.builder.text_pos_emb.emb.weight, tokens_per_piece)
        _wave_positions(self.builder.speech_pos_emb.emb.weight, 1.0)
        nn.init.normal_(self.builder.cond_enc.perceiver.pre_attention_query, std=_EMBEDDING_DEVIATION)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width, config.rms_norm_eps)
        self._rotations: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, batch: Sequences, guided: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, longest + 1, vocabulary] for the targets, and if `guided` how far off the guided heads look."""
        said, off = self.hidden(batch, guided)
        return self.logits(said), off

    def logits(self, said: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., vocabulary]."""
        return F.linear(said, self.head_table().to(said.dtype))

    def hidden(self, batch: Sequences, guided: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `logits` takes, [B, longest + 1, H], and if `guided` how far off the guided heads look."""
        x, begins = self.rows(batch)
        x = F.dropout(x, self.dropout, self.training)
        rotation = self._rotation(x.shape[1], x.device)
        places = begins[:, None] + torch.arange(batch.targets.shape[1], device=x.device)
        places = places.clamp(max=x.shape[1] - 1)
        off = []
        for index, layer in enumerate(self.layers):
            x, q, k = layer(x, rotation)
            if guided and index in self.aligned:
                off.append(alignment(q[:, 0], k[:, 0], places, self.config.conditioning_length, batch))
        said = self.norm(x).gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        return said, torch.stack(off).mean() if off else None

    def rows(self, batch: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        """All sequences as `PromptBuilder.prompt` makes them, speech after them: [B, rows, H], padded at the end.

        Also [B]: the row of each that the first speech token follows from.
        """
        config, builder = self.config, self.builder
        text_table, speech_table = self.text_table(), self.speech_table()
        speech_positions = builder.speech_pos_emb.emb.weight
        prompt = F.embedding(batch.prompt, speech_table) + builder.speech_pos_emb.first(batch.prompt.shape[1])
        conditioning = builder.cond_enc(batch.speaker, prompt, batch.emotion)
        text = F.embedding(batch.text, text_table) * ~batch.unconditional[:, None, None]
        text = text + builder.text_pos_emb.first(batch.text.shape[1])
        start = (speech_table[config.start_speech_token] + speech_positions[0]).expand(len(text), 2, -1)
        speech = F.embedding(batch.speech, speech_table) + speech_positions[1 : batch.speech.shape[1] + 1]
        parts = torch.cat([conditioning.to(text.dtype), text, start, speech], dim=1)

        def inside(counts: torch.Tensor, longest: int) -> torch.Tensor:
            return torch.arange(longest, device=counts.device) < counts[:, None]

        always = torch.ones(len(text), 1, dtype=torch.bool, device=text.device)
        kept = torch.cat(
            [
                always.expand(-1, conditioning.shape[1]),
                inside(batch.text_counts, text.shape[1]),
                always.expand(-1, 2),
                inside(batch.speech_counts, speech.shape[1]),
            ],
            dim=1,
        )
        # The rows that are kept, in their order, then the padding.
        order = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, : batch.rows]
        packed = parts.gather(1, order[..., None].expand(-1, -1, parts.shape[2]))
        return packed, config.conditioning_length + batch.text_counts + 1

    @torch.no_grad()
    def published(self) -> dict[str, torch.Tensor]:
        """All tensors of the published T3 file, by its keys, float32 on the CPU."""
        tensors = {**self.builder.state_dict()}
        tensors["text_emb.weight"], tensors["speech_emb.weight"] = self.text_table(), self.speech_table()
        for index, layer in enumerate(self.layers):
            tensors |= layer.published(index)
        tensors |= {"tfmr.norm.weight": self.norm.weight, "speech_head.weight": self.head_table()}
        return {key: tensor.detach().float().cpu().clone() for key, tensor in tensors.items()}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `published` gives, of this model or another one of its dimensions."""
        self.builder.load_state_dict({name: tensors[name] for name in self.builder.state_dict()})
        self.text_table.take(tensors["text_emb.weight"])
        self.speech_table.take(tensors["speech_emb.weight"])
        self.head_table.take(tensors["speech_head.weight"])
        for index, layer in enumerate(self.layers):
            layer.take(index, tensors)
        self.norm.weight.copy_(tensors["tfmr.norm.weight"])

    def _rotation(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rotations is None or self._rotations[0].device != device:
            longest = self.config.text_positions + self.config.speech_positions + self.config.conditioning_length
            cosine, sine = rotation(self.config, longest)
            self._rotations = cosine.to(device), sine.to(device)
        cosine, sine = self._rotations
        return cosine[:length], sine[:length]


def alignment(
    query: torch.Tensor,
    key: torch.Tensor,
    places: torch.Tensor,
    conditioning: int,
    batch: Sequences,
    width: float = 0.1,
) -> torch.Tensor:
    """How much of a head's attention does not go where the text is that is being said, 0 to 1.

    Speech runs through its text at about an even pace, so the share of it that is over tells the share of the text,
    give or take `width` (guided attention; Tachibana et al., 2017). Sequences without text do not count.

    Args:
        query, key: [B, T, head_dim], rotated.
        places: rows that say the targets, [B, n].
    """
    device = query.device
    asked = query.gather(1, places[..., None].expand(-1, -1, query.shape[2]))
    scores = asked.float() @ key.float().transpose(1, 2) / math.sqrt(query.shape[2])
    rows = torch.arange(key.shape[1], device=device)
    scores = scores.masked_fill(rows > places[..., None], float("-inf"))
    text_share = (rows - conditioning) / batch.text_counts[:, None]
    speech_share = torch.arange(places.shape[1], device=device) / (batch.speech_counts[:, None] + 1)
    wanted = torch.exp(-(speech_share[..., None] - text_share[:, None]).square() / (2 * width**2))
    is_text = (rows >= conditioning) & (rows < conditioning + batch.text_counts[:, None])
    found = (scores.softmax(-1) * wanted * is_text[:, None]).sum(-1)
    counted = (batch.targets != IGNORED) & ~batch.unconditional[:, None]
    return ((1 - found) * counted).sum() / counted.sum().clamp(min=1)


def _wave_positions(table: torch.Tensor, pace: float) -> None:
    """Fill [count, width] with sines and cosines of wavelengths from 2 pi to `_LONGEST_WAVE`, `pace` steps a row."""
    count, width = table.shape
    frequencies = _LONGEST_WAVE ** -(torch.arange(0, width, 2) / width)
    angles = pace * torch.arange(count)[:, None] * frequencies
    with torch.no_grad():
        table.copy_(_POSITION_AMPLITUDE * torch.cat((angles.sin(), angles.cos()), dim=1))
