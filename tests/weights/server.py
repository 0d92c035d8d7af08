"""A web server on this machine that behaves as badly as it is told to."""

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Site:
    """What the server has, how it answers, and what it was asked.

    Attributes:
        files: Bytes by path, such as "/a.npz".
        headers: Sent with each file, besides its length.
        ranges: Whether it answers with parts of a file.
        if_range: Whether it looks at If-Range.
        cuts: For the next requests, after how many bytes the connection is cut.
        statuses: For the next requests, the status that it answers; 0 for the file.
        lengths: Whether it tells lengths.
        endless: Whether a file is followed by zeros until the client has read enough.
        seconds: Before each answer.
        asked: Headers of the requests, and their path under "path".
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.headers = {"ETag": '"one"'}
        self.ranges = self.if_range = self.lengths = True
        self.endless = False
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.seconds = 0.0
        self.asked: list[dict[str, str]] = []
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        site = self.site
        site.asked.append({"path": self.path, **dict(self.headers)})
        time.sleep(site.seconds)
        status = site.statuses.pop(0) if site.statuses else 0
        if status or self.path not in site.files:
            self._head(status or 404, {"Content-Length": "0"})
            return
        whole = site.files[self.path]
        start = self._start()
        if start >= len(whole):
            self._head(416, {"Content-Range": f"bytes */{len(whole)}"})
            return
        headers = {"Content-Length": str(len(whole) - start)} if site.lengths else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        self._head(206 if start else 200, headers)
        cut = site.cuts.pop(0) if site.cuts else None
        with contextlib.suppress(ConnectionError):  # A client may have read enough.
            self.wfile.write(whole[start:][:cut])
            while site.endless:
                self.wfile.write(bytes(2**16))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**self.site.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _start(self) -> int:
        asked = self.headers.get("Range", "")
        same = self.headers.get("If-Range") == self.site.headers.get("ETag")
        if not asked or not self.site.ranges or (self.site.if_range and not same):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serves a site, whose `url` is set, while the block runs."""
    handler = type("Handler", (_Handler,), {"site": site})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # So that closing waits for them.
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def md5(content: bytes) -> bytes:
    """The MD5 of a file, as headers encode it."""
    return hashlib.md5(content, usedforsecurity=False).digest()
