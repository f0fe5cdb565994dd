"""A page in headless Chromium, driven through its debugging pipe: nothing but Chromium is needed, and no port is opened."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 60.0
"""Seconds."""


class Page:
    """One tab: what it is told and what it says."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes, self._left, self._count, self._session = reads, writes, b"", 0, ""
        self.said: list[str] = []
        """What the console said, errors that nobody caught among it."""
        self.requested: list[str] = []
        """Every address that was asked for."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def open(self, file: Path, *, width: int, dark: bool = False, script: bool = True) -> None:
        """Show a page as a screen of that width does, in CSS pixels; a narrow one as a phone."""
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme, still])
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.said.clear()
        self.requested.clear()
        self.ask("Page.navigate", url=file.resolve().as_uri())
        until = time.monotonic() + _PATIENCE
        while self.value("document.readyState") != "complete":
            assert time.monotonic() < until, f"{file} did not load"
        if script:  # observers of sizes are called with a frame
            self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, once a promise of it is kept."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, `Tab` or `ArrowRight`."""
        code = {"Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self) -> bytes:
        """The whole page as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def printed(self) -> int:
        """How many sheets of A4 the page takes."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.ask("Page.printToPDF", **paper)["data"]).count(b"/Type /Page\n")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            self._note(answer)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._reads], [], [], _PATIENCE)
            part = os.read(self._reads, 1 << 20) if ready else b""
            assert part, "Chromium says nothing"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        name, params = message.get("method"), message.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(params))


@contextmanager
def browser() -> Iterator[Page]:
    """Chromium with one empty page."""
    assert CHROMIUM is not None, "needs Chromium"
    pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
    theirs_in, ours_out, ours_in, theirs_out = pipes

    def third_and_fourth() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}"], preexec_fn=third_and_fourth, pass_fds=(3, 4),  # noqa: PLW1509
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(ours_in, ours_out)
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(ours_in)
            os.close(ours_out)
