"""Files that lie, swell or never end: decoding them takes bounded memory and time."""

from __future__ import annotations

import fractions
import io
import logging
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import FORMATS, encode_audio
from chatterbox_vllm.audio.mix import Mix
from chatterbox_vllm.errors import AudioError

from .made_up_clips import babble

CLIPS = Path(__file__).parent / "parity" / "goldens" / "clips"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The test must not take more than 64 MiB on top of what the process has had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def flac(path: Path, rate: int, seconds: int, layout: str = "mono") -> Path:
    """Digital silence, of which FLAC makes next to nothing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout=layout)
        silence = np.zeros((1, rate * stream.layout.nb_channels), np.int16)
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def wav(path: Path, rate: int, channels: int, data: bytes) -> Path:
    """16-bit PCM under any header."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16)
    path.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )
    return path


@pytest.mark.parametrize("rate", [1, 3999, 384_001, 655_350, 2**31 - 1])
def test_rates_that_no_recording_has(tmp_path: Path, little_memory: None, rate: int) -> None:
    path = wav(tmp_path / "a.wav", rate, 1, bytes(8000))
    with pytest.raises(AudioError, match=f"a sampling rate of {rate} Hz, 4000 to 384000 are taken"):
        decode_audio(path, max_seconds=600)


def test_a_small_file_of_many_samples(tmp_path: Path, little_memory: None) -> None:
    path = flac(tmp_path / "a.flac", 655_350, 60)
    assert path.stat().st_size < 50_000
    with pytest.raises(AudioError, match="655350 Hz"):
        decode_audio(path, max_seconds=600)


def test_high_rates_are_lowered_on_the_way(tmp_path: Path, little_memory: None) -> None:
    path = flac(tmp_path / "a.flac", 384_000, 30)
    wave, rate = decode_audio(path, max_seconds=600)
    assert (rate, len(wave)) == (48_000, 30 * 48_000)
    for rate in (176_400, 192_000):
        time = np.arange(rate) / rate
        tone = np.sin(2 * np.pi * 440 * time)
        soundfile.write(tmp_path / "b.flac", tone, rate, subtype="PCM_24")
        wave, lowered = decode_audio(tmp_path / "b.flac")
        assert (lowered, len(wave)) == (48_000, 48_000)
        assert np.abs(wave - np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000))[500:-500].max() < 1e-3


def test_channels_that_no_recording_has(tmp_path: Path, little_memory: None) -> None:
    with pytest.raises(AudioError, match="has 65 channels, at most 64"):
        decode_audio(wav(tmp_path / "a.wav", 16_000, 65, bytes(65 * 2 * 16_000)))
    with pytest.raises(AudioError):
        decode_audio(wav(tmp_path / "b.wav", 16_000, 65_535, bytes(65_535 * 20)))
    assert len(decode_audio(wav(tmp_path / "c.wav", 16_000, 64, bytes(64 * 2 * 16_000)))[0]) == 16_000


def test_a_wave_that_claims_to_be_endless_stops_at_the_limit(tmp_path: Path, little_memory: None) -> None:
    path = wav(tmp_path / "a.wav", 8000, 1, bytes(100))
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a terabyte of zeros that takes no room
        file.seek(40)
        file.write(b"\xff" * 4)
    with pytest.raises(AudioError, match="over the limit of 60 s"):
        decode_audio(path, max_seconds=60)


def test_pieces_of_one_sample(tmp_path: Path, little_memory: None) -> None:
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for i in range(20_000):
            packet = av.Packet(b"\1\0")
            packet.stream, packet.pts, packet.dts = stream, i, i
            packet.time_base = fractions.Fraction(1, 48_000)
            container.mux(packet)
    with pytest.raises(AudioError, match=r"cut into pieces of less than 0\.5 ms"):
        decode_audio(tmp_path / "a.mka")


def picture(side: int) -> bytes:
    """A PNG of one colour: 1 MB for a gigabyte of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + 4 * side)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_cover_picture_is_not_decoded(tmp_path: Path, little_memory: None) -> None:
    soundfile.write(tmp_path / "a.mp3", babble(1), 24_000)
    data = b"\0image/png\0\x03\0" + picture(8000)
    frame = b"APIC" + struct.pack(">I", len(data)) + b"\0\0" + data
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "b.mp3").write_bytes(b"ID3\x03\0\0" + size + frame + (tmp_path / "a.mp3").read_bytes())
    assert len(decode_audio(tmp_path / "b.mp3")[0]) == pytest.approx(24_000, abs=2400)


def zeros_packed(count: int, first: bytes = b"") -> bytes:
    """So many bytes, all zero but the first, a thousandth as long."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(first)]
    pieces += [packer.compress(bytes(min(1 << 20, count - i))) for i in range(len(first), count, 1 << 20)]
    return b"".join(pieces) + packer.flush()


def compressed_tag(claimed: int) -> bytes:
    """An ID3 tag with one text."""

    def size(count: int) -> bytes:
        return bytes((count >> shift) & 127 for shift in (21, 14, 7, 0))

    packed = zeros_packed(claimed, b"\0x\0")
    frame = b"TXXX" + size(len(packed) + 4) + b"\0\x09" + size(claimed) + packed
    return b"ID3\x04\0\0" + size(len(frame)) + frame


def test_compressed_tags_are_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    tag = compressed_tag(200_000_000)
    for suffix in (".mp3", ".flac", ".wav"):
        (tmp_path / "a").write_bytes(tag + tag + encode_audio(babble(1), 24_000, suffix))
        assert len(decode_audio(tmp_path / "a")[0]) == pytest.approx(24_000, abs=2400)
    soundfile.write(tmp_path / "a.aiff", babble(1), 24_000)
    plain = (tmp_path / "a.aiff").read_bytes()
    for pad in range(32_690, 32_770, 8):  # some lie across two reads
        chunks = b"junk" + struct.pack(">I", pad) + bytes(pad) + b"ID3 " + struct.pack(">I", len(tag)) + tag
        chunks += bytes(len(chunks) % 2)
        form = b"FORM" + struct.pack(">I", len(plain) - 8 + len(chunks)) + plain[8:12] + chunks + plain[12:]
        assert len(decode_audio(form)[0]) == 24_000


def test_a_compressed_header_is_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    def atom(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", 8 + len(data)) + kind + data

    claimed = 200_000_000
    packed = atom(b"cmvd", struct.pack(">I", claimed) + zeros_packed(claimed))
    film = atom(b"ftyp", b"qt  \0\0\0\0qt  ") + atom(b"moov", atom(b"cmov", atom(b"dcom", b"zlib") + packed))
    for pad in (0, 32_768 - 40):  # the second lies across two reads
        (tmp_path / "a.mov").write_bytes(film[:20] + (atom(b"free", bytes(pad)) if pad else b"") + film[20:])
        with pytest.raises(AudioError, match="its header is compressed"):
            decode_audio(tmp_path / "a.mov")


def test_the_whole_takes_little_more_than_its_own_memory() -> None:
    mix = Mix(48_000, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30_000):
        mix.add(np.ones((1, 1024), np.float32))
    wave = mix.wave()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(wave) == 30_000 * 1024 and wave.min() == 1
    assert grown * 1024 < 1.3 * wave.nbytes


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One of each format that we write, in bytes."""
    return {suffix: encode_audio(babble(0.7), 24_000, suffix) for suffix in FORMATS}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(sorted(FORMATS)))
def test_a_damaged_clip_is_decoded_or_refused(data: st.DataObject, suffix: str, clips: dict[str, bytes]) -> None:
    damaged = bytearray(clips[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 300) | st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        wave, rate = decode_audio(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), max_seconds=5)
    except AudioError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < len(wave) <= 5 * rate and wave.dtype == np.float32 and np.isfinite(wave).all()


# --- where clips come from, and their channels


def test_bytes_and_files_are_decoded_like_paths(tmp_path: Path) -> None:
    expected, rate = decode_audio(CLIPS / "slt_44k_stereo.flac")
    data = (CLIPS / "slt_44k_stereo.flac").read_bytes()
    with (CLIPS / "slt_44k_stereo.flac").open("rb") as file:
        for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file):
            wave, got_rate = decode_audio(source)
            assert got_rate == rate
            np.testing.assert_array_equal(wave, expected)
        assert not file.closed
    for source, words in ((b"", "the audio: the file is empty"), (b"no audio", "the audio: cannot be decoded")):
        with pytest.raises(AudioError, match=words):
            decode_audio(source)
    for source in (None, 5, io.StringIO("text")):
        with pytest.raises(AudioError):
            decode_audio(source)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(AudioError):
            decode_audio(name)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ([1.0, -1.0], 1.0),
        ([0.5, -0.49], 0.5),
        ([0.2, -0.7, 0.5], -0.7),
    ],
)
def test_of_channels_that_cancel_the_loudest_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: list[float], expected: float
) -> None:
    wave = babble(2) / 2
    soundfile.write(tmp_path / "a.wav", np.stack([wave * c for c in channels], 1), 24_000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING, logger="chatterbox_vllm"):
        got, _ = decode_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(got, wave * expected, atol=1e-6)
    assert "its channels cancel each other; channel" in caplog.text


@pytest.mark.parametrize("channels", [[1.0, 1.0], [1.0, 0.0], [0.0] * 7 + [1.0], [1.0, -0.5]])
def test_other_channels_are_averaged(tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: list[float]) -> None:
    wave = babble(2) / 2
    soundfile.write(tmp_path / "a.wav", np.stack([wave * c for c in channels], 1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(tmp_path / "a.wav")[0], wave * np.mean(channels), atol=1e-6)
    assert not caplog.records


def test_stereo_of_silence_does_not_cancel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((24_000, 2)), 24_000)
    assert not decode_audio(tmp_path / "a.wav")[0].any() and not caplog.records


def test_of_several_streams_one_is_taken_whole(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "film.mka"), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=rate, layout="mono") for rate in (16_000, 24_000)]
        for stream, seconds in zip(streams, (1, 2), strict=True):
            samples = (babble(seconds, stream.rate) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = stream.rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    wave, rate = decode_audio(tmp_path / "film.mka")
    assert (len(wave), rate) in ((16_000, 16_000), (48_000, 24_000))
