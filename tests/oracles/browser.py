"""Controls Debian's headless Chromium through a pipe, to test how it renders a page.

Source: https://chromedevtools.github.io/devtools-protocol/; with --remote-debugging-pipe the
messages are JSON, each ended by a zero byte, on the file descriptors 3 (to it) and 4 (from it).
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Self

# Without them it asks its makers for updates, and /dev/shm may be small in a container.
_QUIET = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
)
_SECONDS = 60.0  # A loaded machine may need some.


class Browser:
    """One tab, and the events of it since the last page was opened.

    Attributes:
        events: Methods and parameters, in their order.
    """

    def __init__(self, write: int, read: int) -> None:
        """Stores both pipes to the browser."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._write, self._read = write, read
        self._messages: collections.deque[bytes] = collections.deque()
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @classmethod
    @contextlib.contextmanager
    def started(cls, program: str, folder: pathlib.Path) -> Iterator[Self]:
        """Starts a browser and ends it with the context.

        Args:
            program: Path of Chromium.
            folder: For its profile.
        """
        (its_read, write), (read, its_write) = os.pipe(), os.pipe()
        # Root has no sandbox to offer, and the pages are our own.
        options = [*_QUIET, f"--user-data-dir={folder}", *(["--no-sandbox"] * (os.geteuid() == 0))]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_read} 4>&{its_write}', "-", program, *options],
            pass_fds=(its_read, its_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(its_read)
        os.close(its_write)
        try:
            browser = cls(write, read)
            yield browser
            browser._session = None
            browser.call("Browser.close")
            process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()
            os.close(write)
            os.close(read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its reply; events that arrive first are recorded."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def value(self, expression: str) -> Any:
        """Evaluates an expression, or awaits its promise, in the page; returns its JSON value."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def open(self, path: pathlib.Path, width: int, height: int = 900) -> None:
        """Opens a file in a window of a given width and waits until it has loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def _next(self) -> dict[str, Any]:
        """Reads the next message, and records it if it is an event."""
        end = time.monotonic() + _SECONDS
        while not self._messages:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("The browser does not answer.")
            found = os.read(self._read, 1 << 20)
            if not found:
                raise EOFError("The browser has ended.")
            *whole, self._rest = (self._rest + found).split(b"\0")
            self._messages.extend(whole)
        message = json.loads(self._messages.popleft())
        if "method" in message:
            self.events.append((message["method"], message["params"]))
            if message["method"] == "Page.javascriptDialogOpening":
                self._dismiss()
        return message

    def _dismiss(self) -> None:
        """Closes a dialog, which blocks the page."""
        self.call("Page.handleJavaScriptDialog", accept=False)
