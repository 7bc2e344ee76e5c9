"""Encoding into files of many formats, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import FORMATS, check_output, send_audio, write_audio
from chatterbox_vllm.errors import OutputError

from .made_up_clips import tone


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
