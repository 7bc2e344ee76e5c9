"""From noise to mel: Euler steps along the estimator's velocity (Lipman et al. 2023, arXiv 2210.02747)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

# (state, condition, time, *tables) to the velocity of the state, float32.
Velocity = Callable[..., torch.Tensor]
# (state, time, length, condition, *tables) to the state after the step, float32.
Step = Callable[..., torch.Tensor]
STEADY = 3  # of its arguments, the first that all steps of one solution have in common


def time_span(steps: int, cosine: bool) -> torch.Tensor:
    """The `steps + 1` moments of the flow, 0 to 1, float32 on the CPU; cosine ones crowd at the start."""
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    return 1 - torch.cos(even * (0.5 * math.pi)) if cosine else even


def velocity_of(estimator: Callable[..., torch.Tensor], cfg_rate: float | None) -> Velocity:
    """The velocity that the solver follows, with classifier-free guidance unless `cfg_rate` is None.

    Both streams of the guidance go through one call of `estimator`, one after the other in the first dimension (rows of
    a padded batch, frames of a packed one): v = (1 + cfg_rate) * conditional - cfg_rate * unconditional, where the
    unconditional stream has zeros for mean, speaker and prompt mel (Ho and Salimans 2022, arXiv 2207.12598).

    Args:
        estimator: (input [..., 4 * mels], time, *tables) to [..., mels]; its `tables` cover all streams.
    """

    def velocity(
        state: torch.Tensor, condition: torch.Tensor, time: torch.Tensor, *tables: torch.Tensor
    ) -> torch.Tensor:
        state = state.to(condition.dtype)
        x = torch.cat([state, condition], dim=-1)
        if cfg_rate is None:
            return estimator(x, time, *tables).float()
        x = torch.cat([x, torch.cat([state, torch.zeros_like(condition)], dim=-1)])
        conditional, unconditional = estimator(x, time, *tables).float().chunk(2)
        return (1 + cfg_rate) * conditional - cfg_rate * unconditional

    return velocity


def step_of(velocity: Velocity) -> Step:
    """An Euler step as one function, which a CUDA graph can hold: it changes the state and returns it."""

    def step(
        state: torch.Tensor, time: torch.Tensor, length: torch.Tensor, condition: torch.Tensor, *tables: torch.Tensor
    ) -> torch.Tensor:
        return state.add_(length * velocity(state, condition, time, *tables))

    return step


def solve(
    step: Step,
    z: torch.Tensor,
    condition: torch.Tensor,
    span: torch.Tensor,
    times: torch.Tensor,
    tables: tuple[torch.Tensor, ...] = (),
    between: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Follow the flow from the noise `z` to a mel.

    Args:
        step: see `step_of`.
        z: [..., mels] float32 noise, finite in the padding; it is changed.
        condition: [..., 3 * mels] in the estimator's dtype: encoder mean, speaker and prompt mel side by side.
        span: [steps + 1] float32, see `time_span`.
        times: [steps, stages, channels], the estimator's time table of the steps.
        tables: what tells the estimator rows apart, a layout's.
        between: called before each step; what it raises ends the work.

    Returns:
        [..., mels] float32; the frames of the prompt and the padding carry no meaning.
    """
    x = z
    for time, length in zip(times, span.diff(), strict=True):
        if between is not None:
            between()
        x = step(x, time, length, condition, *tables)
    return x.clone()  # a graph's own memory, which the next batch is solved in
