"""Decoding, encoding and the watermark, on real files of many formats."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import resource
import struct
import subprocess
import sys
import textwrap
import wave as wave_module
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import FORMATS, check_output, send_audio, write_audio
from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.errors import AudioError, ConfigError, OutputError

CLIPS = Path(__file__).parent / "parity" / "goldens" / "clips"


def tone(rate: int, channels: int = 1, seconds: float = 0.5) -> np.ndarray:
    """Another tone in every channel, float32 (samples, channels), peak 0.5."""
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * math.pi * 220 * (c + 1) * time) for c in range(channels)], 1).astype(np.float32)


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


# Encoding


@pytest.mark.parametrize("suffix", [*FORMATS, ".WAV"])
def test_written_files_read_back(tmp_path: Path, suffix: str):
    wave = tone(24000, seconds=3.0)[:, 0]
    path = tmp_path / f"out{suffix}"
    assert write_audio(path, wave[None], 24000) == path
    got, rate = decode_audio(path)
    assert rate == (48000 if suffix == ".opus" else 24000)
    if suffix.lower() in (".wav", ".flac"):
        np.testing.assert_allclose(got, wave, atol=1 / 32768)
    else:
        assert len(got) / rate == pytest.approx(3.0, abs=0.1)
        assert np.sqrt(np.mean(got**2)) == pytest.approx(0.354, abs=0.03)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_open_file_takes_the_same_bytes(tmp_path: Path, suffix: str):
    wave, buffer = tone(24000)[:, 0], io.BytesIO()
    send_audio(buffer, wave, 24000, suffix)
    (tmp_path / "sent").write_bytes(buffer.getvalue())
    write_audio(tmp_path / f"written{suffix}", wave, 24000)
    got, written = decode_audio(tmp_path / "sent"), decode_audio(tmp_path / f"written{suffix}")
    np.testing.assert_array_equal(got[0], written[0])


def test_an_output_that_takes_no_more():
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "wb")
    with pytest.raises(OutputError, match="Broken pipe"):
        send_audio(pipe, tone(24000)[:, 0], 24000, ".wav")
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(OutputError, match="closed file"):
        send_audio(closed, tone(24000)[:, 0], 24000, ".wav")
    with pytest.raises(OutputError, match=r"unknown audio suffix 'mp4'; use one of .*\.m4a, \.aac"):
        send_audio(io.BytesIO(), tone(24000)[:, 0], 24000, "mp4")


@pytest.mark.parametrize(
    ("suffix", "rate", "words"),
    [
        (".opus", 44100, r"\.opus has no sampling rate of 44100 Hz; it has 8000, .* 48000"),
        (".mp3", 96000, r"\.mp3 has no sampling rate of 96000 Hz"),
        (".m4a", 23999, r"\.m4a has no sampling rate of 23999 Hz"),
        (".aac", 192000, r"\.aac has no sampling rate of 192000 Hz"),
        (".wav", 0, "cannot encode 0 Hz"),
        (".flac", 2**40, "cannot encode"),
    ],
)
def test_rates_that_a_format_does_not_have(tmp_path: Path, suffix: str, rate: int, words: str):
    with pytest.raises(OutputError, match=words):
        write_audio(tmp_path / f"a{suffix}", tone(24000)[:, 0], rate)
    assert not list(tmp_path.iterdir())


def test_loud_waves_are_clipped_not_wrapped(tmp_path: Path):
    path = write_audio(tmp_path / "loud.wav", np.array([2.0, -2.0, 1.0, -1.0, 0.0], np.float32), 24000)
    np.testing.assert_allclose(decode_audio(path)[0], [1, -1, 1, -1, 0], atol=1 / 16384)


def test_long_vorbis(tmp_path: Path):
    """Ten minutes in one call overflow the stack of libsndfile's encoder."""
    path = write_audio(tmp_path / "long.ogg", np.zeros(600 * 24000, np.float32), 24000)
    assert soundfile.info(path).duration == pytest.approx(600, abs=0.1)


def test_file_mode_follows_umask_and_links_are_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.wav"
    link.symlink_to(tmp_path / "real" / "target.wav")
    old = os.umask(0o027)
    try:
        write_audio(link, np.zeros(100, np.float32), 24000)
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert (tmp_path / "real" / "target.wav").stat().st_mode & 0o777 == 0o640


def test_refused_outputs(tmp_path: Path):
    (tmp_path / "dir.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    silence = np.zeros(10, np.float32)
    for name, words in {
        "a.xyz": "unknown audio suffix '.xyz'; use one of .wav",
        "a": "unknown audio suffix ''",
        "no/such/a.wav": "no directory",
        "dir.wav": "not a regular file",
        "pipe.wav": "not a regular file",
    }.items():
        with pytest.raises(OutputError, match=words):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match=words):
            write_audio(tmp_path / name, silence, 24000)
    for wave, words in ((np.zeros((2, 10)), "shape"), (np.array([np.nan]), "not finite")):
        with pytest.raises(OutputError, match=words):
            write_audio(tmp_path / "a.wav", wave, 24000)
    with pytest.raises(OutputError, match="no sampling rate of 12345 Hz"):
        write_audio(tmp_path / "a.opus", silence, 12345)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.wav", "pipe.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_no_room_leaves_the_old_file(tmp_path: Path, suffix: str):
    """The system really refuses here: no file of the process may grow over 20 kB."""
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"earlier")
    script = f"""
        import resource
        import numpy as np
        from chatterbox_vllm.audio.encode import write_audio
        from chatterbox_vllm.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_audio({str(path)!r}, np.random.default_rng(0).uniform(-1, 1, 480_000), 24000)
        except OutputError as error:
            print(error)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=env, check=True
    )
    assert "could not be written (File too large)" in done.stdout
    assert "make room" in done.stdout
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_failed_sync_removes_the_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_audio(tmp_path / "out.wav", np.zeros(100, np.float32), 24000)
    assert not list(tmp_path.iterdir())


# Watermark


@pytest.fixture(scope="module")
def watermarker() -> Watermarker:
    return Watermarker()


def speech() -> np.ndarray:
    import librosa

    wave, rate = decode_audio(CLIPS / "rms_16k.wav")
    return librosa.resample(wave, orig_sr=rate, target_sr=24000)


def test_watermark_is_found_and_inaudible(watermarker: Watermarker, capfd: pytest.CaptureFixture[str]):
    wave = speech()
    marked = watermarker.apply(wave)
    assert marked.dtype == np.float32
    assert marked.shape == wave.shape
    assert 0 < np.sqrt(np.mean((marked - wave) ** 2)) < 0.3 * np.sqrt(np.mean(wave**2))
    assert watermarker.detect(marked, 24000) > 0.9
    assert watermarker.detect(wave, 24000) < 0.1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_watermark_survives_the_file(tmp_path: Path, watermarker: Watermarker, suffix: str):
    path = write_audio(tmp_path / f"marked{suffix}", watermarker.apply(speech()), 24000)
    assert watermarker.detect(*decode_audio(path)) > 0.5


@pytest.mark.parametrize("samples", [0, 1, 100, 239, 241, 767, 960, 2401, 24001])
def test_watermark_of_any_length(watermarker: Watermarker, samples: int):
    marked = watermarker.apply(speech()[8000 : 8000 + samples])
    assert len(marked) == samples
    assert np.isfinite(marked).all()
    assert 0 <= watermarker.detect(marked, 24000) <= 1


def test_silence_stays_silent(watermarker: Watermarker):
    silence = np.zeros(24000, np.float32)
    np.testing.assert_allclose(watermarker.apply(silence), 0, atol=1e-6)
    assert watermarker.detect(silence, 24000) == 0


def test_the_watermark_needs_no_pkg_resources(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    Watermarker().load()


def test_missing_perth_names_the_switch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "perth.perth_net.perth_net_implicit.model.perth_net", None)
    with pytest.raises(ConfigError, match=r"cannot be loaded .*watermark=False"):
        Watermarker().load()
    with pytest.raises(ConfigError, match=r"cannot be loaded .*watermark=False"):
        Watermarker().apply(np.zeros(100, np.float32))
