"""The published PerTh watermark: an inaudible mark that tells synthetic speech from recorded speech."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.audio.resample_filter import filter_resample
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.errors import ConfigError

SAMPLE_RATE = 24_000
# The network works at 32 kHz in hops of 320 samples: whole hops keep the length through there and back.
HOP_SAMPLES = 240
# Its STFT reflects 1024 samples at 32 kHz, 768 at 24 kHz, so a shorter wave needs padding.
SHORTEST_SAMPLES = 4 * HOP_SAMPLES
# In streams on a card: hops are filled up to one of so many numbers between a power of two and the next.
_SIZES_AN_OCTAVE = 4
REMEDY = "install resemble-perth 1.0.1, or switch the watermark off (watermark=False)"


class Watermarker:
    """Marks speech with `PerthImplicitWatermarker` of resemble-perth, in float32.

    All of it runs on `device`. Nothing is imported or loaded before the first use; threads may share one object.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._lock = threading.Lock()
        self._net: Any = None

    def load(self) -> None:
        """Load the network now rather than at the first use.

        Raises:
            ConfigError: resemble-perth or something that it needs cannot be loaded.
        """
        with self._lock:
            if self._net is None:
                self._net = _load(self.device)

    def apply(self, wave: np.ndarray) -> np.ndarray:
        """Mark speech: `apply_all` for one wave."""
        return self.apply_all([wave])[0]

    @torch.inference_mode()
    @ieee_float32()
    def apply_all(self, waves: Sequence[np.ndarray], few_shapes: bool = False) -> list[np.ndarray]:
        """Mark speech; waves of one length go through the network together.

        Args:
            waves: each float32 (samples,) at 24 kHz, of any length. A wave below about 0.1 s is marked too, but too
                short for the detector to be sure; silence carries no mark.
            few_shapes: fill batches up with silence to few lengths and numbers of waves, for each of which libraries
                of a card make a plan at its first use. A wave's last fifth of a second then has another mark.

        Returns:
            The marked waves, float32, each of its length.
        """
        self.load()
        marked = [np.asarray(wave, dtype=np.float32) for wave in waves]
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for i, wave in enumerate(marked):
            if len(wave):
                hops = max(math.ceil(len(wave) / HOP_SAMPLES), SHORTEST_SAMPLES // HOP_SAMPLES)
                alike[filled_up(hops) if few_shapes else hops].append(i)
        for hops, rows in alike.items():
            count = 1 << (len(rows) - 1).bit_length() if few_shapes else len(rows)
            batch = np.zeros((count, hops * HOP_SAMPLES), np.float32)
            for row, i in zip(batch, rows, strict=False):
                row[: len(marked[i])] = marked[i]
            for i, row in zip(rows, self._net.apply_watermark(batch, SAMPLE_RATE), strict=False):
                marked[i] = np.ascontiguousarray(row[: len(marked[i])], dtype=np.float32)
        return marked

    @torch.inference_mode()
    @ieee_float32()
    def detect(self, wave: np.ndarray, rate: int) -> float:
        """How sure the published detector is that `wave`, floats (samples,) at `rate` Hz, is marked: 0 to 1.

        The published yes or no is this number rounded. Silence gives 0.
        """
        self.load()
        wave = np.asarray(wave, dtype=np.float32)
        shortest = math.ceil(SHORTEST_SAMPLES * rate / SAMPLE_RATE)
        wave = np.pad(wave, (0, max(0, shortest - len(wave))))
        confidence = self._net.get_watermark(wave, rate)
        return 0.0 if math.isnan(confidence) else confidence


def filled_up(hops: int) -> int:
    """The next of the numbers of hops that waves are filled up to, at most a quarter more."""
    step = max(1, (1 << (hops - 1).bit_length() - 1) // _SIZES_AN_OCTAVE)
    return -(-hops // step) * step


def _load(device: torch.device) -> Any:
    """The published watermarker; perth announces itself on standard output, where our results may go."""
    try:
        perth = _directory_of("perth") / "perth_net"
        _stand_in("perth.perth_net", __path__=[str(perth)], PREPACKAGED_MODELS_DIR=str(perth / "pretrained"))
        implicit = "perth.perth_net.perth_net_implicit"
        _stand_in(f"{implicit}.audio_processor", AudioProcessor=AudioProcessor)
        _stand_in(f"{implicit}.perth_watermarker", PerthImplicitWatermarker=PerthWatermarker)
        with contextlib.redirect_stdout(io.StringIO()):
            from perth.perth_net.perth_net_implicit.model.perth_net import PerthNet

            return PerthWatermarker(PerthNet.load("implicit", perth / "pretrained").to(device))
    except Exception as error:
        raise ConfigError(f"the PerTh watermark cannot be loaded ({error}); {REMEDY}") from error


def _directory_of(package: str) -> Path:
    """Where a package lies, without importing it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}")
    return Path(found.submodule_search_locations[0])


def _stand_in(name: str, **contents: Any) -> None:
    """Put a module of ours in the place of one of perth's before it is imported.

    `perth_net` imports pkg_resources, which newer setuptools have not got, to find its own directory;
    `audio_processor` imports torchaudio, which no longer loads beside a CPU-only torch, for an STFT and its inverse;
    `perth_watermarker` imports librosa, which takes 2 s, for a resampler.
    """
    if name not in sys.modules:
        module = types.ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module


class PerthWatermarker:
    """What perth does with its net: to 32 kHz, levels and phases, the net, and back.

    Args:
        net: perth's `PerthNet`, whose `encoder` marks levels and whose `decoder` finds marks in them.
    """

    def __init__(self, net: Any):
        self.net = net

    def apply_watermark(self, waves: np.ndarray, sample_rate: int) -> list[np.ndarray]:
        """Floats (waves, samples) at `sample_rate` Hz, marked; of nearly the same length."""
        rate = self.net.hp.sample_rate
        levels, phases = self._levels(_resampled(self._there(waves), sample_rate, rate))
        marked, _ = self.net.encoder(levels)
        return list(_resampled(self.net.ap.magphase_to_signal(marked, phases), rate, sample_rate).cpu().numpy())

    def get_watermark(self, wave: np.ndarray, sample_rate: int) -> float:
        """The decoder's answer, 0 to 1 where the wave holds sound."""
        level, _ = self._levels(self._there(resample(wave, sample_rate, self.net.hp.sample_rate)))
        return float(self.net.decoder(level[None])[0].clip(0.0, 1.0))

    def _there(self, waves: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(waves).float().to(self.net.device)

    def _levels(self, waves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level, phase = self.net.ap.signal_to_magphase(waves)
        return level, phase


def _resampled(waves: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    """Waves [N, samples]; on a CPU by soxr, as published, elsewhere by its filter."""
    if waves.is_cpu:
        return torch.from_numpy(np.stack([resample(wave, rate_in, rate_out) for wave in waves.numpy()]))
    return filter_resample(waves, rate_in, rate_out)


class _Window(torch.nn.Module):
    window: torch.Tensor

    def __init__(self, hp: Any):
        super().__init__()
        self.register_buffer("window", torch.hann_window(hp.window_size))


class AudioProcessor(torch.nn.Module):
    """perth's signal processing: STFT, level in decibels scaled to about 0…1, phase; and back.

    Args:
        hp: perth's configuration: n_fft, window_size, hop_size (samples at 32 kHz), stft_magnitude_min.
    """

    HEADROOM_DB = 15.0

    def __init__(self, hp: Any):
        super().__init__()
        if hp.window_fn != "hann":
            raise ValueError(f"perth's window is {hp.window_fn!r}, not 'hann'")
        self.hp = hp
        self.lowest_db = 20 * math.log10(hp.stft_magnitude_min)
        # Names of the buffers in perth's checkpoint; the last one is of no use here.
        self.spectrogram, self.inv_spectrogram, self.stretch = _Window(hp), _Window(hp), torch.nn.Module()
        self.stretch.register_buffer("phase_advance", torch.zeros(hp.n_fft // 2 + 1, 1))

    def signal_to_magphase(self, signal: torch.Tensor | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples (..., n) at 32 kHz to scaled level and phase, both (..., n_fft / 2 + 1, frames)."""
        spectrum = torch.stft(
            torch.as_tensor(signal).float(),
            n_fft=self.hp.n_fft,
            hop_length=self.hp.hop_size,
            win_length=self.hp.window_size,
            window=self.spectrogram.window,
            return_complex=True,
        )
        level = 20 * torch.log10(spectrum.abs().clip(self.hp.stft_magnitude_min))
        return (level - self.lowest_db) / (self.HEADROOM_DB - self.lowest_db), spectrum.angle()

    def magphase_to_signal(self, level: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """The inverse: samples at 32 kHz, a whole number of hops."""
        decibels = level * (self.HEADROOM_DB - self.lowest_db) + self.lowest_db
        return torch.istft(
            torch.polar(10.0 ** (decibels / 20).clip(max=10), phase),
            n_fft=self.hp.n_fft,
            hop_length=self.hp.hop_size,
            win_length=self.hp.window_size,
            window=self.inv_spectrogram.window,
        )
