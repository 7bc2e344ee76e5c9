"""The published package's half of the side-by-side benchmark, run as a script by an interpreter that has it.

It reads a job (JSON) from standard input and writes a line of JSON for each event to standard output. It imports the
standard library, PyTorch and the published package only: nothing else of ours is there in that environment.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Emit = Callable[[dict[str, Any]], None]


class Published(NamedTuple):
    """How a family is spoken with the published package.

    Attributes:
        module, name: of its class.
        options: of `from_local`.
        talk: the method of its T3 that draws tokens.
        limit: that method's argument for the most tokens.
        beyond: tokens that it draws beyond `limit`.
        steps: diffusion steps that its `generate` always takes.
        words: further arguments of `generate`.
    """

    module: str
    name: str
    options: dict[str, Any]
    talk: str = "inference"
    limit: str = "max_new_tokens"
    beyond: int = 0
    steps: int = 10
    words: dict[str, Any] = {}


# By the family's name. Earlier releases have English alone.
PUBLISHED = {
    "english": Published("chatterbox.tts", "ChatterboxTTS", {}),
    "multilingual": Published(
        "chatterbox.mtl_tts", "ChatterboxMultilingualTTS", {"t3_model": "v2"}, words={"language_id": "en"}
    ),
    "multilingual-v3": Published(
        "chatterbox.mtl_tts", "ChatterboxMultilingualTTS", {"t3_model": "v3"}, words={"language_id": "en"}
    ),
    "turbo": Published("chatterbox.tts_turbo", "ChatterboxTurboTTS", {}, "inference_turbo", "max_gen_len", 1, 2),
    "nano": Published(
        "chatterbox.tts_turbo", "ChatterboxTurboTTS", {"nano": True}, "inference_turbo", "max_gen_len", 1, 2
    ),
}


class Taken:
    """What the calls of one method took.

    Attributes:
        seconds: of all calls, until the device was done.
        results: what each call returned.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.results: list[Any] = []


@contextmanager
def standing_before(owner: Any, method: str, finish: Callable[[], None], **replaced: Any) -> Iterator[Taken]:
    """Time one method of an object, and replace keyword arguments that its caller gives.

    Args:
        finish: waits for the device.
    """
    taken, inner = Taken(), getattr(owner, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        finish()
        start = time.perf_counter()
        result = inner(*arguments, **{**options, **replaced})
        finish()
        taken.seconds += time.perf_counter() - start
        taken.results.append(result)
        return result

    setattr(owner, method, timed)
    try:
        yield taken
    finally:
        delattr(owner, method)


def work(job: dict[str, Any], emit: Emit) -> None:
    """Load the model, then speak each of the job's utterances; every failure is an event.

    Args:
        job: family, directory, device, voice (a clip or null), steps, and utterances, each of which has text,
            max_tokens, seed.
    """
    published = PUBLISHED[job["family"]]
    try:
        import torch

        made = getattr(importlib.import_module(published.module), published.name)
    except Exception as error:  # what it needs may fail in any way, torchaudio with OSError
        emit({"event": "not importable", "error": _described(error)})
        return
    try:
        start = time.perf_counter()
        tts = made.from_local(job["directory"], job["device"], **published.options)
        if job["voice"] is not None:
            tts.prepare_conditionals(job["voice"])
        loading = time.perf_counter() - start
    except Exception as error:
        emit({"event": "not loadable", "error": _described(error)})
        return
    emit({"event": "loaded", "load s": round(loading, 2), **_versions(torch)})

    def finish() -> None:
        if job["device"] != "cpu":
            torch.cuda.synchronize(job["device"])

    for utterance in job["utterances"]:
        try:
            measured = speak(published, tts, utterance, job["steps"], torch.manual_seed, finish)
        except Exception as error:
            measured = {"error": _described(error)}
        emit({"event": "spoken", **measured})
    device_bytes = None if job["device"] == "cpu" else torch.cuda.max_memory_reserved(job["device"])
    emit({"event": "done", "device_bytes": device_bytes, "host_bytes": peak_resident_bytes()})


def speak(
    published: Published,
    tts: Any,
    utterance: dict[str, Any],
    steps: int,
    set_seed: Callable[[int], Any],
    finish: Callable[[], None],
) -> dict[str, Any]:
    """Speak one text: seconds from request to audio, in each stage, of audio; and how many tokens T3 drew."""
    # Its `generate` fixes both. Earlier releases know no number of steps but their own.
    steps_argument = {} if steps == published.steps else {"n_cfm_timesteps": steps}
    limit = {published.limit: utterance["max_tokens"] - published.beyond}
    set_seed(utterance["seed"])
    with (
        standing_before(tts.t3, published.talk, finish, **limit) as talking,
        standing_before(tts.s3gen, "inference", finish, **steps_argument) as voicing,
    ):
        start = time.perf_counter()
        audio = tts.generate(utterance["text"], **published.words)
        elapsed = time.perf_counter() - start
    return {
        "elapsed": elapsed,
        "audio": audio.shape[-1] / tts.sr,
        "tokens": sum(tokens.shape[-1] for tokens in talking.results),
        "talking": talking.seconds,
        "voicing": voicing.seconds,
    }


def peak_resident_bytes() -> int:
    """This process's own peak; getrusage would count its parent's, from before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def _versions(torch: Any) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = version("chatterbox-tts")
    except PackageNotFoundError:
        package = "not installed as a distribution"
    return {
        "chatterbox-tts": package,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def main() -> None:
    # The package prints; what it prints must not end up among our events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    work(json.load(sys.stdin), emit)


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules' names could stand before others'
    main()
