"""A library of voices that several processes use at once, some of which are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatterbox_vllm.caches import atomic
from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices import VoiceLibrary
from chatterbox_vllm.voices.contents import Contents

from .test_voice_files import made_up_voice
from .test_voice_library import files

_ADDER = """
import sys
from pathlib import Path
from chatterbox_vllm.voices import VoiceLibrary
from tests.test_voice_files import made_up_voice
library = VoiceLibrary(Path(sys.argv[1]))
print("go", flush=True)
for number in range(int(sys.argv[2]), 10**9):
    library.save(f"v{number}", made_up_voice(number % 50), overwrite=True)
    print(number, flush=True)
"""


def adder(directory: Path, start: int) -> subprocess.Popen[str]:
    """A process that adds one voice after another, and says so."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", _ADDER, str(directory), str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_while_adding_it_is_as_before_or_has_the_voice_whole(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path)
    library.save("before", made_up_voice(7))
    rng = random.Random(1)
    for start in (0, 100_000):
        process = adder(tmp_path, start)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(0.3 + rng.random() / 5)
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.communicate()[0].split()]
        assert said
        for number in said:  # what was told to be there is there
            assert library.load(f"v{number}").key == made_up_voice(number % 50).key
    for voice in library.voices():
        assert library.load(voice.name).key
    assert library.load("before").key == made_up_voice(7).key
    assert library.sweep().faults == ()
    # Nothing but whole voices is left, and each content once.
    names = {voice.path.name for voice in library.voices()}
    assert {Path(name).name for name in files(library) if name.startswith("contents/") and "/." not in name} == names


def test_of_two_that_add_a_name_at_once_one_wins_whole(tmp_path: Path) -> None:
    def add(token: int) -> int | None:
        barrier.wait(20)
        try:
            VoiceLibrary(tmp_path).save("anna", made_up_voice(token))
        except OutputError as error:
            assert "a voice named 'anna' already" in str(error)
            return None
        return token

    for _ in range(10):
        barrier = threading.Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            won = [token for token in pool.map(add, range(1, 7)) if token is not None]
        library = VoiceLibrary(tmp_path)
        assert len(won) == 1 and library.load("anna").key == made_up_voice(won[0]).key
        assert len(files(library)) == 2  # the others' content is gone
        library.delete("anna")


def test_adding_and_removing_of_one_content_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    """Names come and go that all have the same content, while a reader uses one of them after the other."""
    end = time.monotonic() + 3
    faults: list[BaseException] = []

    def work(number: int) -> None:
        library = VoiceLibrary(tmp_path)
        try:
            while time.monotonic() < end:
                library.save(f"v{number}", made_up_voice(1))
                assert library.load(f"v{number}").key == made_up_voice(1).key
                library.delete(f"v{number}")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    library = VoiceLibrary(tmp_path)
    while time.monotonic() < end:
        assert library.sweep().faults == ()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert not faults, faults
    assert files(library) == []


@pytest.mark.parametrize("moment", [1, 2])
def test_a_content_that_is_added_while_it_is_removed_stays(tmp_path: Path, moment: int) -> None:
    """Another process adds the same, before the first or the second look at what is used, or right after it."""
    for sees_it in (True, False):
        contents = Contents(tmp_path / str(sees_it))
        digest = contents.put(b"voice", ".pt").stem
        pointers: set[str] = set()
        looks = 0

        def used(
            sees_it: bool = sees_it, contents: Contents = contents, digest: str = digest, pointers: set[str] = pointers
        ) -> set[str]:
            nonlocal looks
            looks += 1
            seen = set(pointers)
            if looks == moment:
                contents.put(b"voice", ".pt")
                pointers.add(digest)
                contents.put(b"voice", ".pt")
            return set(pointers) if sees_it else seen

        contents.remove_unused([digest], used)
        assert [path.read_bytes() for path in contents.directory.iterdir()] == [b"voice"]


def test_a_content_that_was_taken_aside_is_put_back(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path)
    path = library.save("anna", made_up_voice(1))
    path.rename(path.with_name(f".{path.name}.0123.aside"))  # a process was killed in the middle of a removal
    assert library.load("anna").key == made_up_voice(1).key


def test_a_sweep_removes_what_nothing_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = VoiceLibrary(tmp_path)
    assert library.sweep().removed == ()
    path = library.save("anna", made_up_voice(1))
    library.contents.put(b"nobody's", ".pt")
    for name in ("names/.0123.partial", "contents/.4567.partial", f"contents/.{path.name}.89ab.aside"):
        (tmp_path / name).write_bytes(path.read_bytes())
    (removed,) = library.sweep().removed  # whoever wrote the others may be at work this moment
    assert not removed.exists() and len(files(library)) == 5
    monkeypatch.setattr("chatterbox_vllm.voices.contents._LEFT_BEHIND_SECONDS", -1)
    assert len(library.sweep().removed) == 3 and len(files(library)) == 2
    assert library.load("anna").key == made_up_voice(1).key


def test_a_link_that_a_network_file_system_makes_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def linked_and_told_otherwise(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(atomic.os, "link", linked_and_told_otherwise)
    with whole_file(tmp_path / "a", overwrite=False) as file:
        file.write(b"mine")
    assert (tmp_path / "a").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a", overwrite=False) as file:
        file.write(b"another's")
    assert (tmp_path / "a").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_a_voice_that_is_removed_while_it_is_asked_for_is_unknown_or_whole(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            library.save("anna", made_up_voice(1))
            library.delete("anna")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        seen = 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                assert VoiceLibrary(tmp_path).load("anna").key == made_up_voice(1).key
                seen += 1
            except (ConfigError, CheckpointError) as error:
                assert "no voice named" in str(error) or "no such voice file" in str(error) or "missing" in str(error)
        assert seen
    finally:
        stop.set()
        thread.join()
