"""The command line as its user meets it: judged by its files, lines and exit status.

What a process of its own is needed for runs in one; all else runs in this one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("vllm")

from chatterbox_vllm import __version__
from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.cli import main
from chatterbox_vllm.cli.options import check_voice
from chatterbox_vllm.families.babble import babble_directory

LIST = ["voices", "list", "--model", "babble"]
SAY = ("say", "Good morning.", "--seed", "3", "-o")


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "chatterbox_vllm", *map(os.fsencode, map(str, arguments))]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 300, "check": False, **options})


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that is to be refused: status 2, one line that holds all of `named`, and nothing else."""

    def check(*arguments: object, named: tuple[str, ...]) -> None:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert_one_error(printed.err, *named)
        assert printed.out == ""

    return check


def assert_one_error(errors: str, *named: str) -> None:
    lines = errors.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("chatterbox-vllm: error: "), errors
    assert all(name in lines[0] for name in named), lines[0]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of our own, so that the babbling model is built by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("CHATTERBOX_VOICES", str(tmp_path_factory.mktemp("voices")))
        yield


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, cache) -> tuple[Path, subprocess.CompletedProcess]:
    path = tmp_path_factory.mktemp("out") / "morning.wav"
    return path, run(*SAY, path, "--model", "babble")


def test_say(spoken: tuple[Path, subprocess.CompletedProcess]) -> None:
    path, done = spoken
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    wave, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and wave.ndim == 1
    assert done.stdout.startswith(f"{path}: {len(wave) / rate:.2f} s, seed 3, babble")
    assert 0.01 < np.abs(wave).max() < 0.99 and np.sqrt(np.mean(wave**2)) > 0.01
    assert Watermarker().detect(wave, rate) > 0.9


def test_say_leaves_nothing_behind(spoken: tuple[Path, subprocess.CompletedProcess], tmp_path: Path) -> None:
    """The process does not take its engine apart as it ends, and yet no file and no child of it stays."""
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    shutil.copytree(os.environ["CHATTERBOX_VLLM_CACHE"], cache, ignore=shutil.ignore_patterns("t3"))
    (cache / "t3").write_text("in the way, so that the engine starts from a temporary directory")
    temporary.mkdir()
    environment = os.environ | {"CHATTERBOX_VLLM_CACHE": str(cache), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "chatterbox_vllm", *SAY, tmp_path / "out.wav", "--model", "babble"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert "cannot be kept" in process.communicate(timeout=300)[1] and process.returncode == 0
    assert (tmp_path / "out.wav").read_bytes() == spoken[0].read_bytes()
    assert list(temporary.iterdir()) == []
    assert sessions().count(process.pid) == 0


def sessions() -> list[int]:
    """The session that each process of this machine belongs to."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(int(stat.read_text().rpartition(")")[2].split()[3]))
    return found


def test_say_from_standard_input_to_standard_output(spoken: tuple[Path, subprocess.CompletedProcess]) -> None:
    """Audio alone goes there, a byte order mark is not spoken, and the voice is the clip's."""
    options = ("--seed", 3, "--audio-format", "flac", "--model", "babble", "--voice", spoken[0])
    done = run("say", "-", "-o", "-", *options, input="\ufeffGood morning.".encode(), text=False)
    assert done.returncode == 0, done.stderr
    with soundfile.SoundFile(io.BytesIO(done.stdout)) as file:
        assert file.format == "FLAC" and file.samplerate == 24_000
        wave = file.read(dtype="float32")
    assert done.stderr.startswith(f"-: {len(wave) / 24_000:.2f} s, seed 3".encode())
    original, _ = soundfile.read(spoken[0], dtype="float32")
    assert np.isfinite(wave).all()
    assert len(wave) != len(original) or np.abs(wave - original).max() > 0.01


def test_what_is_spoken_to_standard_output_comes_in_parts(
    spoken: tuple[Path, subprocess.CompletedProcess], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = "Good morning to everybody who is here. " * 3
    command = [sys.executable, "-m", "chatterbox_vllm", "say", text, "--seed", "3", "-o", "-", "--model", "babble"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(44 + 2 * 4800)
        assert process.poll() is None  # it is still speaking
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, errors
    assert first[:4] == b"RIFF" and first[8:16] == b"WAVEfmt " and first[36:44] == b"data\xff\xff\xff\xff"
    wave = np.frombuffer((first + rest)[44:], "<i2") / 32767
    assert errors.decode().startswith(f"-: {len(wave) / 24_000:.2f} s, seed 3") and wave.std() > 0.01
    assert Watermarker().detect(wave, 24_000) > 0.9
    assert main(["say", text, "--seed", "3", "-o", "-", "--model", "babble", "--audio-format", "pcm"]) == 0
    assert capfdbinary.readouterr().out == (first + rest)[44:]


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATTERBOX_MAX_BATCH_SIZE", "7")
    assert main(["info", "--model", "babble", "--json", str(tmp_path / "info.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["chatterbox-vllm"] == __version__ and facts["device"]["stages"]["T3"].startswith("cpu")
    assert facts["settings"]["CHATTERBOX_MAX_BATCH_SIZE"] == {"value": "7", "from": "the environment"}
    assert facts["settings"]["CHATTERBOX_MAX_MODEL_LEN"]["from"] == "default"
    model = facts["model"]
    assert model["family"] == "english" and set(model["quantized"].values()) == {None}
    for name, file in model["files"].items():
        assert file["bytes"] == (Path(model["directory"]) / name).stat().st_size
    assert model["files"]["t3_cfg.safetensors"]["dtypes"] == ["F32"]
    assert "T3 on cpu" in printed and "CHATTERBOX_MAX_BATCH_SIZE 7 the environment" in printed
    assert model["directory"] in printed

    assert main(["info", "--json"]) == 0  # standard output, as in earlier versions
    whole = json.loads(capsys.readouterr().out)["model"]["components"]
    small = model["components"]["t3 transformer"]["parameters"]
    assert small < whole["t3 transformer"]["parameters"] == pytest.approx(511.8e6, rel=1e-3)
    # The published count of the vocoder, parity with upstream's own module.
    assert whole["s3gen vocoder"]["parameters"] == pytest.approx(20.8e6, rel=5e-3)


def test_what_can_be_refused_is_refused_before_the_model_loads(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatterbox_vllm.tts.ChatterboxTTS.from_pretrained", None)  # fails where it is called
    out = tmp_path / "out.wav"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for arguments, named in (
        (("say", "  ", "-o", out), ("no text to speak",)),
        (("say", "* * *", "-o", out), ("no text to speak",)),
        (("say", "Un caf\udce9, please.", "-o", out), ("UTF-8", "character 7")),
        (("say", "-o", out), ("TEXT", "--file")),
        (("say", "Hi.", "--file", tmp_path / "x.txt", "-o", out), ("either",)),
        (("say", "--file", tmp_path / "none.txt", "-o", out), ("none.txt",)),
        (("say", "--file", tmp_path / "latin.txt", "-o", out), ("latin.txt", "UTF-8")),
        (("say", "Hi."), ("--output",)),
        (("say", "Hi.", "-o", tmp_path / "out.xyz"), (".xyz",)),
        (("say", "Hi.", "-o", out, "--audio-format", "flac"), ("--audio-format flac", "two formats")),
        (("say", "Hi.", "-o", tmp_path / "missing" / "out.wav"), ("missing",)),
        (("say", "Hi.", "-o", out, "--temperature", "9"), ("--temperature must", "9")),
        (("say", "Hi.", "-o", out, "--diffusion-steps", "0"), ("--diffusion-steps must", "0")),
        (("say", "Hi.", "-o", out, "--steps", "two"), ("--steps", "two")),
        (("say", "Hi.", "-o", out, "--stream-prompt-seconds", "3"), ("--stream-prompt-seconds is of", "--output -")),
        (("say", "Hi.", "-o", out, "--dtype", "float8"), ("--dtype", "float8", "bfloat16")),
        (("say", "Hi.", "-o", out, "--quiet", "-v"), ("--verbose", "--quiet")),
        (("say", "Hi.", "-o", out, "--voise", "clip.wav"), ("--voise", "--voice")),
        (("speak", "Hi."), ("speak",)),
        ((), ("command", "--help")),
        (("batch", "in.txt", "-d", out, "--overwrite", "--retry-failed"), ("--overwrite", "--retry-failed")),
        (("say", "Hi.", "-o", out, "--pause", "scene=long"), ("--pause", "paragraph", "scene=long")),
        (("say", "Привет, как дела?", "-o", out, "--model", "babble"), ("Cyrillic",)),
        (("say", "Hi [pause:3] there.", "-o", out, "--model", "babble"), ("[pause:0.5s]",)),
        (("voices", "add", "clip.wav", "a/b"), ("a/b",)),
        (("voices", "show", "nobody", "--model", "babble"), ("nobody", "builtin")),
        (("download", "babble", "--revision", "x"), ("babble", "no revisions")),
        (("estimate", "--json", tmp_path / "missing" / "out.json"), ("missing",)),
        (("info", "--model", tmp_path / "nothing"), ("nothing",)),
    ):
        refused(*arguments, named=named)
    assert list(tmp_path.glob("out*")) == []


def test_a_strategy_beside_methods(refused, tmp_path: Path) -> None:
    options = ("--quantization-strategy", "mixed", "--quantize-s3gen", "bnb-8bit", "--no-use-quantization")
    refused(
        *SAY, tmp_path / "o.wav", "--model", "babble", *options,
        named=("--quantization-strategy says", "leave --use-quantization, --quantize-s3gen out"),
    )  # fmt: skip


def test_models_and_devices_that_are_not_there(refused, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    refused(*SAY, out, "--model", "english", named=("ResembleAI/chatterbox", "directory", "HF_HOME", "--model small"))
    refused(*SAY, out, "--model", tmp_path / "nothing", named=("nothing",))
    refused(*SAY, out, "--model", tmp_path, named=("tokenizer.json",))
    refused(*SAY, out, "--model", "babble", "--device", "tpu", named=("--device must", "tpu", "cuda:N"))
    refused(*SAY, out, "--model", "babble", "--max-model-len", "0", named=("--max-model-len must", "0"))
    refused(*SAY, out, "--model", "babble", "--cuda-graphs", named=("--cuda-graphs needs a CUDA device",))


def test_bad_reference_clips(refused, tmp_path: Path) -> None:
    clips = {"silent.wav": np.zeros(48_000), "click.wav": np.ones(1) * 0.5, "short.wav": np.full(4800, 0.2)}
    named = {"silent.wav": "silent", "click.wav": "0.00 s", "short.wav": "0.20 s"}
    for name, wave in clips.items():
        write_audio(tmp_path / name, wave.astype(np.float32), 24_000)
    (tmp_path / "text.wav").write_text("no audio in here")
    (tmp_path / "saved.pt").write_bytes(b"PK\x03\x04 and no more")
    named |= {"text.wav": "text.wav", "none.wav": "none.wav", "saved.pt": "saved.pt"}
    for name, fault in named.items():
        refused(*SAY, tmp_path / "o.wav", "--model", "babble", "--voice", tmp_path / name, named=(fault,))
    assert not (tmp_path / "o.wav").exists()


def test_voices(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoken: tuple[Path, subprocess.CompletedProcess],
) -> None:
    clip = spoken[0]
    assert main(["voices", "add", str(clip), "ada", "--model", "babble"]) == 0
    assert main(["voices", "add", str(clip), "ada", "--model", "babble"]) == 2  # taken
    assert "named 'ada' already" in capsys.readouterr().err
    assert (
        main(["voices", "add", str(clip), "ada", "--model", "babble", "--overwrite", "--quiet", "--language", "en-GB"])
        == 0
    )
    assert capsys.readouterr().out == ""
    assert main(["voices", "list", "--model", "babble", "--json", "-"]) == 0
    entry, own = json.loads(capsys.readouterr().out)
    assert entry["name"] == "ada" and entry["bytes"] == Path(entry["file"]).stat().st_size
    assert own["name"] == "builtin" and own["from"] == "babble" and Path(own["file"]).name == "conds.pt"
    assert main(["voices", "list", "--model", "babble"]) == 0
    assert main(["voices", "show", "ada", "--model", "babble"]) == 0
    shown = capsys.readouterr().out
    assert "ada" in shown and "babble: builtin" in shown and entry["file"] in shown and "mel frames" in shown
    preview = Path(entry["preview"])
    assert preview.suffix == ".flac" and str(preview) in shown and entry["languages"] == ["en-GB"]
    heard = spoken[0].with_name("heard.wav")
    assert main(["voices", "play", "ada", "-o", str(heard)]) == 0  # no model is loaded for it
    assert np.allclose(decode_audio(heard)[0], decode_audio(preview)[0], atol=1e-4)
    played: list[Path] = []
    monkeypatch.setattr("chatterbox_vllm.cli.voices.sound", played.append)
    monkeypatch.chdir(heard.parent)
    assert main(["voices", "play", "ada"]) == 0 and played == [Path("ada.wav")]  # some players know WAV alone
    assert Path("ada.wav").read_bytes() == heard.read_bytes()
    assert main(["voices", "sweep"]) == 0 and "removed 0 files" in capsys.readouterr().out
    given = {"model": "babble"}
    assert check_voice("ada", given) == check_voice(entry["file"], given) == Path(entry["file"])
    assert check_voice("builtin", given) == Path(own["file"])
    preview.write_bytes(b"fLaC")
    assert main(["voices", "sweep"]) == 2 and "ada" in capsys.readouterr().err
    assert main(["voices", "remove", "ada"]) == 0 and main(["voices", "remove", "ada"]) == 2
    assert not preview.exists()
    assert main(["download", "babble"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(babble_directory())


def test_help_and_completion_need_no_nets() -> None:
    """They answer at once: neither PyTorch nor NumPy is imported."""
    script = """
import sys
from chatterbox_vllm.cli import main
assert main([*sys.argv[1:], "--help"]) == 0
assert not {"torch", "vllm", "numpy", "huggingface_hub"} & set(sys.modules)
"""
    for words in ([], ["say"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "--help" in done.stdout, done.stderr
    for words, place, found in (("qu", 1, ["quantize"]), ("say --tier 1", 3, ["12"])):
        completed = {"_CHATTERBOX_VLLM_COMPLETE": "complete_bash", "COMP_WORDS": f"chatterbox-vllm {words}"}
        done = run(env={**os.environ, **completed, "COMP_CWORD": str(place)})
        assert done.stdout.split() == found, done.stderr


def test_a_text_in_another_encoding() -> None:
    """As a terminal or a script in Latin-1 gives it."""
    done = run("say", "Un caf\udce9, please.", "-o", "out.wav", "--model", "babble", timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert_one_error(done.stderr, "UTF-8")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out.wav"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = run(*SAY, out, "--model", "babble", "--no-watermark", preexec_fn=limit, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert_one_error(done.stderr, "out.wav")
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_played_while_it_is_spoken(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = ["say", "Well done.", "--play", "--model", "babble", "--seed", "3"]
    heard, player = tmp_path / "heard.wav", tmp_path / "aplay"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    player.write_text(f"#!/bin/sh\ncat > {heard}\n")
    player.chmod(0o755)
    assert main(play) == 0
    wave, rate = decode_audio(heard)
    assert rate == 24_000 and capsys.readouterr().out.startswith(f"aplay: {len(wave) / rate:.2f} s, seed 3")

    player.write_text("#!/bin/sh\nhead -c 100 > /dev/null; echo no sound card >&2; exit 1\n")
    refused(*play, named=("aplay cannot play (no sound card)", "--output FILE"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give --output FILE, or --play"),
        (["--play", "--audio-format", "mp3"], "--audio-format"),
        (["--play", "-o", "-"], "leave out the one"),
        (["--play"], "install aplay"),
    ],
)
def test_speech_that_can_go_nowhere(words: list[str], named: str, tmp_path: Path) -> None:
    done = run("say", "Well done.", *words, "--model", "babble", env=os.environ | {"PATH": str(tmp_path)}, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert_one_error(done.stderr, named)


def test_a_reader_that_has_gone() -> None:
    command = [sys.executable, "-m", "chatterbox_vllm", "voices", "list", "--model", "babble", "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [LIST, [*LIST, "--json", "-"], ["--help"], ["--version"]])
def test_standard_output_that_is_full(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = run(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 2
    assert_one_error(done.stderr, "standard output", "No space left on device")


def interruptible() -> None:
    """For a child: a shell that runs the tests in the background has its processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_interrupted(sent: signal.Signals, status: int, said: str, tmp_path: Path) -> None:
    text = "This takes a while to say. " * 300  # minutes, on any machine
    command = [sys.executable, "-m", "chatterbox_vllm", "say", text, "-o", tmp_path / "o.wav", "--model", "babble"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        time.sleep(8)
        process.send_signal(sent)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == status, errors
    assert errors.strip().splitlines()[-1] == f"chatterbox-vllm: {said}"
    assert list(tmp_path.iterdir()) == []


WHILE_IMPORTING = """
class Importing:
    def find_spec(self, name, path, target=None):
        if name == "chatterbox_vllm.cli.app":
            stop()

sys.meta_path.insert(0, Importing())
"""
WHILE_READING_WORDS = """
import typer.core
typer.core.TyperGroup.make_context = lambda *arguments, **keywords: stop()
"""


@pytest.mark.parametrize("stage", [WHILE_IMPORTING, WHILE_READING_WORDS])
@pytest.mark.parametrize(
    ("sent", "status", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")]
)
def test_interrupted_before_the_command_runs(stage: str, sent: str, status: int, said: str) -> None:
    script = f"""
import signal, sys
from chatterbox_vllm.cli import entry

def stop():
    signal.raise_signal(signal.{sent})
{stage}
sys.argv = ["chatterbox-vllm", "models"]
entry()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=interruptible)
    assert (done.returncode, done.stderr) == (status, f"chatterbox-vllm: {said}\n")


def test_an_interrupt_in_a_finaliser_is_not_lost() -> None:
    script = """
import signal, sys, time
from chatterbox_vllm.cli.interrupts import keep_interrupts

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # where Python raises it

keep_interrupts()
Finalised()
try:
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=interruptible)
    assert done.returncode == 130 and not done.stderr
