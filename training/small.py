"""The dimensions of the small model, and what they cost in storage.

python -m training.small
"""

from __future__ import annotations

import math

from chatterbox_vllm.checkpoint.config import (
    FlowConfig,
    HiFTConfig,
    ModelConfig,
    S3GenConfig,
    SpeechTokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
    XVectorConfig,
)
from chatterbox_vllm.families.layout import checkpoint_shapes

# The kernels for half precision take channels that are a power of two in the estimator, and multiples of 16 in the
# vocoder.
SMALL = ModelConfig(
    synthetic=False,
    # No judge heard 4 steps as worse than 10 (docs/small-model.md).
    diffusion_steps=4,
    t3=T3Config(
        hidden_size=256,
        num_layers=7,
        num_heads=4,
        head_dim=64,
        intermediate_size=768,
        text_vocab_size=512,
        speech_vocab_size=6592,
        text_positions=512,
        speech_positions=1536,
        perceiver_queries=16,
    ),
    s3gen=S3GenConfig(
        tokenizer=SpeechTokenizerConfig(hidden_size=192, num_heads=3, num_layers=4),
        xvector=XVectorConfig(
            head_channels=16, init_channels=64, growth_rate=16, bottleneck_factor=4, block_layers=(6, 12, 8)
        ),
        flow=FlowConfig(
            hidden_size=192,
            encoder_heads=3,
            encoder_ff_size=512,
            encoder_blocks=2,
            upsampled_blocks=1,
            estimator_channels=128,
            estimator_heads=2,
            estimator_head_dim=64,
            estimator_transformer_blocks=2,
            estimator_mid_stages=4,
        ),
        hift=HiFTConfig(base_channels=256, resblock_kernels=(3, 7), source_kernels=(3, 5, 7), f0_channels=128),
    ),
    voice_encoder=VoiceEncoderConfig(hidden_size=192, num_layers=2),
)

# By the beginning of a key in `s3gen.safetensors`.
_S3GEN_PARTS = {
    "tokenizer.": "speech tokenizer",
    "speaker_encoder.": "x-vector net",
    "flow.decoder.": "flow's estimator",
    "flow.": "flow's encoder",
    "mel2wav.": "vocoder",
}


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many numbers the files hold for each part."""
    counts: dict[str, int] = {}
    for file, shapes in checkpoint_shapes(config).items():
        for key, shape in shapes.items():
            part = next((name for start, name in _S3GEN_PARTS.items() if key.startswith(start)), file)
            part = part if file == "s3gen" else {"t3": "T3", "voice_encoder": "voice encoder"}[file]
            counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def main() -> None:
    counts = parameters_by_part(SMALL)
    for part, count in {**counts, "all": sum(counts.values())}.items():
        print(f"{part:20} {count / 1e6:7.3f} M parameters, {count / 1e6:7.2f} MB in 8 bits, {count / 5e5:7.2f} in 16")


if __name__ == "__main__":
    main()
