"""Resumable HTTP downloads: a partial file, and a record of the server's metadata."""

import base64
import contextlib
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import requests
from absl import logging

from remem_jax import redaction
from remem_jax.checks import SettingError
from remem_jax.storage import files, results

Progress = Callable[[int, int], None]

TOLERANCE = 0.03  # Largest relative difference from the size in the catalogue.
_CHUNK = 2**16  # Bytes; at most one chunk is lost when a connection breaks.
_TIMEOUTS = (10, 60)  # Seconds to connect, and between two chunks.
_TRIES = 5  # Attempts in a row without a MiB of progress.
_WAIT_SECONDS = 1.0  # Before the second attempt; doubled before each further one.
_SPARE = 2**26  # Bytes of the disk that are left free.
_TEMPORARY = (408, 429, 500, 502, 503, 504)


class RemoteFile(NamedTuple):
    """A server's metadata of a file.

    Attributes:
        url: Its URL, without secrets.
        validator: ETag or date, which changes with the file; "" if the server sent neither.
        size: Size in bytes; 0 if unknown.
        md5: MD5 of the whole file in hexadecimal; "" if unknown.
    """

    url: str
    validator: str
    size: int
    md5: str


class ExpectedSize(NamedTuple):
    """Bounds of a file's size, before it is downloaded.

    Attributes:
        mebibytes: Size in the catalogue; None if the catalogue does not have the file.
        most: Largest allowed size in bytes.
    """

    mebibytes: float | None
    most: int

    def is_plausible(self, size: int) -> bool:
        """Returns whether a whole file may have this size."""
        return self.mebibytes is None or abs(size / 2**20 / self.mebibytes - 1) <= TOLERANCE

    def require(self, size: int, *, whole: bool) -> None:
        """Raises `SettingError` for an unexpected size of a whole file, or of the part so far."""
        if self.mebibytes is not None:
            too_large = size > self.mebibytes * 2**20 * (1 + TOLERANCE)
            if too_large or (whole and not self.is_plausible(size)):
                raise SettingError(
                    f"it has {size / 2**20:.1f} MiB{'' if whole else ' or more'}, and should have "
                    f"{self.mebibytes:.1f}: it is another file"
                )
        elif size > self.most:
            raise SettingError(f"it has more than {self.most / 2**20:.0f} MiB: it is another file")


class _TransientError(Exception):
    """A failure after which another attempt may succeed."""


class _ChangedError(_TransientError):
    """The partial file is not the beginning of the server's file."""


def download(url: str, part: pathlib.Path, expected: ExpectedSize, show: Progress) -> RemoteFile:
    """Completes a partial file, over as many connections as necessary.

    Args:
        url: URL of http or https.
        part: Partial file; a .json beside it has the `RemoteFile` that it is the beginning of.
        expected: Expected size.
        show: Called with the bytes downloaded so far and in total, 0 if unknown.

    Raises:
        SettingError: If the file cannot be downloaded, is too large, or the disk is full.
        OSError: If the partial file cannot be written.
    """
    furthest, failures = 0, 0
    while True:
        try:
            return _resume(url, part, expected, show)
        except _TransientError as error:
            if isinstance(error, _ChangedError):
                discard(part)
            reached = part.stat().st_size if part.exists() else 0
            failures += 1
            if reached >= furthest + 2**20:
                furthest, failures = reached, 1
            if failures == _TRIES:
                raise SettingError(f"{error}, {_TRIES} times in a row") from None
            seconds = _WAIT_SECONDS * 2 ** (failures - 1)
            logging.warning("%s: %s; trying again in %.0f s.", url, error, seconds)
            time.sleep(seconds)


def resumable(part: pathlib.Path, url: str = "") -> RemoteFile | None:
    """Returns the file that a partial one is the beginning of; None if it cannot be resumed.

    Args:
        part: Partial file.
        url: URL that it must come from; "" allows any.
    """
    with contextlib.suppress(ValueError, TypeError):  # A .json that we did not write.
        remote = RemoteFile(**results.read(_record(part)) or {})
        same = remote.url == redaction.without_secrets(url or remote.url)
        if same and remote.validator and files.is_private(part):
            return remote
    return None


def discard(part: pathlib.Path) -> None:
    """Removes a partial file and its record."""
    part.unlink(missing_ok=True)
    _record(part).unlink(missing_ok=True)


def _record(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.json")


def _resume(url: str, part: pathlib.Path, expected: ExpectedSize, show: Progress) -> RemoteFile:
    """Downloads the rest of a partial file over one connection."""
    known = resumable(part, url)
    size = part.stat().st_size if known else 0
    if known and known.size and size == known.size:
        return known
    headers = {"Accept-Encoding": "identity"}
    if known and size:
        headers |= {"Range": f"bytes={size}-", "If-Range": known.validator}
    with (
        _errors_classified(),
        requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response,
    ):
        size = _first_byte(response, known, size)
        if not size:
            discard(part)
        remote = _remote_file(url, response)
        _require_room(remote.size, size, expected, part.parent)
        results.write(_record(part), remote._asdict())
        with files.open_private(part) as file:
            file.seek(size)
            for chunk in response.iter_content(_CHUNK):
                size += len(chunk)
                _require_no_more(part, size, remote, expected)
                file.write(chunk)
                show(size, remote.size)
    if remote.size and size != remote.size:
        raise _TransientError(f"{size:,} of {remote.size:,} bytes came")
    return remote


def _require_no_more(
    part: pathlib.Path, size: int, remote: RemoteFile, expected: ExpectedSize
) -> None:
    """Raises, and discards the partial file, if it is larger than the file can be."""
    try:
        expected.require(size, whole=False)
        if remote.size and size > remote.size:
            raise SettingError(f"more than the {remote.size:,} bytes came that it should have")
    except SettingError:
        discard(part)
        raise


@contextlib.contextmanager
def _errors_classified() -> Iterator[None]:
    """Turns errors of requests into transient and permanent ones."""
    transient = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise SettingError(f"the connection is not secure ({_reason(error)})") from None
    except transient as error:
        raise _TransientError(_reason(error)) from None
    except requests.RequestException as error:
        raise SettingError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Returns the innermost cause that requests and urllib3 wrap, in one line."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    cause = getattr(error, "reason", None)
    text = " ".join(str(cause if isinstance(cause, Exception) else error).split())
    return text.rpartition("): ")[2] or text  # Without the connection object that comes first.


def _first_byte(response: requests.Response, known: RemoteFile | None, size: int) -> int:
    """Returns the offset of a response's first byte: `size`, or 0 if it has the whole file."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 416:  # The partial file is longer than the server's.
        known = None
    elif status != 206:
        message = f"the server answers {status} {response.reason}"
        raise _TransientError(message) if status in _TEMPORARY else SettingError(message)
    follows = response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
    if known and follows and _validator(response) == known.validator:
        return size
    raise _ChangedError("the file at the server is another than before")


def _remote_file(url: str, response: requests.Response) -> RemoteFile:
    total = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        total = response.headers["Content-Range"].rpartition("/")[2]
    size = int(total) if total.isdecimal() else 0
    url = redaction.without_secrets(url)
    return RemoteFile(url=url, validator=_validator(response), size=size, md5=_md5(response))


def _validator(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")  # A weak ETag does not identify each byte.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _md5(response: requests.Response) -> str:
    """Returns the MD5 of the whole file that the server sent, in hexadecimal; "" if none."""
    headers = response.headers
    if headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return ""  # The MD5 is that of the compressed file.
    goog = re.search(r"md5=([\w+/]{22}==)", headers.get("x-goog-hash", ""))
    encoded = goog[1] if goog else ""
    if response.status_code == 200:  # In a partial response it may be that of the range.
        encoded = encoded or headers.get("Content-MD5", "")
    if encoded:
        return base64.b64decode(encoded).hex()
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", ""))
    # For files encrypted with a key, S3 sends a random ETag that looks like an MD5.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if etag and not encrypted else ""


def _require_room(size: int, done: int, expected: ExpectedSize, folder: pathlib.Path) -> None:
    """Raises, before anything is written, if the file has another size or the disk is too full."""
    if size:
        expected.require(size, whole=True)
    needed = (size or int((expected.mebibytes or 0) * 2**20)) - done
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise SettingError(
            f"it needs {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} free; set "
            "REMEM_CACHE to a folder on another"
        )
