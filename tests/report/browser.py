"""A headless Chromium, driven over its DevTools protocol through pipes; needs no library."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
_KEYS = {"Escape": 27, "Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """One page of a browser of its own.

    Args:
        folder: for the browser's profile.
        size: (width, height) of its window.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900)) -> None:
        assert CHROMIUM, "there is a browser"
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        def ends_as_3_and_4() -> None:
            first, second = os.dup(to_read), os.dup(to_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        flags = [f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"]
        flags += ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"],
            preexec_fn=ends_as_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._unread = b""
        self.events: list[dict[str, Any]] = []
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events that come before it are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _read(self, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            got = os.read(self._from, 1 << 20)
            assert got, "the browser has ended"
            self._unread += got
        line, self._unread = self._unread.split(b"\0", 1)
        return json.loads(line)

    def open(self, file: Path) -> None:
        """Open a file and wait until its script has drawn it."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        for _ in range(200):
            if self.run("document.documentElement?.dataset.ready") == "yes":
                return
            time.sleep(0.05)
        raise AssertionError(f"the page is not ready: {self.complaints()}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def screenshot(self, file: Path, **params: Any) -> None:
        """A picture of what is seen, or of the whole page with `captureBeyondViewport`."""
        data = self.call("Page.captureScreenshot", **params)["data"]
        file.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """Addresses that the page has asked for, but for its own file and what is inside it."""
        urls = [e["params"]["request"]["url"] for e in self._of("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]

    def complaints(self) -> list[str]:
        """What went wrong in the page: exceptions, errors and warnings of the console."""
        thrown = [json.dumps(e["params"])[:500] for e in self._of("Runtime.exceptionThrown")]
        logged = [json.dumps(e["params"]["entry"])[:500] for e in self._of("Log.entryAdded")]
        calls = [e["params"] for e in self._of("Runtime.consoleAPICalled")]
        return thrown + logged + [json.dumps(one)[:500] for one in calls if one["type"] != "log"]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == method]
