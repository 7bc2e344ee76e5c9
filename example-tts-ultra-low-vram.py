"""Chatterbox on a card of 4 GB: load tier 4, speak one sentence with a cloned voice, and say what it took.

    python example-tts-ultra-low-vram.py --clip clip.wav -o out.wav "Any sentence."
    python example-tts-ultra-low-vram.py --model small --device cpu     # to try it without a download

Needs the extra `bnb` beside the device's: `pip install ".[cuda,bnb]"`; start.sh installs both.
ULTRA_LOW_VRAM.md has the background.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chatterbox_vllm import ChatterboxError, ChatterboxTTS, QuantizationMemoryEstimator
from chatterbox_vllm.audio.encode import check_output, write_audio
from chatterbox_vllm.quantization.live import render
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.models import default_model, resolve_model
from chatterbox_vllm.setup.probe import Probe
from chatterbox_vllm.setup.tiers import tier_named

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="A small card is enough for a good voice.")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.wav"))
    parser.add_argument("--model", help="english (the default where it can be had), small, a directory, or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--clip", type=Path, help="whose voice to take; the model's own without one")
    parser.add_argument("--seed", type=int, help="the same seed gives the same audio")
    options = parser.parse_args()
    check_output(options.output)

    directory, device = resolve_model(options.model or default_model()), resolve_device(options.device)
    tier = tier_named(4)
    on_card = device.type == "cuda"

    # Nothing has been loaded yet: this is computed from the headers of the model's files.
    estimate = QuantizationMemoryEstimator(directory, half=on_card, cuda=on_card).estimate(tier.plan)

    # The probe asks the driver every 50 ms, so that the peak while loading counts as well.
    with Probe(device) as probe, ChatterboxTTS.from_pretrained(directory, options.device, tier=4) as tts:
        wave = tts.generate(options.text, audio_prompt_path=options.clip, seed=options.seed)
        write_audio(options.output, wave[0].numpy(), tts.sr)
        # Counted on the live modules, the voice encoder among them where a clip was enrolled.
        print(render(tts.get_quantization_info()))
        print(f"{options.output}: {wave.shape[-1] / tts.sr:.2f} s of speech")

    usage = probe.usage
    print(f"estimate: {estimate.device_total / MIB:.0f} MiB, for the longest utterance that tier 4 has room for")
    if usage.peak_device_bytes is not None:
        print(
            f"measured: {usage.peak_device_bytes / MIB:.0f} MiB in use on the card at the peak, by all processes and "
            f"with their contexts; tier 4 may take {tier.budget / MIB:.0f} MiB"
        )
    else:
        print(
            f"measured: {usage.peak_host_bytes / MIB:.0f} MiB resident at the peak, Python, PyTorch and vLLM included, "
            "which the estimate leaves out"
        )


if __name__ == "__main__":
    try:
        main()
    except ChatterboxError as error:  # every error of the package names its remedy
        raise SystemExit(f"error: {error}") from None
