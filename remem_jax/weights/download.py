"""Downloads published weights: resumed after an interruption, verified, shared by processes."""

import contextlib
import csv
import datetime
import hashlib
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

from absl import logging

from remem_jax import display
from remem_jax.checks import SettingError
from remem_jax.storage import files, locks, results
from remem_jax.weights import catalog, resumable
from remem_jax.weights.resumable import ExpectedSize, Progress

_MIB = 2**20
_LARGEST = 2**32  # Bytes of a file whose size is unknown; the largest published one has 2.5 GiB.
_LARGEST_INDEX = 2**28  # Bytes; each of its 51,509 rows has a few hundred.
_COLUMNS = {"filename", "ds", "final_val"} | {
    f"adapt_{column}" for column in ("filename", "ds", "resolution", "final_val")
}


def obtain(init: str, *, mirror: str = "", progress: Progress | None = None) -> pathlib.Path:
    """Returns the path of the weights that a config names; downloads published ones if necessary.

    Args:
        init: See `catalog.locate`.
        mirror: See `catalog.in_mirror`.
        progress: See `fetch`.

    Raises:
        SettingError: If there are no such weights, or they cannot be downloaded.
    """
    path = catalog.locate(init, mirror=mirror)
    if init not in catalog.BUNDLED and catalog.is_name(init):
        published = catalog.find(init)
        size = ExpectedSize(published.mebibytes, _LARGEST)
        return _obtained(published.path, mirror, size, progress)
    if not catalog.split_path(os.fspath(path))[0].is_file():
        raise SettingError(
            f"There is no checkpoint {init}; set config.teacher.init ({catalog.ADVICE})."
        )
    return path


def index_rows(*, mirror: str = "", progress: Progress | None = None) -> Iterator[dict[str, str]]:
    """Yields the rows of AugReg's index.csv by column, for `catalog.pick`; downloads it once.

    Args:
        mirror: See `catalog.in_mirror`.
        progress: See `fetch`.

    Raises:
        SettingError: If it cannot be downloaded, or is another file.
    """
    path = _obtained(catalog.INDEX, mirror, ExpectedSize(None, _LARGEST_INDEX), progress)
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
    """Returns whether a published file is on this machine, with the size that it should have.

    Args:
        path: Path of the file. Without the .json that `fetch` leaves beside it (if it was copied
            by hand), its size is compared with the catalogue's.
        mebibytes: Size in the catalogue.
    """
    if not path.is_file():
        return False
    size = path.stat().st_size
    record = results.read(_beside(path, ".json"))
    return size == record["bytes"] if record else ExpectedSize(mebibytes, 0).is_plausible(size)


def require_as_fetched(path: pathlib.Path, digest: str) -> None:
    """Raises `SettingError` if a published file has changed since it was downloaded.

    Args:
        path: Path of the file.
        digest: First digits of its SHA-256.
    """
    record = results.read(_beside(path, ".json")) or {}
    if not record.get("sha256", digest).startswith(digest):
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
    """Downloads a file unless it is here already, and verifies it before it gets its name.

    After an interruption, the bytes that arrived stay in a .part file, and the next call resumes
    there unless the file has changed at the server. The MD5 is compared if the server sends one,
    and the checksums inside an .npz always. A .json beside the file records where it came from.
    If several processes fetch one file, the first downloads it and the others wait.

    Args:
        url: URL of http or https.
        destination: Path of the file; the folders above it are made.
        mebibytes: Size in the catalogue; a file that differs by more than 3 % is refused.
        most: Largest size in bytes of a file that is in no catalogue. A larger one is refused as
            soon as its size is known, even if the server sends none.
        progress: Called with the bytes downloaded so far and in total, 0 if unknown; None shows
            them in the display.

    Raises:
        SettingError: If the file cannot be downloaded: what happened, and what to do.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process fetches {destination}; waiting for it."
        with locks.held(_beside(destination, ".lock"), waiting=waiting, remove=True):
            if not is_here(destination, mebibytes):
                _fetch(url, destination, ExpectedSize(mebibytes, most), progress)
    except (SettingError, OSError) as error:
        reason = error if isinstance(error, SettingError) else error.strerror or error
        if isinstance(error, OSError) and files.is_closed(error):
            reason = f"{error.filename}: {reason}; set REMEM_CACHE to a folder that can be written"
        raise SettingError(
            f"Cannot fetch {url} ({reason}). Run tools/fetch_weights.py where there is a network "
            f"and copy the file to {destination}, set REMEM_MIRROR to a URL or folder that has "
            "it, or set config.teacher.init to the path of a file."
        ) from None


def _obtained(
    path: str, mirror: str, expected: ExpectedSize, progress: Progress | None
) -> pathlib.Path:
    """Returns a file of the bucket: in the mirror's folder, or in the cache, fetched there."""
    local = catalog.in_mirror(path, mirror)
    if catalog.mirror_folder(mirror) is None:
        if not is_here(local, expected.mebibytes):
            url = catalog.url(path, mirror)
            fetch(url, local, progress=progress, **expected._asdict())
    elif not local.is_file():
        raise SettingError(
            f"The mirror has no file {local}; copy it there, set REMEM_MIRROR to another folder or "
            "URL, or set config.teacher.init to a file."
        )
    return local


def _fetch(
    url: str, destination: pathlib.Path, expected: ExpectedSize, progress: Progress | None
) -> None:
    """Downloads and verifies a file; the caller has its lock."""
    if destination.exists():
        logging.warning("%s has the wrong size and is fetched again.", destination)
    part = _beside(destination, ".part")
    shown = _shown(destination.name) if progress is None else contextlib.nullcontext(progress)
    with shown as show:
        try:
            remote = resumable.download(url, part, expected, show)
        except (SettingError, OSError):
            if not resumable.resumable(part):
                resumable.discard(part)
            raise
    try:
        expected.require(part.stat().st_size, whole=True)
        sha256 = _verified(part, remote.md5, is_zip=destination.suffix == ".npz")
    except SettingError:
        resumable.discard(part)
        raise
    record = {
        "url": url,
        "bytes": part.stat().st_size,
        "sha256": sha256,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    # The .json is removed first and written last: it always describes the file beside it.
    _beside(destination, ".json").unlink(missing_ok=True)
    part.replace(destination)
    results.write(_beside(destination, ".json"), record)
    resumable.discard(part)
    logging.info("Fetched %s", destination)


def _verified(part: pathlib.Path, md5: str, *, is_zip: bool) -> str:
    """Returns the SHA-256 of a file; raises `SettingError` if a checksum is wrong."""
    actual, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with part.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(2**20):
            actual.update(chunk)
            sha256.update(chunk)
    if md5 and actual.hexdigest() != md5:
        raise SettingError(f"its MD5 is {actual.hexdigest()}, and should be {md5}")
    if is_zip:
        try:
            with zipfile.ZipFile(part) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise SettingError(f"what came is not an .npz file ({error})") from None
        if broken:
            raise SettingError(f"the checksum of {broken} in it is wrong")
    return sha256.hexdigest()


def _beside(path: pathlib.Path, end: str) -> pathlib.Path:
    return path.with_name(path.name + end)


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Progress]:
    """Shows progress as a stage, from the first bytes on, when the size is known."""
    with contextlib.ExitStack() as stack:
        stage: display.Stage | None = None

        def show(done: int, size: int) -> None:
            nonlocal stage
            mebibytes = done // _MIB
            if stage is None:
                steps = math.ceil(size / _MIB) or None
                stage = display.stage(f"Download of {name}", steps, mebibytes, "MiB")
                stack.enter_context(stage)
            stage.advance(math.ceil(size / _MIB) if done == size else mebibytes)

        yield show
