"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

# Where it is named, and what distributions call it.
_VARIABLE = "CHATTERBOX_CHROMIUM"
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 20.0  # for the browser to start, or a page to do what it should
# Keys that tests press: code, Windows' number, text.
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "Space": ("Space", 32, " "),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Home": ("Home", 36, ""),
}
CONTROL, SHIFT = 2, 8
_STILL_MIDDLE = """async (element) => {
    for (let last = ""; ; ) {
        element.scrollIntoView({ block: "center", behavior: "instant" });
        await new Promise(requestAnimationFrame);
        const { x, y, width, height } = element.getBoundingClientRect();
        if (String([x, y, width, height]) === last) return [x + width / 2, y + height / 2];
        last = String([x, y, width, height]);
    }
}"""


def find_chromium() -> str | None:
    """The program, if there is one: what is named, or stands beside our Python (see .ci/browser), or is installed."""
    beside = Path(sys.executable).parent / "chromium"
    return (
        os.environ.get(_VARIABLE)
        or (str(beside) if beside.is_file() else None)
        or next(filter(None, map(shutil.which, _NAMES)), None)
    )


class PageError(AssertionError):
    """The page threw, or did not do what was waited for."""


class Browser:
    """One page in a browser.

    Attributes:
        complaints: what the page wrote to its console as an error, uncaught errors and refused sources among it.
    """

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self._downloads: dict[str, str] = {}  # their states
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_SECONDS))
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                found: dict[str, Any] = message["result"]
                return found
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        facts = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif message["method"] == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif message["method"] == "Browser.downloadProgress":
            self._downloads[facts["guid"]] = facts["state"]

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited; it may do what a user's press would allow."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise PageError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, script: str, seconds: float = _SECONDS) -> Any:
        """Wait until an expression is truthy; its value."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script)):
            if time.monotonic() > deadline:
                raise PageError(f"did not come to pass: {script}; complaints: {self.complaints}")
            time.sleep(0.02)
        return found

    def open(self, url: str) -> None:
        """Load a page, and forget what the one before has complained of."""
        self.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def key(self, name: str, modifiers: int = 0) -> None:
        """Press a key of `_KEYS`, as a keyboard does."""
        code, number, text = _KEYS[name]
        common = {"key": " " if name == "Space" else name, "code": code, "windowsVirtualKeyCode": number}
        down: dict[str, Any] = {"text": text} if text and not modifiers & CONTROL else {}
        kind = "keyDown" if down else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **common, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **common)

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file on an element."""
        x, y = self._middle(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def download(self, selector: str, directory: Path) -> Path:
        """Press what downloads a file; the file, once all of it is there.

        The browser makes the file before it has written to it. So a file that exists can be empty still.
        """
        before = set(directory.iterdir())
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(directory), eventsEnabled=True)
        self._downloads.clear()
        self.click(selector)
        deadline = time.monotonic() + _SECONDS
        while list(self._downloads.values()) != ["completed"]:
            if time.monotonic() > deadline or "canceled" in self._downloads.values():
                raise PageError(f"no download came to its end: {self._downloads}; complaints: {self.complaints}")
            time.sleep(0.02)
            self.run("0")  # events are read while a call waits for its answer
        (file,) = set(directory.iterdir()) - before
        return file

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def _middle(self, selector: str) -> tuple[float, float]:
        """Wait until an element shows and stays where it is from one frame to the next; scroll it into view.

        A press goes to what the last frame shows. So coordinates that are taken earlier can hit something else.
        """
        element = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{element}?.checkVisibility()")
        x, y = self.run(f"({_STILL_MIDDLE})({element})")
        return x, y

    def size(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """The window's size in pixels of CSS."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def prefer(self, **features: str) -> None:
        """Media features of the user, such as prefers_color_scheme="dark"."""
        found = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=found)

    def picture(self, file: Path) -> None:
        """Write what is seen as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(program: str, profile: Path, *arguments: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own. It runs without a sandbox of its own, as containers demand."""
    options = ("--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--headless", *arguments)
    log = profile / "log"
    profile.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        # A group of its own: what is called Chromium may be a script that starts it.
        process = subprocess.Popen(
            [program, *options, "about:blank"], stdout=written, stderr=written, start_new_session=True
        )
    try:
        port = _port(profile / "DevToolsActivePort", process, log)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=_SECONDS) as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        with connect(target["webSocketDebuggerUrl"], max_size=None, compression=None) as connection:
            yield Browser(connection)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its profile is of no further use
        process.wait(10)


def _port(file: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the browser has chosen, which it writes to a file."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.02)
    raise PageError(f"the browser does not start: {log.read_text(errors='replace')[-2000:]}")
