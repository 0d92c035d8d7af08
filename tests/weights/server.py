"""A local web server with configurable failures."""

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Site:
    """The files, failures and requests of a server.

    Attributes:
        files: Content by path, such as "/a.npz".
        headers: Headers sent with each file, besides its length.
        ranges: Whether Range is supported.
        if_range: Whether If-Range is supported.
        cuts: Bytes after which the connection of each of the next requests is cut.
        statuses: Status of each of the next responses; 0 sends the file.
        lengths: Whether Content-Length is sent.
        endless: Whether a file is followed by zeros until the client disconnects.
        seconds: Delay of each response.
        requests: Headers of the requests, and their path as "path".
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.headers = {"ETag": '"one"'}
        self.ranges = self.if_range = self.lengths = True
        self.endless = False
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.seconds = 0.0
        self.requests: list[dict[str, str]] = []
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        site = self.site
        site.requests.append({"path": self.path, **dict(self.headers)})
        time.sleep(site.seconds)
        status = site.statuses.pop(0) if site.statuses else 0
        if status or self.path not in site.files:
            self._head(status or 404, {"Content-Length": "0"})
            return
        file = site.files[self.path]
        start = self._start()
        if start >= len(file):
            self._head(416, {"Content-Range": f"bytes */{len(file)}"})
            return
        headers = {"Content-Length": str(len(file) - start)} if site.lengths else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(file) - 1}/{len(file)}"
        self._head(206 if start else 200, headers)
        cut = site.cuts.pop(0) if site.cuts else None
        with contextlib.suppress(ConnectionError):  # The client may disconnect.
            self.wfile.write(file[start:][:cut])
            while site.endless:
                self.wfile.write(bytes(2**16))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**self.site.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _start(self) -> int:
        requested = self.headers.get("Range", "")
        same = self.headers.get("If-Range") == self.site.headers.get("ETag")
        if not requested or not self.site.ranges or (self.site.if_range and not same):
            return 0
        return int(requested.removeprefix("bytes=").removesuffix("-"))


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serves a site while the block runs, and sets its `url`."""
    with running(type("Handler", (_Handler,), {"site": site})) as site.url:
        yield site


@contextlib.contextmanager
def running(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Runs a server with a handler of requests while the block runs, and yields its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # Closing waits for the threads.
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def md5(content: bytes) -> bytes:
    """Returns the MD5 of a file."""
    return hashlib.md5(content, usedforsecurity=False).digest()
