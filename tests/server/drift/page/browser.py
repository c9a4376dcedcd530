"""A real Chromium, driven by its DevTools protocol: opens a file, tells what it complains of and what can be seen."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.real_servers.processes import Process
from tests.real_servers.requirements import require_program

START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 20.0
_COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.requestWillBeSent")


class Browser:
    """One tab."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []

    def attach(self) -> Self:
        """Take the first tab and listen to its complaints."""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def call(self, method: str, **parameters: Any) -> Any:
        """One command's answer. Raises AssertionError when it fails."""
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            request["sessionId"] = self._session
        self._connection.send(json.dumps(request))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> list[str]:
        """Open a file at a width; returns what the console said and what was fetched besides the file itself."""
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        self.run("document.fonts.ready.then(() => 1)")
        return [
            json.dumps(event["params"])
            for event in self._events
            if event["method"] in _COMPLAINTS and event["params"].get("request", {}).get("url") != file.as_uri()
        ]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page as a picture."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        file.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=ANSWER_TIMEOUT_S))
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A headless Chromium with its profile in `folder`; skips the test where there is none."""
    program = require_program("chromium")
    profile = folder / "profile"
    arguments = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    told = profile / "DevToolsActivePort"
    home = {"HOME": str(folder), "TMPDIR": str(folder)}
    with Process(arguments, folder=folder, name="chromium", env=home) as process:
        found = process.wait_ready(lambda: _address(told), START_TIMEOUT_S, "chromium listened to DevTools")
        assert found is not None
        port, path = found
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=64 * 2**20, proxy=None) as connection:
            yield Browser(connection).attach()


def _address(told: Path) -> tuple[int, str] | None:
    """(port, path) once the file that tells them is whole."""
    lines = told.read_text().split() if told.exists() else []
    return (int(lines[0]), lines[1]) if len(lines) == 2 else None
