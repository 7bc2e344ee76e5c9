"""Hundreds of clients, most of them ill-behaved: does the server lose, leak or hang anything?

    python benchmarks/faults.py http://127.0.0.1:8000 [--clients 200] [--seconds 300] [--stall 30] [--growth 1.03]
        [--words 150] [--key KEY] [--random 1] [--json FILE]

A third of the clients hang up in the middle of an answer, at a random moment, some of them with a reset. A third ask
for speech and listen to the end: bare samples, WAV, MP3, events, and text by WebSocket. The others read slower than the
audio is, send garbage, upload 100 MB, or hold connections on which nothing more comes.

What must hold, whatever a run finds:

- Who behaves is answered: whole audio, or 429 with Retry-After. No 5xx for anybody, nothing that is cut off in between.
- Garbage and uploads are refused with 4xx or a closed connection. A connection on which nothing comes is closed within
  --stall and some seconds; that is the server's CHATTERBOX_STALL_SECONDS.
- In the end nobody is waiting: no request open, none in the engine, no block of T3's cache held, and it has completed
  at least as many as were heard to the end.
- It is the same process as before, and its memory is flat: of the time after the first 35 %, the largest use in the
  last third is at most --growth times the largest in the first third.

Exit status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

WORDS = ["quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "quietly", "judge"]
UPLOAD_BYTES = 100 << 20
WARM_UP_SHARE = 0.35
CLOSING_SECONDS = 15.0  # beyond what the server itself allows; it reads on for 5 s after an early answer
SETTLE_SECONDS = 90.0


class Fault(Exception):
    """The server did what it must not."""


@dataclass
class Run:
    """One run: where, how, and what was found."""

    host: str
    port: int
    path: str
    headers: dict[str, str]
    stall: float
    words: int
    session: aiohttp.ClientSession
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    def head(self, method: str = "POST", path: str = "/v1/audio/speech", more: str = "") -> bytes:
        """The beginning of a request as it goes over the wire; its headers are still open."""
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n" + more).encode()

    def request(self, body: dict[str, Any]) -> bytes:
        """A whole request for speech."""
        data = json.dumps(body).encode()
        more = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        return self.head(more=more) + data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--stall", type=float, default=30, help="the server's CHATTERBOX_STALL_SECONDS")
    parser.add_argument("--growth", type=float, default=1.03, help="of memory, that is allowed")
    parser.add_argument("--words", type=int, default=150, help="most of a text")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY"), help="or the variable OPENAI_API_KEY")
    parser.add_argument("--random", type=int, default=1, help="seed of what each client does")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = asyncio.run(faults(options))
    print(json.dumps({name: value for name, value in report.items() if name != "memory MiB"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(0 if report["passed"] else 1)


async def faults(options: argparse.Namespace) -> dict[str, Any]:
    """Let the clients loose, wait until all is quiet, and judge."""
    address = urlsplit(options.url.rstrip("/"))
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=30)
    async with aiohttp.ClientSession(
        options.url.rstrip("/"), headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        run = Run(
            address.hostname or "", address.port or 80, address.path, headers, options.stall, options.words, session
        )
        before = await figures(run)
        end = time.monotonic() + options.seconds
        watch = asyncio.create_task(watch_memory(run))
        await asyncio.gather(*(client(run, number, options.random, end) for number in range(options.clients)))
        watch.cancel()
        try:
            after = await quiet(run)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            return {"faults": dict(run.faults.most_common(30)), "server": f"it is gone: {error}", "passed": False}
    judged = judge(run, before, after, options)
    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "random": options.random,
        "did": dict(sorted(run.counts.items())),
        "faults": dict(run.faults.most_common(30)),
        "in the end": after,
        "memory MiB": run.memory[:: max(1, len(run.memory) // 100)],
        **judged,
        "passed": all(judged["holds"].values()),
    }


def judge(run: Run, before: dict[str, float], after: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    """What must hold, and whether it does."""
    warm = run.memory[int(len(run.memory) * WARM_UP_SHARE) :]
    third = max(1, len(warm) // 3)
    growth = max(warm[-third:]) / max(warm[:third])
    heard = sum(count for name, count in run.counts.items() if name.startswith("heard"))
    return {
        "memory growth": round(growth, 4),
        "holds": {
            "nothing went wrong for a client": not run.faults,
            "somebody was heard to the end": heard > 0,
            "no 5xx": after["5xx"] == before["5xx"],
            "nobody waits": all(
                after[name] == 0 for name in ("users", "queue", "talking", "waiting_for_voice", "kv_blocks")
            ),
            "no request is open": after["open"] <= 1,  # the one that asks
            "the engine completed what was heard": after["completed"] - before["completed"] >= heard,
            "the same process": after["started"] == before["started"] and after["loads"] == before["loads"],
            "memory is flat": growth <= options.growth,
        },
    }


async def client(run: Run, number: int, seed: int, end: float) -> None:
    """One client after another in the same place, each of its kind."""
    draw = random.Random(f"{seed} {number}")
    kinds: list[Callable[[Run, random.Random], Awaitable[str]]]
    kinds = {0: [leave], 1: [listen, listen, listen, talk], 2: [slow, garbage, garbage, upload, hold]}[number % 3]
    while time.monotonic() < end:
        act = draw.choice(kinds)
        try:
            async with asyncio.timeout(300):
                run.counts[await act(run, draw)] += 1
        except Fault as fault:
            run.faults[f"{act.__name__}: {fault}"] += 1
        except (OSError, aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError) as error:
            run.faults[f"{act.__name__}: {type(error).__name__} {str(error)[:100]}"] += 1
        await asyncio.sleep(draw.random() * 0.2)


def speech(run: Run, draw: random.Random, form: str = "pcm", share: float = 1.0) -> dict[str, Any]:
    """A wish for a text of up to a share of the words that are allowed."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(2, max(2, round(share * run.words))))).capitalize() + "."
    return {"input": text, "model": "tts-1", "voice": "alloy", "response_format": form}


async def listen(run: Run, draw: random.Random) -> str:
    """Behave."""
    form = draw.choice(("pcm", "pcm", "wav", "mp3", "sse"))
    body = speech(run, draw, "pcm" if form == "sse" else form, 0.3)
    if form == "sse":
        body["stream_format"] = "sse"
    async with run.session.post("/v1/audio/speech", json=body) as answer:
        if answer.status == 429:
            wait = float(answer.headers["retry-after"])
            await asyncio.sleep(min(wait, 5))
            return "refused, busy"
        if answer.status != 200:
            raise Fault(f"status {answer.status}: {(await answer.text())[:150]}")
        data = await answer.read()
    check_audio(form, data)
    return f"heard {form}"


def check_audio(form: str, data: bytes) -> None:
    """Whether an answer is whole."""
    if form == "sse":
        events = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
        if not events or events[-1]["type"] != "speech.audio.done":
            raise Fault("events without an end")
        data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    if form == "wav" and struct.unpack_from("<I", data, 40)[0] != len(data) - 44:
        raise Fault("a WAV of another length than it says")
    if len(data) < 1000 or (form in ("pcm", "sse") and len(data) % 2):
        raise Fault(f"{len(data)} bytes of {form}")


async def talk(run: Run, draw: random.Random) -> str:
    """Send text by WebSocket, and stay to the end or not."""
    leaves = draw.random() < 0.3
    async with run.session.ws_connect("/v1/audio/speech/stream") as connection:
        for _ in range(draw.randrange(1, 4)):
            await connection.send_json({"type": "input.text", "text": speech(run, draw, share=0.1)["input"] + " "})
        await connection.send_json({"type": "input.done"})
        async for message in connection:
            if message.type is aiohttp.WSMsgType.BINARY and leaves:
                return "left a WebSocket"
            if message.type is aiohttp.WSMsgType.TEXT:
                event = message.json()
                if event["type"] == "session.done":
                    return "heard by WebSocket" if not leaves else "left a WebSocket"
                if event["type"] == "error":
                    if event["error"]["code"] == "rate_limit_exceeded":
                        return "refused, busy"
                    raise Fault(f"error {event['error']}")
    raise Fault("the WebSocket closed before the session was done")


async def leave(run: Run, draw: random.Random) -> str:
    """Hang up at a random moment, before the answer or in the middle of it."""
    reader, writer = await asyncio.open_connection(run.host, run.port)
    reset = draw.random() < 0.3
    try:
        writer.write(run.request(speech(run, draw)))
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.random() * 2):
                await reader.readexactly(draw.randrange(1, 200_000))
    except asyncio.IncompleteReadError:
        return "was answered before it left"
    finally:
        if reset:
            own = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return "left with a reset" if reset else "left"


async def slow(run: Run, draw: random.Random) -> str:
    """Read slower than the audio is, for a while and for --stall seconds at most; then leave."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, (run.host, run.port))
    reader, writer = await asyncio.open_connection(sock=own, limit=4096)
    try:
        writer.write(run.request(speech(run, draw)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(run.stall):
                for _ in range(draw.randrange(5, 40)):
                    if not await reader.read(draw.randrange(1, 4096)):
                        break
                    await asyncio.sleep(draw.random() * 0.1)
        return "read slowly"
    finally:
        writer.transport.abort()


async def garbage(run: Run, draw: random.Random) -> str:
    """Send what is no request, or none that can be taken; it has to be refused or cut off."""
    noise = draw.randbytes(draw.randrange(1, 3000))
    json_type = "Content-Type: application/json\r\n"
    size = f"Content-Length: {len(noise)}\r\n\r\n"
    broken = b'{"input": "' + noise[:50] + b'"'
    sent = draw.choice(
        (
            noise + b"\r\n\r\n",
            run.head(more=json_type + size) + noise,
            run.head(more=json_type + f"Content-Length: {len(broken)}\r\n\r\n") + broken,
            run.head(more=json_type + "Transfer-Encoding: chunked\r\n\r\n") + b"zz\r\n" + noise,
            run.head(more=json_type + "Content-Length: -1\r\n\r\n"),
            run.head(more="X-Long: " + "x" * 20_000 + "\r\n\r\n"),
            run.head(path="/v1/audio/voices", more="Content-Type: multipart/form-data; boundary=a\r\n" + size) + noise,
            run.head("GET", "/v1/audio/speech/stream", "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            run.head(draw.choice(("BREW", "PUT", "DELETE")), "/" + noise[:20].hex(), "Content-Length: 0\r\n\r\n"),
            run.request({"input": "x" * 10_000}),
            run.request({"input": "Hello.", "speed": 1e9, "voice": {"id": "../../etc/passwd"}}),
            run.request({"input": "Hello.", "ref_audio": base64.b64encode(noise).decode()}),
        )
    )
    status = await refusal(run, sent)
    return f"garbage refused with {status}" if status else "garbage cut off"


async def refusal(run: Run, sent: bytes) -> int:
    """The status of a refusal; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection(run.host, run.port)
    try:
        async with asyncio.timeout(run.stall + CLOSING_SECONDS):
            try:
                writer.write(sent)
                await writer.drain()
                line = await reader.readline()
            except ConnectionError:
                return 0
    except TimeoutError:
        raise Fault(f"neither answered nor closed: {sent[-60:]!r}") from None
    finally:
        writer.transport.abort()
    if not line:
        return 0
    status = int(line.split()[1])
    if not 400 <= status < 500:
        raise Fault(f"status {status} for {sent[-60:]!r}")
    return status


async def upload(run: Run, draw: random.Random) -> str:
    """Send 100 MB, which nobody may have to hold, and read the answer meanwhile."""
    chunked = draw.random() < 0.5
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {UPLOAD_BYTES}"
    path, kind = draw.choice(
        (("/v1/audio/speech", "application/json"), ("/v1/audio/voices", "multipart/form-data; boundary=a"))
    )
    reader, writer = await asyncio.open_connection(run.host, run.port)

    async def pour() -> None:
        part = b'--a\r\nContent-Disposition: form-data; name="audio_sample"; filename="a"\r\n\r\n'
        piece = bytes(1 << 16)
        writer.write(run.head(path=path, more=f"Content-Type: {kind}\r\n{size}\r\n\r\n"))
        for start in range(0, UPLOAD_BYTES, len(piece)):
            data = piece if start or "json" in kind else part + piece[len(part) :]
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            await writer.drain()

    pouring = asyncio.create_task(pour())
    try:
        async with asyncio.timeout(run.stall + 60):
            line = await reader.readline()
    except ConnectionError:
        line = b""
    except TimeoutError:
        raise Fault("an upload of 100 MB was neither answered nor cut off") from None
    finally:
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        writer.transport.abort()
    if line and line.split()[1] != b"413":
        raise Fault(f"an upload of 100 MB was answered with {line!r}")
    return "upload refused with 413" if line else "upload cut off"


async def hold(run: Run, draw: random.Random) -> str:
    """Keep a connection on which nothing more comes, until the server closes it."""
    whole = run.request(speech(run, draw))
    sent = draw.choice((b"", run.head(), whole[:-5], b"GET /health HT"))
    reader, writer = await asyncio.open_connection(run.host, run.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(run.stall + CLOSING_SECONDS):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
        return "held a connection until it was closed"
    except TimeoutError:
        raise Fault(f"a connection is still open on which nothing came after {sent[-30:]!r}") from None
    finally:
        writer.transport.abort()


async def watch_memory(run: Run) -> None:
    """Look at the server's memory every second."""
    while True:
        run.memory.append((await figures(run))["memory"])
        await asyncio.sleep(1)


async def quiet(run: Run) -> dict[str, float]:
    """The figures when nobody waits any more, or when that has taken too long."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        found = await figures(run)
        busy = any(found[name] for name in ("users", "queue", "talking", "waiting_for_voice", "kv_blocks"))
        if time.monotonic() > end or (not busy and found["open"] <= 1):
            return found
        await asyncio.sleep(0.5)


async def figures(run: Run) -> dict[str, float]:
    """What /metrics and /health say."""
    async with run.session.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    async with run.session.get("/health") as answer:
        health = await answer.json()
    of_server = [
        value
        for name, value in values.items()
        if "requests_total" in name and 'status="5' in name and "/health" not in name
    ]
    names = ("users", "queue", "talking", "waiting_for_voice", "kv_blocks")
    return {
        **{name: values.get(f"chatterbox_{name}", -1.0) for name in names},
        "open": values["chatterbox_requests_open"],
        "5xx": sum(of_server),
        "memory": round(values["process_resident_memory_bytes"] / 2**20, 1),
        "started": values["process_start_time_seconds"],
        "loads": health["loads"],
        "completed": health["queue"].get("completed", -1),
    }


if __name__ == "__main__":
    main()
