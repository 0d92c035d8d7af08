"""Fetching published weights: whole, checked, and going on where a connection was cut."""

import base64
import contextlib
import csv
import datetime
import hashlib
import os
import pathlib
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import requests
import tqdm
from absl import logging

from remem_jax import redaction
from remem_jax.checks import SettingError
from remem_jax.storage import files, locks, results
from remem_jax.weights import catalog

Progress = Callable[[int, int], None]

_CHUNK = 2**16  # Bytes; what is lost, at most, when a connection is cut.
_TIMEOUTS = (10, 60)  # Seconds to connect, and between two chunks.
_TRIES = 5  # In a row without a MiB of progress.
_WAIT_SECONDS = 1.0  # Before the second try; doubled before each further one.
_TOLERANCE = 0.03  # Of the size in the catalogue.
_LARGEST = 2**32  # Bytes of a file whose size nobody tells; the largest published one has 2.5 GiB.
_LARGEST_INDEX = 2**28  # Of its 51,509 rows, each has a few hundred.
_SPARE = 2**26  # Bytes of the disk that are left free.
_PLAIN_SECONDS = 10.0  # Between two lines of progress where there is no terminal.
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_COLUMNS = {"filename", "ds", "final_val"} | {
    f"adapt_{column}" for column in ("filename", "ds", "resolution", "final_val")
}


class _State(NamedTuple):
    """What a server said of the file whose first bytes are here.

    Attributes:
        url: Where it is.
        validator: Changes with the file: its ETag or date. "" if neither was sent.
        size: In bytes; 0 if not sent.
        md5: In hexadecimal; "" if not sent.
    """

    url: str
    validator: str
    size: int
    md5: str


class _Size(NamedTuple):
    """What is known of a file's size before it comes.

    Attributes:
        mebibytes: In the catalogue; None if it is not there.
        most: Bytes that it has at most.
    """

    mebibytes: float | None
    most: int

    def refuse(self, size: int, *, whole: bool) -> None:
        """Raises if a file of so many bytes, or that begins with so many, is another one."""
        if self.mebibytes is not None:
            too_large = size > self.mebibytes * 2**20 * (1 + _TOLERANCE)
            if too_large or (whole and not _is_plausible(size, self.mebibytes)):
                raise SettingError(
                    f"it has {size / 2**20:.1f} MiB{'' if whole else ' or more'}, and should have "
                    f"{self.mebibytes:.1f}: it is another file"
                )
        elif size > self.most:
            raise SettingError(f"it has more than {self.most / 2**20:.0f} MiB: it is another file")


class _CutError(Exception):
    """A failure that another try may mend."""


class _ChangedError(_CutError):
    """What is here is no beginning of what the server has."""


def obtain(init: str, *, mirror: str = "", progress: Progress | None = None) -> pathlib.Path:
    """Path of the weights that a config names, fetched first if they are published and not here.

    Args:
        init: As in `catalog.locate`.
        mirror: As in `catalog.in_mirror`.
        progress: As in `fetch`.

    Raises:
        SettingError: If there are none, or they cannot be fetched.
    """
    path = catalog.locate(init, mirror=mirror)
    if init not in catalog.BUNDLED and catalog.is_name(init):
        found = catalog.find(init)
        return _obtained(found.path, mirror, _Size(found.mebibytes, _LARGEST), progress)
    if not catalog.split_path(os.fspath(path))[0].is_file():
        raise SettingError(
            f"There is no checkpoint {init}; set config.teacher.init ({catalog.ADVICE})."
        )
    return path


def index_rows(*, mirror: str = "", progress: Progress | None = None) -> Iterator[dict[str, str]]:
    """Rows of AugReg's index.csv by column, for `catalog.pick`; the file is fetched once.

    Args:
        mirror: As in `catalog.in_mirror`.
        progress: As in `fetch`.

    Raises:
        SettingError: If it cannot be fetched, or is another file.
    """
    path = _obtained(catalog.INDEX, mirror, _Size(None, _LARGEST_INDEX), progress)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = _COLUMNS - set(rows.fieldnames or ())
        if missing:
            raise SettingError(
                f"{path} is not AugReg's index: it has no column {', '.join(sorted(missing))}. "
                "Delete it, and check the mirror that it came from."
            )
        yield from rows


def is_here(path: pathlib.Path, mebibytes: float | None = None) -> bool:
    """Whether a published file is here, by its size: that at its arrival, or nearly the known one.

    Args:
        path: Of the file; one that was copied without its .json is welcome.
        mebibytes: Size in the catalogue.
    """
    if not path.is_file():
        return False
    size = path.stat().st_size
    arrived = results.read(_beside(path, ".json"))
    return size == arrived["bytes"] if arrived else _is_plausible(size, mebibytes)


def require_as_fetched(path: pathlib.Path, digest: str) -> None:
    """Raises `SettingError` if a published file has changed since it was fetched.

    Args:
        path: Of the file.
        digest: The beginning of its SHA-256.
    """
    arrived = results.read(_beside(path, ".json")) or {}
    if not arrived.get("sha256", digest).startswith(digest):
        raise SettingError(
            f"{path} has other bytes than when it was fetched: remove it, and it is fetched again."
        )


def fetch(
    url: str,
    destination: pathlib.Path,
    *,
    mebibytes: float | None = None,
    most: int = _LARGEST,
    progress: Progress | None = None,
) -> None:
    """Fetches a file unless it is here already, and checks it before it gets its name.

    What arrived before a cut or a kill stays in a .part file, and the next call goes on from
    there unless the file has changed at the server. Its MD5 is compared where the server sends
    one, and the checksums inside an .npz in any case. A .json beside the file says where it came
    from. If several processes fetch one file, the first does and the others wait for it.

    Args:
        url: Of http or https.
        destination: The folders above it are made.
        mebibytes: Size in the catalogue; a file that differs by more than 3 % is refused.
        most: Bytes that a file may have whose size is in no catalogue. What is larger is refused
            as soon as that is known, whatever the server tells.
        progress: Called with the bytes that are here and the bytes in all, 0 if not known; None
            shows a bar on a terminal, and logs a line now and then elsewhere.

    Raises:
        SettingError: If the file cannot be had: what happened, and what can be done.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process fetches {destination}; waiting for it."
        with locks.held(_beside(destination, ".lock"), waiting=waiting, remove=True):
            if not is_here(destination, mebibytes):
                _fetch(url, destination, _Size(mebibytes, most), progress)
    except (SettingError, OSError) as error:
        reason = error if isinstance(error, SettingError) else error.strerror or error
        if isinstance(error, OSError) and files.is_closed(error):
            reason = f"{error.filename}: {reason}; set REMEM_CACHE to a folder that can be written"
        raise SettingError(
            f"Cannot fetch {url} ({reason}). Run tools/fetch_weights.py where there is a network "
            f"and copy the file to {destination}, set REMEM_MIRROR to a URL or folder that has "
            "it, or set config.teacher.init to the path of a file."
        ) from None


def _obtained(path: str, mirror: str, expected: _Size, progress: Progress | None) -> pathlib.Path:
    """A file of the bucket on this machine, in the mirror or in the cache."""
    here = catalog.in_mirror(path, mirror)
    if catalog.mirror_folder(mirror) is None:
        if not is_here(here, expected.mebibytes):
            url = catalog.url(path, mirror)
            fetch(url, here, progress=progress, **expected._asdict())
    elif not here.is_file():
        raise SettingError(
            f"The mirror has no file {here}; copy it there, set REMEM_MIRROR to another folder or "
            "URL, or set config.teacher.init to a file."
        )
    return here


def _fetch(url: str, destination: pathlib.Path, expected: _Size, progress: Progress | None) -> None:
    """Fetches and checks, while the lock is held."""
    if destination.exists():
        logging.warning("%s has the wrong size and is fetched again.", destination)
    part = _beside(destination, ".part")
    with _shown(destination.name) if progress is None else contextlib.nullcontext(progress) as show:
        try:
            state = _download(url, part, expected, show)
        except (SettingError, OSError):
            if not _known(part):
                _discard(part)
            raise
    try:
        expected.refuse(part.stat().st_size, whole=True)
        sha256 = _checked(part, state.md5, is_zip=destination.suffix == ".npz")
    except SettingError:
        _discard(part)
        raise
    arrival = {
        "url": url,
        "bytes": part.stat().st_size,
        "sha256": sha256,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    # The .json goes first and comes last: it never lies beside a file that it does not describe.
    _beside(destination, ".json").unlink(missing_ok=True)
    part.replace(destination)
    results.write(_beside(destination, ".json"), arrival)
    _discard(part)
    logging.info("Fetched %s", destination)


def _download(url: str, part: pathlib.Path, expected: _Size, show: Progress) -> _State:
    """Fills the part, over as many connections as it takes."""
    furthest, failures = 0, 0
    while True:
        try:
            return _go_on(url, part, expected, show)
        except _CutError as error:
            if isinstance(error, _ChangedError):
                _discard(part)
            reached = part.stat().st_size if part.exists() else 0
            failures += 1
            if reached >= furthest + 2**20:
                furthest, failures = reached, 1
            if failures == _TRIES:
                raise SettingError(f"{error}, {_TRIES} times in a row") from None
            seconds = _WAIT_SECONDS * 2 ** (failures - 1)
            logging.warning("%s: %s; trying again in %.0f s.", url, error, seconds)
            time.sleep(seconds)


def _go_on(url: str, part: pathlib.Path, expected: _Size, show: Progress) -> _State:
    """Fetches, over one connection, what the part lacks."""
    known = _known(part, url)
    here = part.stat().st_size if known else 0
    if known and known.size and here == known.size:
        return known
    headers = {"Accept-Encoding": "identity"}
    if known and here:
        headers |= {"Range": f"bytes={here}-", "If-Range": known.validator}
    with (
        _told_apart(),
        requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response,
    ):
        here = _start(response, known, here)
        if not here:
            _discard(part)
        state = _described(url, response)
        _require_fit(state.size, here, expected, part.parent)
        results.write(_beside(part, ".json"), state._asdict())
        with files.open_private(part) as file:
            file.seek(here)
            for chunk in response.iter_content(_CHUNK):
                here += len(chunk)
                _require_no_more(part, here, state, expected)
                file.write(chunk)
                show(here, state.size)
    if state.size and here != state.size:
        raise _CutError(f"{here:,} of {state.size:,} bytes came")
    return state


def _require_no_more(part: pathlib.Path, here: int, state: _State, expected: _Size) -> None:
    """Raises, and throws the part away, where more bytes come than the file can have."""
    try:
        expected.refuse(here, whole=False)
        if state.size and here > state.size:
            raise SettingError(f"more than the {state.size:,} bytes came that it should have")
    except SettingError:
        _discard(part)
        raise


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """Tells failures that another try may mend from those that it cannot."""
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise SettingError(f"the connection is not secure ({_reason(error)})") from None
    except broken as error:
        raise _CutError(_reason(error)) from None
    except requests.RequestException as error:
        raise SettingError(_reason(error)) from None


def _start(response: requests.Response, known: _State | None, here: int) -> int:
    """Byte that an answer begins with: `here`, or 0 if the server sends the file anew."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 416:  # A part that is no beginning of the file is of no use.
        known = None
    elif status != 206:
        answer = f"the server answers {status} {response.reason}"
        raise _CutError(answer) if status in _TEMPORARY else SettingError(answer)
    follows = response.headers.get("Content-Range", "").startswith(f"bytes {here}-")
    if known and follows and _validator(response) == known.validator:
        return here
    raise _ChangedError("the file at the server is another than before")


def _described(url: str, response: requests.Response) -> _State:
    total = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        total = response.headers["Content-Range"].rpartition("/")[2]
    size = int(total) if total.isdecimal() else 0
    url = redaction.without_secrets(url)
    return _State(url=url, validator=_validator(response), size=size, md5=_md5(response))


def _validator(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")  # A weak one does not vouch for each byte.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _md5(response: requests.Response) -> str:
    """The MD5 of the whole file that a server sent, in hexadecimal; "" if none."""
    headers = response.headers
    if headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return ""  # It is that of what the server stores compressed.
    found = re.search(r"md5=([\w+/]{22}==)", headers.get("x-goog-hash", ""))
    encoded = found[1] if found else ""
    if response.status_code == 200:  # In a partial answer, it may be that of the part.
        encoded = encoded or headers.get("Content-MD5", "")
    if encoded:
        return base64.b64decode(encoded).hex()
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", ""))
    # S3 sends a random one of that form for what it encrypts with a key.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if etag and not encrypted else ""


def _require_fit(size: int, here: int, expected: _Size, folder: pathlib.Path) -> None:
    """Refuses, before anything is written, a wrong file and one that the disk has no room for."""
    if size:
        expected.refuse(size, whole=True)
    needed = (size or int((expected.mebibytes or 0) * 2**20)) - here
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise SettingError(
            f"it needs {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} free; set "
            "REMEM_CACHE to a folder on another"
        )


def _checked(part: pathlib.Path, md5: str, *, is_zip: bool) -> str:
    """SHA-256 of a file that is found whole."""
    md5_here, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with part.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(2**20):
            md5_here.update(chunk)
            sha256.update(chunk)
    if md5 and md5_here.hexdigest() != md5:
        raise SettingError(f"its MD5 is {md5_here.hexdigest()}, and should be {md5}")
    if is_zip:
        try:
            with zipfile.ZipFile(part) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise SettingError(f"what came is not an .npz file ({error})") from None
        if broken:
            raise SettingError(f"the checksum of {broken} in it is wrong")
    return sha256.hexdigest()


def _known(part: pathlib.Path, url: str = "") -> _State | None:
    """What is known of a part that can be gone on with, from a URL or from any."""
    with contextlib.suppress(ValueError, TypeError):  # Of a .json that is not ours.
        state = _State(**results.read(_beside(part, ".json")) or {})
        same = state.url == redaction.without_secrets(url or state.url)
        if same and state.validator and files.is_private(part):
            return state
    return None


def _discard(part: pathlib.Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part, ".json").unlink(missing_ok=True)


def _beside(path: pathlib.Path, end: str) -> pathlib.Path:
    return path.with_name(path.name + end)


def _is_plausible(size: int, mebibytes: float | None) -> bool:
    return mebibytes is None or abs(size / 2**20 / mebibytes - 1) <= _TOLERANCE


def _reason(error: Exception) -> str:
    """The innermost cause that the HTTP library wraps, in one line."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    cause = getattr(error, "reason", None)
    text = " ".join(str(cause if isinstance(cause, Exception) else error).split())
    return text.rpartition("): ")[2] or text  # Without the connection that it names first.


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Progress]:
    """Progress as a bar on a terminal, as a line now and then elsewhere."""
    if sys.stderr.isatty():
        with tqdm.tqdm(
            desc=name, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True
        ) as bar:

            def update(here: int, size: int) -> None:
                bar.total = size or None
                bar.update(here - bar.n)

            yield update
        return
    printed = time.monotonic()

    def log(here: int, size: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= _PLAIN_SECONDS:
            printed = time.monotonic()
            of_all = f" of {size / 2**20:.0f}" if size else ""
            logging.info("%s: %.0f%s MiB", name, here / 2**20, of_all)

    yield log
