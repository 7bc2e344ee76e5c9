"""Changes to the tokenizer's log mels that leave the words as they are."""

from __future__ import annotations

import torch

# The mel is (log10 power + 4) / 4, so a factor of ten in power is this much.
_DECADE = 0.25
_FORMANT_SHIFT = 0.12
_GAIN_DECADES = 1.0
_TILT_DECADES = 0.5
# Noise lies so many decades of power below the clip's loudest bin.
_NOISE_DECADES = (2.5, 7.0)
_SHARE = 0.5  # of the clips of a batch that a change is made to


@torch.no_grad()
def disturbed(mel: torch.Tensor) -> torch.Tensor:
    """Log mels [B, bins, frames] as of other throats, microphones and rooms.

    Half of the clips each get: their bins stretched or squeezed (another length of the vocal tract), another level and
    slope of the spectrum, and steady noise of a random spectrum.
    """
    batch, bins, _ = mel.shape
    device = mel.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        """Zero for half of the clips."""
        chosen = torch.rand(batch, 1, device=device) < _SHARE
        return torch.empty(batch, *(shape or (1,)), device=device).uniform_(low, high) * chosen

    places = torch.arange(bins, device=device) * (1 + uniform(-_FORMANT_SHIFT, _FORMANT_SHIFT))
    places = places.clamp(max=bins - 1.001)
    low = places.floor().long()
    part = (places - low)[..., None]
    mel = _bins(mel, low) * (1 - part) + _bins(mel, low + 1) * part

    slope = torch.linspace(-1, 1, bins, device=device) * uniform(-_TILT_DECADES, _TILT_DECADES)
    mel = mel + _DECADE * (slope + uniform(-_GAIN_DECADES, _GAIN_DECADES))[..., None]

    loudest = mel.amax((1, 2), keepdim=True)
    shape = 0.5 * torch.randn(batch, bins, 1, device=device)
    level = torch.empty(batch, 1, 1, device=device).uniform_(*_NOISE_DECADES)
    absent = 20.0 * (torch.rand(batch, 1, 1, device=device) > _SHARE)
    noise = loudest + _DECADE * (shape + 0.25 * torch.randn_like(mel) - level - absent)
    scale = _DECADE / torch.log(torch.tensor(10.0)).item()
    mel = torch.logaddexp(mel / scale, noise / scale) * scale
    # No bin is more than eight decades below the loudest, as in the clean mel.
    return mel.maximum(mel.amax((1, 2), keepdim=True) - 8 * _DECADE)


def _bins(mel: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return mel.gather(1, places[..., None].expand(-1, -1, mel.shape[2]))
