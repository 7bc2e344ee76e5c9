"""From noise to mel: Euler steps along the estimator's velocity (Lipman et al. 2023, arXiv 2210.02747)."""

from __future__ import annotations

import math

import torch

from chatterbox_vllm.models.s3gen.estimator import Estimator


def time_span(steps: int, cosine: bool) -> torch.Tensor:
    """The `steps + 1` moments of the flow, 0 to 1, float32 on the CPU; cosine ones crowd at the start."""
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    return 1 - torch.cos(even * (0.5 * math.pi)) if cosine else even


def solve(
    estimator: Estimator,
    z: torch.Tensor,
    mu: torch.Tensor,
    speaker: torch.Tensor,
    prompt: torch.Tensor,
    padding: torch.Tensor | None = None,
    steps: int = 10,
    cfg_rate: float = 0.7,
    meanflow: bool = False,
) -> torch.Tensor:
    """Follow the flow from the noise `z` to a mel, with classifier-free guidance.

    Both streams of the guidance are rows of one estimator call: v = (1 + cfg_rate) * conditional - cfg_rate *
    unconditional, where the unconditional stream has zeros for mean, speaker and prompt mel (Ho and Salimans 2022,
    arXiv 2207.12598). The state is float32 whatever the estimator's dtype.

    Args:
        z: [rows, frames, mels] float32 noise, finite in the padding.
        mu: [rows, frames, mels], the encoder's mean.
        speaker: [rows, mels], the projected x-vector.
        prompt: [rows, frames, mels], the reference mel, zeros after it.
        padding: [rows, frames] bool, True in the padding; None if there is none.
        steps: Euler steps.
        meanflow: even steps without guidance, for an estimator distilled so.

    Returns:
        [rows, frames, mels] float32; the frames of the prompt and the padding carry no meaning.
    """
    rows, frames, _ = z.shape
    guided = not meanflow
    dtype = estimator.dtype
    condition = torch.cat([t.to(dtype) for t in (mu, speaker[:, None].expand(-1, frames, -1), prompt)], dim=-1)
    if guided:
        condition = torch.cat([condition, torch.zeros_like(condition)])
        padding = None if padding is None else padding.repeat(2, 1)
    span = time_span(steps, cosine=guided).to(z.device)
    times = estimator.time_table(span[:-1], span[1:])
    x = z
    for time, step in zip(times, span.diff(), strict=True):
        state = x.to(dtype).expand(2, -1, -1, -1).flatten(0, 1) if guided else x.to(dtype)
        velocity = estimator(torch.cat([state, condition], dim=-1), time[None], padding).float()
        if guided:
            velocity = (1 + cfg_rate) * velocity[:rows] - cfg_rate * velocity[rows:]
        x = x + step * velocity
    return x
