"""How T3's dimensions travel to the model inside vLLM: as fields of a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import Self

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.vllm.plugin import ARCHITECTURES


@dataclass(frozen=True)
class T3Fields:
    """What the model of any backbone needs to know.

    `hidden_size` and head counts of the Hugging Face config are `streams` times these, since that is what vLLM sizes
    prompt embeddings and the KV cache by.
    """

    streams: int
    width: int
    layers: int
    heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    vocab_size: int

    @classmethod
    def from_hf(cls, hf_config: Any) -> Self:
        return cls(**hf_config.t3)


@dataclass(frozen=True)
class LlamaFields(T3Fields):
    """What `T3ForSpeech` needs beside.

    Attributes:
        kept_queries: layers, in order, and heads of the conditional stream whose queries outlast a step.
    """

    speech_positions: int
    sos_position: int
    max_position: int
    rope_parameters: dict[str, Any]
    kept_queries: list[tuple[int, int]]


@dataclass(frozen=True)
class Gpt2Fields(T3Fields):
    """What `T3Gpt2ForSpeech` needs beside."""

    positions: int


@dataclass(frozen=True)
class SamplingFields:
    """What `SpeechSampler` needs.

    Attributes:
        penalty_last: see `T3Config.penalty_last`; the penalty then falls on start-of-speech at the first step alone.
    """

    streams: int
    vocab_size: int
    penalty_last: bool

    @classmethod
    def from_hf(cls, hf_config: Any) -> SamplingFields:
        return cls(**hf_config.t3_sampling)


@dataclass(frozen=True)
class AlignmentFields:
    """What `FollowText` needs.

    Attributes:
        text_start: row of a prompt at which its text begins.
    """

    text_start: int
    end_token: int
    streams: int
    vocab_size: int

    @classmethod
    def from_hf(cls, hf_config: Any) -> AlignmentFields:
        return cls(**hf_config.t3_alignment)


def hf_config(
    config: T3Config, streams: int, max_prompt: int, max_model_len: int, follow_text: bool = False
) -> dict[str, Any]:
    """The `config.json` for vLLM.

    Args:
        streams: 2 for classifier-free guidance, 1 for a model without.
        max_prompt: longest prompt in rows; the last row of every prompt of Llama stands at position `max_prompt - 1`.
        max_model_len: longest sequence, prompt and speech together.
        follow_text: keep what `FollowText` needs.

    Raises:
        ConfigError: the model has no alignment heads to follow, or has not the ones that it names.
    """
    return {
        "architectures": [ARCHITECTURES[config.backbone][0]],
        "t3_sampling": asdict(SamplingFields(streams, config.speech_vocab_size, config.penalty_last)),
        "hidden_size": streams * config.hidden_size,
        "num_attention_heads": streams * config.num_heads,
        "num_key_value_heads": streams * config.num_heads,
        "head_dim": config.head_dim,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.speech_vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": config.start_speech_token,
        "eos_token_id": config.stop_speech_token,
        "torch_dtype": "float32",
        **_OWN[config.backbone](config, streams, max_prompt, max_model_len, follow_text),
        **(_alignment(config, streams) if follow_text else {}),
    }


def _alignment(config: T3Config, streams: int) -> dict[str, Any]:
    heads = config.alignment_heads
    inside = all(layer < config.num_layers and head < config.num_heads for layer, head in heads)
    if not heads or not inside or config.backbone != "llama":
        raise ConfigError(
            f"no text can be followed with alignment_heads={list(heads)} of a T3 on {config.backbone} with "
            f"{config.num_layers} layers of {config.num_heads} heads: name heads that it has, or leave follow_text out"
        )
    fields = AlignmentFields(config.conditioning_length, config.stop_speech_token, streams, config.speech_vocab_size)
    return {"t3_alignment": asdict(fields)}


def _common(config: T3Config, streams: int, norm_eps: float) -> dict[str, Any]:
    return {
        "streams": streams,
        "width": config.hidden_size,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "head_dim": config.head_dim,
        "mlp_width": config.intermediate_size,
        "norm_eps": norm_eps,
        "vocab_size": config.speech_vocab_size,
    }


def _llama(config: T3Config, streams: int, max_prompt: int, max_model_len: int, follow_text: bool) -> dict[str, Any]:
    rope = {
        "rope_type": "llama3",
        "rope_theta": config.rope_theta,
        "factor": config.rope_factor,
        "low_freq_factor": config.rope_low_freq_factor,
        "high_freq_factor": config.rope_high_freq_factor,
        "original_max_position_embeddings": config.rope_original_max_position,
    }
    # Positions end at the last prompt row plus everything generated after it.
    max_position = max_prompt + max_model_len
    fields = LlamaFields(
        **_common(config, streams, config.rms_norm_eps),
        speech_positions=config.speech_positions,
        sos_position=max_prompt - 1,
        max_position=max_position,
        rope_parameters=rope,
        kept_queries=sorted(config.alignment_heads) if follow_text else [],
    )
    return {
        "model_type": "llama",
        "t3": asdict(fields),
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        # Transformers warns unless this is above the rope's original 8192.
        "max_position_embeddings": max(max_position, 2 * config.rope_original_max_position),
        "rope_parameters": rope,
        # A top-level section switches vLLM's per-request positions on; all rows are alike, so its split is moot.
        "mrope_section": [config.head_dim // 2, 0, 0],
    }


def _gpt2(config: T3Config, streams: int, max_prompt: int, max_model_len: int, _follow_text: bool) -> dict[str, Any]:
    fields = Gpt2Fields(**_common(config, streams, config.layer_norm_eps), positions=config.positions)
    return {
        "model_type": "gpt2",
        "t3": asdict(fields),
        "layer_norm_epsilon": config.layer_norm_eps,
        "max_position_embeddings": config.positions,
    }


_OWN = {"llama": _llama, "gpt2": _gpt2}
