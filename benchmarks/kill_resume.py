"""Whether a batch that is killed again and again ends as one that was left alone, file by file.

    python benchmarks/kill_resume.py [--rows 2000] [--kills 5] [--model babble] [--random 1] [--directory DIR]
        [--tolerance 0] [OPTIONS…]

Runs `chatterbox-vllm batch` twice over the same rows with the same seed: undisturbed, and killed (SIGKILL) at random
places of its work and of its loading, started again each time. OPTIONS go to the command. Prints the verdict; exit
status 1 if they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

MANIFEST = "manifest.jsonl"
TEXT = "the quick brown fox jumps over a lazy dog while seven old wizards boil strange soup under bright stars"


def main() -> int:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", default="babble")
    parser.add_argument("--random", type=int, default=1, help="seed of the texts and of the moments of death")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest difference of two files, relative to the peak; in float32 on a CPU there is none (default: 0)",
    )
    parser.add_argument(
        "--directory", type=Path, help="where to work, and to leave all files (default: a temporary one)"
    )
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.directory or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        return compare(place, options, rest)


def compare(place: Path, options: argparse.Namespace, rest: list[str]) -> int:
    """The whole experiment in one directory."""
    draw = random.Random(options.random)
    source, whole, killed = place / "rows.jsonl", place / "whole", place / "killed"
    write_rows(source, options.rows, draw)

    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "chatterbox_vllm", "batch", str(source), "-d", str(out)),
            *("--model", options.model, "--seed", "1", "--max-tokens", "100", *rest),
        ]

    start = time.monotonic()
    print(f"undisturbed, {options.rows} rows …", flush=True)
    finish(command(whole))
    undisturbed, start = time.monotonic() - start, time.monotonic()
    # Each life does a random part of the work; one of them ends before any work is done.
    marks = sorted(draw.sample(range(1, options.rows), options.kills))
    if marks:
        marks[draw.randrange(len(marks))] = 0
    deaths = [die(command(killed), killed, mark, draw) for mark in marks]
    print(f"killed with {', '.join(map(str, deaths))} rows done; once more …", flush=True)
    finish(command(killed))
    print(f"{undisturbed:.0f} s undisturbed, {time.monotonic() - start:.0f} s with {options.kills} kills")
    faults = differences(whole, killed, options)
    for fault in faults:
        print(f"  {fault}")
    print("verdict:", "DIFFERENT" if faults else "equal")
    return 1 if faults else 0


def write_rows(path: Path, count: int, draw: random.Random) -> None:
    """Texts of 3 to 12 words; every 50th row cannot be spoken."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        rows.append({"text": " ".join(draw.choices(TEXT.split(), k=draw.randint(3, 12))) + ".", "id": f"row-{i}"})
        if i % 50 == 49:
            rows[-1]["temperature"] = -1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def finish(command: list[str]) -> None:
    """Run to the end; rows of the input fail, so the status is 1."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        sys.exit(f"exit status {done.returncode}: {done.stderr}")
    print(done.stdout.strip(), flush=True)


def die(command: list[str], out: Path, mark: int, draw: random.Random) -> int:
    """Start, kill as soon as `mark` rows are done and a moment has passed; returns how many are."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while mark and lines(out) < mark:
        if process.poll() is not None:
            sys.exit(f"finished with {lines(out)} rows before it was killed at {mark}; give more rows")
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.5) if mark else draw.uniform(0, 8))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return lines(out)


def lines(out: Path) -> int:
    """Rows done."""
    path = out / MANIFEST
    return path.read_bytes().count(b"\n") if path.exists() else 0


def differences(whole: Path, killed: Path, options: argparse.Namespace) -> list[str]:
    """What is not as it should be; nothing, it is hoped."""
    rows = options.rows
    names = set(os.listdir(whole)), set(os.listdir(killed))
    faults = [f"{name}: in one only" for name in sorted(names[0] ^ names[1])]
    entries = []
    for out in (whole, killed):
        found = [json.loads(line) for line in (out / MANIFEST).read_text(encoding="utf-8").splitlines()]
        if sorted(entry["index"] for entry in found) != list(range(rows)):
            faults.append(f"{out / MANIFEST}: not one line for each of {rows} rows")
        entries.append({entry["index"]: {k: v for k, v in entry.items() if k != "timings"} for entry in found})
    faults += [f"row {i}: other line in the manifest" for i in entries[0] if entries[0][i] != entries[1].get(i)]
    identical, largest = 0, 0.0
    shared = sorted(name for name in names[0] & names[1] if name.startswith("row-"))
    for name in shared:
        if digest(whole / name) == digest(killed / name):
            identical += 1
            continue
        a, b = (soundfile.read(out / name, dtype="int16")[0].astype(int) for out in (whole, killed))
        difference = float(np.abs(a - b).max() / np.abs(a).max()) if len(a) == len(b) else 1.0
        largest = max(largest, difference)
        if difference > options.tolerance:
            faults.append(f"{name}: differs by up to {difference:.1e} of its peak")
    print(f"{len(shared)} audio files, {identical} identical byte for byte, all within {largest:.1e} of their peak")
    return faults


def digest(path: Path) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
