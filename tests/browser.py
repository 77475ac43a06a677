"""Chromium without a window, driven through its own debugging pipe: no driver, no package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PLACE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab. https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None) or pytest.skip("no Chromium here")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (to_read, to_write)]  # 3 and 4 are free then
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(  # which reads from 3 and writes to 4
            [sys.executable, "-c", PLACE, *map(str, high), *command],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for each in (to_read, to_write, *high):
            os.close(each)
        self._number, self._rest, self.events = 0, b"", list[dict[str, Any]]()
        (tab,) = (each for each in self._ask("Target.getTargets")["targetInfos"] if each["type"] == "page")
        asked = self._ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = asked["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer of the tab to a method."""
        return self._ask(method, session=self._session, **params)

    def open(self, url: str, *, until: str = "document.readyState === 'complete'", seconds: float = 60) -> None:
        """Loads a page, and waits until an expression holds there."""
        self.ask("Page.navigate", url=url)
        self.wait(until, seconds=seconds)

    def wait(self, until: str, *, seconds: float = 60) -> None:
        """Waits until an expression holds."""
        end = time.monotonic() + seconds
        while not self.value(f"(async () => Boolean(await ({until})))()"):
            assert time.monotonic() < end, f"{until} does not hold: {self.value('document.body.innerText')}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """A window of so many pixels; of less than 600 a phone."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[theme])

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])

    def faults(self) -> list[str]:
        """What the console has of errors."""
        return [
            json.dumps(each["params"])
            for each in self.events
            if each["method"] == "Runtime.exceptionThrown"
            or (each["method"] == "Log.entryAdded" and each["params"]["entry"]["level"] == "error")
        ]

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _ask(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
