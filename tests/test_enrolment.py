"""How a clip becomes a voice: the recipes, the nets and their features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.features import mel_filterbank, trim_silence
from chatterbox_vllm.audio.resample import resample, sinc_resample
from chatterbox_vllm.errors import AudioError, ConfigError
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import split_partials
from chatterbox_vllm.voices.voice import Voice, check_voice

from .made_up_clips import babble
from .tiny_enrolment import TINY, tiny_enroller, tiny_tokenizer

COMPUTED_BUFFERS = Path(__file__).parent / "parity" / "oracle" / "computed_buffers.npz"


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def enroller(tokenizer: SpeechTokenizer, tmp_path_factory: pytest.TempPathFactory) -> VoiceEnroller:
    return tiny_enroller(tokenizer, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def voice(enroller: VoiceEnroller) -> Voice:
    return enroller.enrol(babble(1.5), 24_000)


def test_both_recipes_make_the_same_of_a_clip_of_five_to_six_seconds(enroller: VoiceEnroller) -> None:
    config = replace(TINY, enrolment=TURBO.config.enrolment, t3=replace(TINY.t3, speech_prompt_tokens=375))
    turbo = VoiceEnroller(config, enroller.hearing._weights, enroller._weights_ve)
    for seconds, alike in ((5.1, True), (5.99, True), (7, False)):
        first, other = (e.enrol(babble(seconds), 24_000, norm) for e, norm in ((enroller, None), (turbo, False)))
        assert (first.key == other.key) is alike and (other.recipe, first.recipe) == ("turbo", None)
        if alike:
            assert check_voice(first, config) is first
        else:
            with pytest.raises(ConfigError, match="of the first Chatterbox's kind"):
                check_voice(first, config)


def test_enrolment_takes_the_published_lengths(enroller: VoiceEnroller) -> None:
    clip = babble(12)
    voice, first = enroller.enrol(clip, 24_000), enroller.enrol(clip[: 10 * 24_000], 24_000)
    assert voice.prompt.mel.shape == (500, 20) and voice.prompt.tokens.shape == (250,)
    assert voice.conditioning.speech_prompt.shape == (150,)
    assert voice.conditioning.speaker_embedding.shape == (1, 8) and voice.prompt.xvector.shape == (6,)
    assert torch.equal(voice.prompt.mel, first.prompt.mel) and torch.equal(voice.prompt.xvector, first.prompt.xvector)
    assert torch.equal(voice.prompt.tokens, first.prompt.tokens)
    assert not torch.allclose(voice.conditioning.speaker_embedding, first.conditioning.speaker_embedding, atol=1e-4)
    assert abs(voice.conditioning.speaker_embedding.norm().item() - 1) < 1e-5


@pytest.mark.parametrize(("samples", "frames", "tokens"), [(24_000, 50, 25), (24_480, 51, 25), (24_959, 51, 25)])
def test_an_odd_mel_frame_is_kept_and_its_token_dropped(
    enroller: VoiceEnroller, samples: int, frames: int, tokens: int
) -> None:
    voice = enroller.enrol(babble(2)[:samples], 24_000)
    assert (len(voice.prompt.mel), len(voice.prompt.tokens)) == (frames, tokens)


def test_other_rates_and_widths_are_taken(enroller: VoiceEnroller, voice: Voice) -> None:
    wide = enroller.enrol(babble(1.5).astype(np.float64), 24_000)
    assert wide.key == voice.key
    assert enroller.enrol(babble(1, 44_100), 44_100).prompt.mel.shape == (50, 20)


def test_the_nets_are_loaded_at_first_use_and_released(enroller: VoiceEnroller, voice: Voice) -> None:
    enroller.release()
    assert not enroller.is_loaded
    with pytest.raises(AudioError):
        enroller.enrol(np.zeros(24_000, np.float32), 24_000)
    assert not enroller.is_loaded
    assert enroller.enrol(babble(1.5), 24_000).key == voice.key
    assert enroller.is_loaded


def test_a_clip_that_cannot_be_a_voice_is_refused(enroller: VoiceEnroller) -> None:
    with pytest.raises(AudioError, match="never changes"):
        enroller.enrol(np.sin(np.arange(48_000) / 20).astype(np.float32), 24_000)


def test_silence_before_the_speech_is_not_enrolled(enroller: VoiceEnroller) -> None:
    speech, silence = babble(4), np.zeros(12 * 24_000, np.float32)
    voice = enroller.enrol(np.concatenate([silence, speech]), 24_000)
    assert len(voice.prompt.mel) == pytest.approx(4.2 * 50, abs=1)
    at_once = enroller.enrol(np.concatenate([silence[: 24_000 // 5], speech]), 24_000)
    assert voice.key == at_once.key


# --- the nets and their features


def test_batched_windows_equal_single_ones(tokenizer: SpeechTokenizer) -> None:
    lengths = [400, 37, 1, 203, 398, 399, 100, 64, 50, 5]
    mels = [tokenizer.mel(torch.from_numpy(babble(5, 16_000, seed=i)))[:, 50 : 50 + n] for i, n in enumerate(lengths)]
    batched = tokenizer.tokenize_mels(mels)
    for mel, tokens in zip(mels, batched, strict=True):
        assert len(tokens) == -(-mel.shape[1] // 4)
        assert torch.equal(tokens, tokenizer.tokenize_mels([mel])[0])
    padded = torch.stack([torch.nn.functional.pad(mel, (0, 400 - mel.shape[1]), value=9.0) for mel in mels])
    with torch.no_grad():
        hidden, counts = tokenizer.encoder(padded, torch.tensor(lengths))
        for mel, row, count in zip(mels, hidden, counts.tolist(), strict=True):
            alone, _ = tokenizer.encoder(mel[None], torch.tensor([mel.shape[1]]))
            torch.testing.assert_close(row[:count], alone[0], atol=1e-5, rtol=1e-5)


def test_long_audio_is_tokenized_in_overlapping_windows(tokenizer: SpeechTokenizer) -> None:
    wave = torch.from_numpy(babble(58, 16_000))
    mel = tokenizer.mel(wave)
    tokens = tokenizer.tokens(wave)
    first, second, third = tokenizer.tokenize_mels([mel[:, :3000], mel[:, 2600:5600], mel[:, 5200:]])
    assert tokens.dtype == torch.int64 and len(tokens) == 58 * 25
    assert torch.equal(tokens, torch.cat((first[:700], second[50:700], third[50:])))
    assert torch.equal(tokenizer.tokens(wave, max_tokens=750), first)


def test_tokens_are_base_three_digits(tokenizer: SpeechTokenizer) -> None:
    tokens = tokenizer.tokens(torch.from_numpy(babble(4, 16_000)))
    assert tokens.min() >= 0 and tokens.max() < 3**8 and len(tokens.unique()) > 50
    bias = tokenizer.quantizer._codebook.project_down.bias
    saved = bias.detach().clone()
    with torch.no_grad():
        bias.copy_(torch.tensor([99.0, -99, -99, -99, -99, -99, -99, 99]))
        assert tokenizer.quantizer(torch.zeros(1, 32)).item() == 2 + 2 * 3**7
        bias.copy_(saved)


@pytest.mark.parametrize(
    ("frames", "count"), [(1, 1), (159, 1), (160, 1), (204, 1), (205, 2), (237, 2), (281, 2), (282, 3)]
)
def test_partials_of_the_voice_encoder(frames: int, count: int) -> None:
    mel = torch.arange(1.0, frames + 1)[:, None].expand(-1, 10)
    partials = split_partials(mel)
    assert partials.shape == (count, 160, 10)
    start = 77 * (count - 1)
    expected = torch.arange(start + 1.0, start + 161)
    expected[expected > frames] = 0
    assert torch.equal(partials[-1, :, 3], expected)


def test_silent_ends_are_trimmed() -> None:
    wave = torch.zeros(16_000)
    wave[5000:9000] = 0.5
    # Frames reach 1024 samples to either side; those that hold over 1 % of the loudest one's power stay.
    assert trim_silence(wave) == (8 * 512, 20 * 512)
    wave[:3000] = 0.5 * 10 ** (-24 / 20)
    wave[12_000:14_000] = 0.5 * 10 ** (-14 / 20)
    assert trim_silence(wave) == (8 * 512, 29 * 512)
    assert trim_silence(wave * 1e-9) == (0, 16_000)
    assert trim_silence(torch.ones(700)) == (0, 700)


def test_filterbank_equals_the_published_one() -> None:
    published = np.load(COMPUTED_BUFFERS)["tokenizer._mel_filters"]
    assert np.array_equal(mel_filterbank(16_000, 400, 128, 8000.0).numpy(), published)


@pytest.mark.parametrize("samples", [16_000, 16_001, 12_345])
@pytest.mark.parametrize("rates", [(24_000, 16_000), (44_100, 24_000), (8_000, 24_000)])
def test_resamplers_keep_a_tone_and_the_length(rates: tuple[int, int], samples: int) -> None:
    rate_in, rate_out = rates
    tone = np.sin(2 * np.pi * 440 / rate_in * np.arange(samples)).astype(np.float32)
    length = -(-samples * rate_out // rate_in)
    expected = np.sin(2 * np.pi * 440 / rate_out * np.arange(length))
    for out in (resample(tone, *rates), sinc_resample(torch.from_numpy(tone), *rates).numpy()):
        assert out.dtype == np.float32 and len(out) == length
        assert np.abs(out - expected)[300:-300].max() < 2e-3
