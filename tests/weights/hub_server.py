"""A local server that speaks the protocol of the Hugging Face Hub.

As on the Hub, HEAD and GET of OWNER/NAME/resolve/REVISION/FILE carry the commit and the ETag; the
weights are redirected to a storage that supports Range; and errors have an `X-Error-Code`.
"""

import contextlib
import hashlib
import http.server
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from tests.weights import server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories and the behaviour of a server.

    Attributes:
        repositories: Content of the files by name, by repository.
        commits: Commit by revision.
        gated: Repositories with restricted access.
        private: Repositories that only `token` may see.
        ungranted: Repositories with restricted access, which the account of `token` lacks.
        token: The token that is accepted.
        status: Status of all responses; 0 is the usual one.
        cuts: Bytes after which the connection of each of the next downloads is cut.
        requests: "METHOD path" of each request.
        ranges: The Range header of each download.
        url: Address of the server.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.commits = {"main": COMMIT, COMMIT: COMMIT}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.ungranted: set[str] = set()
        self.token = "hf_right"
        self.status = 0
        self.cuts: list[int] = []
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        hub, path = self.hub, unquote(self.path)
        hub.requests.append(f"{self.command} {path}")
        if hub.status:
            self._send(hub.status)
        elif path.startswith("/storage/"):
            self._store(path.removeprefix("/storage/"))
        elif path.startswith("/api/models/"):
            repository = path.removeprefix("/api/models/").split("/tree/")[0]
            if self._may_read(repository):
                files = hub.repositories[repository].items()
                tree = [
                    {"type": "file", "path": name, "oid": "0", "size": len(file)}
                    for name, file in files
                ]
                self._send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        else:
            repository, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            if self._may_read(repository):
                self._resolve(repository, revision, file)

    def _may_read(self, repository: str) -> bool:
        hub, given = self.hub, self.headers.get("Authorization", "")
        if given not in ("", f"Bearer {hub.token}"):
            message = "Invalid credentials in Authorization header"
            self._send(401, {"X-Error-Message": message})
        elif repository not in hub.repositories or (repository in hub.private and not given):
            self._send(401 if not given else 404, {"X-Error-Code": "RepoNotFound"})
        elif repository in hub.gated and not given:
            self._send(401, {"X-Error-Code": "GatedRepo"})
        elif repository in hub.ungranted:
            self._send(403 if given else 401, {"X-Error-Code": "GatedRepo"})
        else:
            return True
        return False

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        hub = self.hub
        if revision not in hub.commits:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
            return
        headers = {"X-Repo-Commit": hub.commits[revision]}
        content = hub.repositories[repository].get(file)
        if content is None:
            self._send(404, {**headers, "X-Error-Code": "EntryNotFound"})
        elif file.endswith((".json", ".md")):
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(200, {**headers, "ETag": f'"{etag}"'}, content)
        else:
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            # Another name of this machine is another host: the token must not be sent there.
            storage = hub.url.replace("127.0.0.1", "localhost")
            headers["Location"] = f"{storage}/storage/{repository}/{file}"
            self._send(302, headers)

    def _store(self, path: str) -> None:
        hub = self.hub
        if self.headers.get("Authorization"):
            self._send(400)
            return
        repository, _, file = path.rpartition("/")
        content, given = hub.repositories[repository][file], self.headers.get("Range", "")
        hub.ranges.append(given)
        start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        headers = {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = hub.cuts.pop(0) if hub.cuts else None
        self._send(206 if start else 200, headers, content[start:][:cut])

    def _send(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves a hub while the block runs, and sets its `url`."""
    with server.running(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub
