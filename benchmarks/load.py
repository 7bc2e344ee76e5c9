"""How many listeners a running server serves, and how soon each hears something.

    python benchmarks/load.py http://127.0.0.1:8000 --users 1 4 16 64 [--seconds 30] [--warm-up 5] [--key KEY]
        [--voice NAME …] [--texts FILE] [--listen] [--max-tokens N] [--json FILE]

Closed loop: each user asks for a text, takes the stream as it comes, and asks for the next as soon as it is over; with
--listen not before a listener would have heard all of it, so that N users are N people who listen.
What is asked for in the first seconds warms up and is not counted; nothing new is asked for after the last, and what is
on its way then is waited for. Audio is bare samples (`pcm`), so that every byte that arrives is time to listen to.

- first audio: from the request to its first samples, over HTTP, in seconds.
- RTF, the real-time factor: seconds from the request to its last byte, for a second of audio.
- ran dry: streams whose listener, who plays from the first samples on, had to wait for more at least once.
- failed: requests that were refused, cut off or without audio; refusals (429) are among them.

Percentiles are of nearest rank. One process of Python asks; from about 200 users on give it cores of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp

RATE = 24_000
BYTES_A_SECOND = 2 * RATE
RANKS = (50, 95, 99)
_HEAD = "users  asked failed ran dry | first audio, s: p50   p95   p99   max | RTF: p50   p95   p99 | x real time"
TEXTS = (
    "The ferry leaves at half past nine.",
    "She had forgotten her umbrella again, and it was raining hard.",
    "Could you tell me which of these two roads goes down to the harbour?",
    "Nobody in the village remembered when the clock had stopped, or why. Some said it had never gone at all.",
    "When the last guests had gone, he opened all the windows and sat down by the fire. It was past two.",
    "The measurements were taken twice, on different days, and agreed to the third digit. That was odd enough.",
)


@dataclass
class Heard:
    """One request that was answered: seconds to the first audio, of audio, of all, and of waiting in between."""

    first: float
    audio: float
    total: float
    waited: float

    @property
    def factor(self) -> float:
        return self.total / self.audio


@dataclass
class Round:
    """What became of the requests of one number of users."""

    heard: list[Heard] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=30, help="that are counted, for each number of users")
    parser.add_argument("--warm-up", type=float, default=5, help="seconds before")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY"), help="or the variable OPENAI_API_KEY")
    parser.add_argument("--voice", nargs="*", default=[], help="names to draw from (default: the server's own)")
    parser.add_argument("--texts", type=Path, help="a text a line (default: six of one or two sentences)")
    parser.add_argument("--random", type=int, default=1, help="seed of which text is asked for when")
    parser.add_argument("--listen", action="store_true", help="hear a text to its end before asking for the next")
    parser.add_argument("--max-tokens", type=int, help="of a text, for models that do not know when to stop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of users, one after the other."""
    texts = options.texts.read_text(encoding="utf-8").split("\n") if options.texts else TEXTS
    texts = [text for text in texts if text.strip()]
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    rows = []
    async with aiohttp.ClientSession(
        options.url.rstrip("/"), headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        async with session.get("/health") as answer:
            server = await answer.json()
        print(f"{server['model']} on {server['device']}, tier {server['tier']}")
        print(_HEAD)
        for users in options.users:
            began = time.monotonic()
            found = await one_round(session, users, texts, options)
            rows.append(row(users, found, options.seconds, time.monotonic() - began - options.warm_up))
            show(rows[-1])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "server": {name: server[name] for name in ("model", "device", "tier", "quantization")},
        "settings": {
            "seconds": options.seconds,
            "warm-up": options.warm_up,
            "voices": options.voice,
            "texts": texts,
            "random": options.random,
            "listen": options.listen,
            "max tokens": options.max_tokens,
            "format": "pcm",
        },
        "rows": rows,
    }


async def one_round(
    session: aiohttp.ClientSession, users: int, texts: Sequence[str], options: argparse.Namespace
) -> Round:
    """So many users at once."""
    found = Round()
    counted = time.monotonic() + options.warm_up
    end = counted + options.seconds

    async def user(number: int) -> None:
        draw = random.Random(f"{options.random} {users} {number}")
        if options.listen:  # nor do people begin together
            await asyncio.sleep(options.warm_up * number / users)
        while (start := time.monotonic()) < end:
            body: dict[str, Any] = {"input": draw.choice(texts), "model": "tts-1", "response_format": "pcm"}
            if options.max_tokens:
                body["max_tokens"] = options.max_tokens
            if options.voice:
                body["voice"] = draw.choice(options.voice)
            try:
                heard = await listen(session, body)
            except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError) as error:
                if start >= counted:
                    found.failures[str(error) or type(error).__name__] += 1
                await asyncio.sleep(0.2)  # a server that refuses at once is not to be stormed
            else:
                if start >= counted:
                    found.heard.append(heard)
                if options.listen:
                    await asyncio.sleep(heard.first + heard.waited + heard.audio - heard.total)

    await asyncio.gather(*(user(number) for number in range(users)))
    return found


async def listen(session: aiohttp.ClientSession, body: dict[str, Any]) -> Heard:
    """Ask for a text and listen to all of it.

    Raises:
        ValueError: it was refused, or there was no audio.
        aiohttp.ClientError, TimeoutError: it was cut off.
    """
    start = time.perf_counter()
    first = waited = audio = 0.0
    async with session.post("/v1/audio/speech", json=body) as answer:
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        async for data in answer.content.iter_any():
            now = time.perf_counter() - start
            first = first or now
            waited = max(waited, now - first - audio)
            audio += len(data) / BYTES_A_SECOND
    if not audio:
        raise ValueError("no audio")
    return Heard(first, audio, time.perf_counter() - start, waited)


def row(users: int, found: Round, seconds: float, took: float) -> dict[str, Any]:
    """The figures of one number of users."""
    heard = found.heard
    return {
        "users": users,
        "asked": len(heard) + found.failures.total(),
        "failed": found.failures.total(),
        "failures": dict(found.failures.most_common(10)),
        "ran dry": sum(one.waited > 0 for one in heard),
        "longest wait": round(max((one.waited for one in heard), default=0.0), 4),
        "first audio": percentiles([one.first for one in heard]),
        "real-time factor": percentiles([one.factor for one in heard]),
        "x real time": round(sum(one.audio for one in heard) / max(took, seconds), 2),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, of nearest rank; nothing of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {f"p{rank}": ordered[math.ceil(rank / 100 * len(ordered)) - 1] for rank in RANKS}
    return {name: round(value, 4) for name, value in (found | {"max": ordered[-1]}).items()}


def show(found: dict[str, Any]) -> None:
    """A line of the table."""
    first = " ".join(f"{found['first audio'].get(name, math.nan):5.2f}" for name in ("p50", "p95", "p99", "max"))
    factor = " ".join(f"{found['real-time factor'].get(name, math.nan):5.2f}" for name in ("p50", "p95", "p99"))
    counts = f"{found['users']:5d} {found['asked']:6d} {found['failed']:6d} {found['ran dry']:7d}"
    print(f"{counts} |              {first} |      {factor} | {found['x real time']:11.1f}", flush=True)
    for failure, count in found["failures"].items():
        print(f"        {count} x {failure}")


if __name__ == "__main__":
    main()
