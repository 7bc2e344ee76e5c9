"""S3Gen's side of an engine, started and warm."""

from __future__ import annotations

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.synthesis import Synthesis, make_synthesis
from chatterbox_vllm.errors import ChatterboxError, DeviceError
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.setup.tiers import Plan
from chatterbox_vllm.voices.hearing import Speaker


def start_synthesis(
    s3gen: S3Gen, plan: Plan, watermarker: Watermarker | None, device: torch.device, voice: Speaker | None, steps: int
) -> Synthesis:
    """The stage and its threads, warm where there is a voice to speak with.

    Args:
        steps: of the flow, for the warm-up.

    Raises:
        DeviceError: it cannot start, memory does not suffice among others. No thread of it is left then.
    """
    voicing = make_synthesis(S3GenStage(s3gen, plan.s3gen_batch, plan.s3gen_frames), watermarker, device)
    if voice is None:
        return voicing
    try:
        voicing.warm_up(voice, steps)
    except BaseException as error:
        voicing.close()
        if isinstance(error, (ChatterboxError, torch.OutOfMemoryError)):
            raise DeviceError(f"S3Gen cannot start: {error}") from error
        raise
    return voicing
