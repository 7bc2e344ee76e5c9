"""Decoding, on real files of many formats."""

from __future__ import annotations

import os
import resource
import struct
import wave as wave_module
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.errors import AudioError

from .made_up_clips import tone

CLIPS = Path(__file__).parent / "parity" / "goldens" / "clips"


def encode_av(path: Path, codec: str, wave: np.ndarray, rate: int) -> Path:
    """Write mono float32 through FFmpeg."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# Decoding: exact where the format is


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        (".wav", "PCM_U8"),
        (".wav", "PCM_16"),
        (".wav", "PCM_24"),
        (".wav", "PCM_32"),
        (".wav", "FLOAT"),
        (".wav", "DOUBLE"),
        (".flac", "PCM_16"),
        (".flac", "PCM_24"),
        (".aiff", "PCM_16"),
    ],
)
def test_lossless_formats_are_sample_exact(tmp_path: Path, suffix: str, subtype: str, channels: int, rate: int):
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(rate, channels), rate, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    got, got_rate = decode_audio(path)
    assert got_rate == rate
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected.T.mean(axis=0) if channels > 1 else expected[:, 0])


@pytest.mark.parametrize("name", ["rms_16k.wav", "slt_44k_stereo.flac", "espeak_en.wav"])
def test_equals_librosa(name: str):
    import librosa

    expected, rate = librosa.load(CLIPS / name, sr=None, mono=True)
    got, got_rate = decode_audio(CLIPS / name)
    assert got_rate == rate
    np.testing.assert_array_equal(got, expected)


COMPRESSED = {
    "a.mp3": "libmp3lame",
    "a.m4a": "aac",
    "a.mp4": "aac",
    "a.aac": "aac",
    "a.opus": "libopus",
    "a.webm": "libopus",
    "a.mka": "aac",
    "a.wma": "wmav2",
    "a.ogg": "soundfile",
}
# Opus has no 44.1 kHz.
RATES = {"libopus": (16000, 24000, 48000)}


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        (name, codec, rate)
        for name, codec in COMPRESSED.items()
        for rate in RATES.get(codec, (16000, 24000, 44100, 48000))
    ],
)
def test_compressed_formats(tmp_path: Path, name: str, codec: str, rate: int):
    wave = tone(rate, seconds=1.0)[:, 0]
    if codec == "soundfile":
        soundfile.write(tmp_path / name, wave, rate)
    else:
        encode_av(tmp_path / name, codec, wave, rate)
    got, got_rate = decode_audio(tmp_path / name)
    assert got_rate == (48000 if codec == "libopus" else rate)
    assert len(got) / got_rate == pytest.approx(1.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(got * np.hanning(len(got))))
    assert np.argmax(spectrum) * got_rate / len(got) == pytest.approx(220, abs=2)
    assert np.sqrt(np.mean(got**2)) == pytest.approx(0.354, abs=0.05)


def test_audio_of_a_video(tmp_path: Path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10, options={})
        picture.width = picture.height = 64
        sound = container.add_stream("aac", rate=24000, layout="mono")
        for _ in range(5):
            container.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(tone(24000).T, format="fltp", layout="mono")
        frame.sample_rate = 24000
        container.mux(sound.encode(frame))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    got, rate = decode_audio(str(path))
    assert rate == 24000
    assert len(got) == pytest.approx(12000, abs=2048)


@pytest.mark.parametrize("name", ["a:b.wav", "http:clip.wav", "-x.wav", "ümläut 音.wav", "no_suffix", "wrong.mp3"])
def test_the_name_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / name, tone(16000), 16000, format="WAV")
    wave, rate = decode_audio(name)
    assert (len(wave), rate) == (8000, 16000)


def test_tags_need_not_be_utf8(tmp_path: Path):
    """As old programs wrote them; PyAV stops at such a tag unless told."""
    path = tmp_path / "latin1.wav"
    soundfile.write(path, tone(16000), 16000)
    whole = path.read_bytes()
    artist = "Björk!".encode("latin-1")
    info = b"INFO" + b"IART" + struct.pack("<I", len(artist)) + artist
    tagged = whole[8:] + b"LIST" + struct.pack("<I", len(info)) + info
    path.write_bytes(b"RIFF" + struct.pack("<I", len(tagged)) + tagged)
    wave, rate = decode_audio(path)
    assert (len(wave), rate) == (8000, 16000)


# Decoding: faults


def test_faulty_files_name_file_and_remedy(tmp_path: Path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("these are not samples\n" * 200)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    soundfile.write(tmp_path / "header_only.wav", np.zeros((0, 1), np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16000, subtype="FLOAT")
    flac = (CLIPS / "slt_44k_stereo.flac").read_bytes()
    (tmp_path / "head.flac").write_bytes(flac[:30])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{CLIPS / 'rms_16k.wav'}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{CLIPS / 'rms_16k.wav'}'\n")
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        container.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(picture.encode(None))
    faults = {
        "missing.wav": "no such file",
        "": "is not a file",
        "empty.wav": "is empty",
        "text.wav": "cannot be decoded",
        "noise.mp3": "",
        "header_only.wav": "no audio samples",
        "nan.wav": "not finite",
        "head.flac": "",
        "list.m3u8": "cannot be decoded",
        "list.ffconcat": "cannot be decoded",
        "silent.mp4": "no audio stream",
    }
    for name, words in faults.items():
        with pytest.raises(AudioError) as caught:
            decode_audio(tmp_path / name)
        message = str(caught.value)
        assert words in message
        assert message.startswith(f"{tmp_path / name}: ")
        assert message.endswith("such as WAV, FLAC, MP3, M4A or Ogg")
        assert "\n" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path):
    path = tmp_path / "secret.wav"
    soundfile.write(path, tone(16000), 16000)
    path.chmod(0)
    with pytest.raises(AudioError, match="Permission denied"):
        decode_audio(path)


def test_cut_off_file_keeps_what_is_there(tmp_path: Path):
    whole, _ = decode_audio(CLIPS / "slt_44k_stereo.flac")
    data = (CLIPS / "slt_44k_stereo.flac").read_bytes()
    path = tmp_path / "cut.flac"
    path.write_bytes(data[: len(data) // 2])
    wave, rate = decode_audio(path)
    assert 0.3 * len(whole) < len(wave) < 0.7 * len(whole)
    np.testing.assert_array_equal(wave, whole[: len(wave)])


def test_damage_in_the_middle_is_an_error(tmp_path: Path):
    path = encode_av(tmp_path / "a.m4a", "aac", tone(24000, seconds=4.0)[:, 0], 24000)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4 + len(data) // 3
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"damaged after \d\.\d s .*again"):
        decode_audio(path)


def test_length_limit_stops_decoding(tmp_path: Path):
    path = tmp_path / "hour.wav"
    with wave_module.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        for _ in range(60):
            file.writeframes(b"\x80" * (8000 * 60))
    with pytest.raises(AudioError, match=r"3600\.0 s long, over the limit of 120 s; cut it"):
        decode_audio(path, max_seconds=120)
    short = tmp_path / "short.wav"
    soundfile.write(short, tone(16000, seconds=2.0), 16000)
    assert len(decode_audio(short, max_seconds=2.0)[0]) == 32000
    with pytest.raises(AudioError, match=r"2\.0 s long, over the limit of 1\.99 s"):
        decode_audio(short, max_seconds=1.99)


def test_length_limit_bounds_memory(tmp_path: Path):
    """A FLAC of a silent hour is small on the disk; it must not become 700 MB."""
    path = tmp_path / "silence.flac"
    with soundfile.SoundFile(path, "w", 48000, 1, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(48000 * 60, np.int16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudioError, match="over the limit of 60 s"):
        decode_audio(path, max_seconds=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
