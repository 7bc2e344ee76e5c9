"""Encoders and tempo in streams: the right length and rate, from the first bytes on, whatever the parts."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.streams import STREAM_FORMATS, encode_whole, stream_encoder
from chatterbox_vllm.audio.tempo import Tempo
from chatterbox_vllm.errors import ConfigError, OutputError

RATE = 24_000
SECONDS = 3


def tone(hertz: float = 220.0, seconds: float = SECONDS) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def parts(wave: np.ndarray, size: int = 2_345) -> list[np.ndarray]:
    return [wave[start : start + size] for start in range(0, len(wave), size)]


def decoded(name: str, data: bytes) -> tuple[np.ndarray, int]:
    if name == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768, RATE
    return decode_audio(data)


def pitch(wave: np.ndarray, rate: int) -> float:
    """The strongest frequency of the middle half."""
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle))


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_streams_decode_to_what_was_fed(name: str) -> None:
    encoder = stream_encoder(name, RATE)
    data = b"".join(map(encoder.feed, parts(tone()))) + encoder.finish()
    wave, rate = decoded(name, data)
    assert rate == (48_000 if name == "opus" else RATE)
    # mp3 and aac put up to two frames of silence around the sound, which only a header could tell of.
    assert len(wave) / rate == pytest.approx(SECONDS, abs=0.1 if name in ("mp3", "aac") else 0.001)
    assert pitch(wave, rate) == pytest.approx(220, abs=2)
    assert np.abs(wave).max() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_what_has_arrived_can_be_played(name: str) -> None:
    encoder = stream_encoder(name, RATE)
    fed = b"".join(map(encoder.feed, parts(tone(seconds=1))))
    if name in ("wav", "pcm"):
        samples = (len(fed) - (44 if name == "wav" else 0)) / 2
        assert samples == RATE
        return
    samples = 0
    with av.open(io.BytesIO(fed)) as file:
        for packet in file.demux(audio=0):
            try:
                samples += sum(frame.samples for frame in packet.decode())
            except av.FFmpegError:  # the last packet is not there yet
                break
        rate = file.streams.audio[0].rate
    assert samples / rate > 0.75


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_whole_files_tell_their_length(name: str) -> None:
    data = encode_whole(name, tone(), RATE)
    wave, rate = decoded(name, data)
    assert len(wave) / rate == pytest.approx(SECONDS, abs=0.1 if name in ("mp3", "aac") else 0.01)
    if name == "wav":
        assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
        assert data[:4] == b"RIFF" and data.index(b"data") + 8 + 2 * len(wave) == len(data)


def test_a_streamed_wav_has_no_length_and_its_whole_header_first() -> None:
    first = stream_encoder("wav", RATE).feed(tone()[:1])
    assert (
        len(first) == 46
        and struct.unpack_from("<I", first, 4)[0] == struct.unpack_from("<I", first, 40)[0] == 0xFFFFFFFF
    )
    assert len(stream_encoder("wav", RATE).finish()) == 44  # of nothing


def test_full_scale_is_clipped_and_unknown_formats_are_refused() -> None:
    assert stream_encoder("pcm", RATE).feed(np.array([2, -2, 0], np.float32)) == struct.pack("<3h", 32767, -32767, 0)
    with pytest.raises(OutputError, match="'ogg'; use one of mp3, opus"):
        stream_encoder("ogg", RATE)


@pytest.mark.parametrize("speed", [0.25, 0.8, 1, 1.5, 3, 4])
def test_tempo_changes_the_length_and_not_the_pitch(speed: float) -> None:
    tempo = Tempo(speed, RATE)
    out = [tempo.feed(part) for part in parts(tone())] + [tempo.finish()]
    wave = np.concatenate(out)
    assert len(wave) == round(len(tone()) / speed)
    assert pitch(wave, RATE) == pytest.approx(220, abs=4)
    assert sum(map(len, out[: len(out) // 2])) > 0.3 * len(wave)  # it comes on the way


@pytest.mark.parametrize("samples", [1, 500, 2_400])
def test_the_shortest_waves_are_not_lost(samples: int) -> None:
    for speed in (0.25, 0.7, 1.9, 4):
        tempo = Tempo(speed, RATE)
        assert len(tempo.feed(tone()[:samples])) + len(tempo.finish()) == round(samples / speed)


def test_tempo_of_one_changes_nothing_and_others_are_refused() -> None:
    wave = tone()
    assert Tempo(1, RATE).feed(wave) is wave and not len(Tempo(1, RATE).finish()) and not len(Tempo(2, RATE).finish())
    for speed in (0.2, 4.1, float("nan")):
        with pytest.raises(ConfigError, match="speed must be a number from 0.25 to 4"):
            Tempo(speed, RATE)
