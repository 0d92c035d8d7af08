"""Copies of folders in a storage that machines without a shared folder can reach.

The storage is any that fsspec opens, such as S3, Google Cloud Storage or a folder. Below its URL, a
copy of a folder under NAME has

    NAME/VERSION/FILE     the files that are new or changed in this version
    NAME/VERSION.json     the manifest: all files, with size, SHA-256 and the version that has them

A manifest is written last and has a digest of its own, so a copy is complete or absent, whenever
the copying process is killed and whether or not the storage can rename. Every file is verified when
it is read. The previous version is kept until the next is complete.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec
from absl import logging
from fsspec.asyn import AsyncFileSystem

from remem_jax import redaction
from remem_jax.checks import SettingError
from remem_jax.storage import checksums

_KEPT = 2  # Versions: another process may be reading the older one.
_FINAL = "final"


class StoreError(Exception):
    """The storage failed; the message says why, without secrets."""


class _File(NamedTuple):
    """A file of a version: its size in bytes, its SHA-256, and the version that has it."""

    size: int
    digest: str
    version: str


class _Manifest(NamedTuple):
    """What a version consists of.

    Attributes:
        number: Later versions have larger ones.
        version: Its name.
        files: Its files, by their path in the folder.
    """

    number: int
    version: str
    files: Mapping[str, _File]


class Store:
    """A storage of folders by name, such as "teachers/KEY"; opened by `open_store`.

    All methods raise `StoreError` if the storage fails. One process at a time should push under a
    name; several that do so leave one complete copy or another.
    """

    def __init__(self, system: Any, root: str, shown: str) -> None:
        """Stores the connection.

        Args:
            system: fsspec's file system.
            root: Path in it.
            shown: The URL, without secrets.
        """
        self._system, self._root, self.shown = system, root.rstrip("/"), shown.rstrip("/")
        self._parents: set[str] = set()
        # Digests of local files that have not changed, by inode, size and time of change.
        self._digests: dict[tuple[int, int, int], str] = {}

    def exists(self, name: str) -> bool:
        """Returns whether there is a complete copy of a folder."""
        return bool(self._manifests(name))

    def version(self, name: str) -> str:
        """Returns the name of the newest complete copy of a folder; "" if there is none."""
        manifests = self._manifests(name)
        return manifests[0].version if manifests else ""

    def files(self, name: str) -> set[str]:
        """Returns the paths of the files of the newest complete copy."""
        manifests = self._manifests(name)
        return set(manifests[0].files) if manifests else set()

    def url(self, name: str, *, final: bool = False) -> str:
        """Returns where copies of a folder are, without secrets; or where the final one is."""
        return f"{self.shown}/{name}" + (f"/{_FINAL}" if final else "")

    def push(self, folder: pathlib.Path, name: str, *, final: bool = False) -> str:
        """Copies a folder there; files that the newest copy has are not sent again.

        Args:
            folder: The folder, which must not change meanwhile.
            name: Name of the copy, such as "teachers/KEY".
            final: Whether all files shall be together in one folder of the storage, for people to
                read, and all other versions removed.

        Returns:
            The name of the newest copy, which is an old one if nothing has changed.
        """
        before = self._manifests(name)
        last = before[0].files if before and not final else {}
        number = before[0].number + 1 if before else 1
        # Random, in case two processes make one at once.
        version = _FINAL if final else f"{number:06d}-{uuid.uuid4().hex[:8]}"
        copied: dict[str, _File] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            relative = path.relative_to(folder).as_posix()
            size, digest = path.stat().st_size, self._digest(path)
            old = last.get(relative)
            if old is None or (old.size, old.digest) != (size, digest):
                self._put(path, f"{name}/{version}/{relative}", size)
                old = _File(size, digest, version)
            copied[relative] = old
        if before and not final and copied == before[0].files:
            return before[0].version
        new = _Manifest(number, version, copied)
        self._write(name, new)
        self._remove(name, new, before, keep=0 if final else _KEPT - 1)
        return version

    def pull(self, name: str, folder: pathlib.Path) -> str:
        """Replaces a folder by the newest copy whose files are all unchanged.

        Args:
            name: Name of the copy.
            folder: The folder, which appears when it is complete and verified.

        Returns:
            The name of the copy; "" if there is none, and the folder is as before.
        """
        partial = checksums.partial(folder)
        for manifest in self._manifests(name):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                self._get(name, manifest, partial)
            except (StoreError, checksums.DamagedError) as error:
                logging.warning("%s, version %s: %s", self.url(name), manifest.version, error)
                continue
            if folder.exists():
                checksums.discard(folder)
            partial.rename(folder)
            checksums.clear(folder.parent, folder.name)
            return manifest.version
        shutil.rmtree(partial, ignore_errors=True)
        return ""

    def probe(self) -> None:
        """Writes, reads and removes a small file."""
        path = f"{self._root}/probe-{uuid.uuid4().hex}"
        with self._explained():
            self._make_parent(path)
            self._system.pipe_file(path, b"probe")
            if self._system.cat_file(path) != b"probe":
                raise OSError("what was written there reads differently")
            self._system.rm_file(path)

    def _manifests(self, name: str) -> list[_Manifest]:
        """Returns the valid manifests of a folder, the newest first."""
        with self._explained():
            self._system.invalidate_cache()
            try:
                paths = self._system.ls(f"{self._root}/{name}", detail=False)
            except FileNotFoundError:
                return []
        found = [self._manifest(path) for path in paths if path.endswith(".json")]
        valid = [manifest for manifest in found if manifest is not None]
        return sorted(valid, key=lambda manifest: (manifest.number, manifest.version))[::-1]

    def _manifest(self, path: str) -> _Manifest | None:
        """Reads a manifest; None if it is incomplete, or was just removed."""
        with self._explained():
            try:
                line, _, digest = self._system.cat_file(path).partition(b"\n")
            except FileNotFoundError:
                return None
        if digest.strip() != hashlib.sha256(line).hexdigest().encode():
            return None
        content = json.loads(line)
        files = {key: _File(*value) for key, value in content["files"].items()}
        version = path.rpartition("/")[2].removesuffix(".json")
        return _Manifest(content["number"], version, files)

    def _write(self, name: str, manifest: _Manifest) -> None:
        content = {name: getattr(manifest, name) for name in ("number", "files")}
        line = json.dumps(content).encode()
        path = f"{self._root}/{name}/{manifest.version}.json"
        with self._explained():
            self._make_parent(path)
            digest = hashlib.sha256(line).hexdigest().encode()
            self._system.pipe_file(path, line + b"\n" + digest + b"\n")

    def _remove(self, name: str, new: _Manifest, before: list[_Manifest], *, keep: int) -> None:
        """Removes versions before a new one, but for the newest, and files that none uses."""
        needed = {
            (path, file.version)
            for manifest in (new, *before[:keep])
            for path, file in manifest.files.items()
        }
        unused = [
            f"{manifest.version}.json"
            for manifest in before[keep:]
            if manifest.version != new.version
        ]
        unused += [
            f"{file.version}/{path}"
            for manifest in before[keep:]
            for path, file in manifest.files.items()
            if (path, file.version) not in needed
        ]
        with self._explained():
            for path in unused:
                with contextlib.suppress(FileNotFoundError):  # Another process was faster.
                    self._system.rm_file(f"{self._root}/{name}/{path}")

    def _put(self, path: pathlib.Path, target: str, size: int) -> None:
        target = f"{self._root}/{target}"
        with self._explained():
            self._make_parent(target)
            self._system.put_file(str(path), target)
            if self._system.size(target) != size:
                raise OSError(f"{target} is incomplete")

    def _get(self, name: str, manifest: _Manifest, folder: pathlib.Path) -> None:
        """Reads the files of a version, and verifies them."""
        for relative, file in manifest.files.items():
            target = folder / relative
            if not target.resolve().is_relative_to(folder.resolve()):
                raise checksums.DamagedError(f"{relative} is outside of the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._explained():
                self._system.get_file(f"{self._root}/{name}/{file.version}/{relative}", str(target))
            if (target.stat().st_size, _sha256(target)) != (file.size, file.digest):
                raise checksums.DamagedError(f"{relative} has other bytes than were written")

    def _digest(self, path: pathlib.Path) -> str:
        status = path.stat()
        key = status.st_ino, status.st_size, status.st_mtime_ns
        if key not in self._digests:
            self._digests[key] = _sha256(path)
        return self._digests[key]

    def _make_parent(self, path: str) -> None:
        """Creates the folder of a file, except in storages of objects, whose clients are async.

        These need none, and would create a bucket that is missing.
        """
        parent = path.rpartition("/")[0]
        if parent not in self._parents and not isinstance(self._system, AsyncFileSystem):
            self._system.makedirs(parent, exist_ok=True)
            self._parents.add(parent)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns any error of the storage, whose clients raise their own kinds, into ours."""
        try:
            yield
        except FileNotFoundError as error:
            missing = f"{error.filename} is missing" if error.filename else str(error)
            raise StoreError(redaction.without_secrets(f"{self.shown}: {missing}")) from error
        except Exception as error:  # noqa: BLE001 - each client has its own.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise StoreError(redaction.without_secrets(f"{self.shown}: {reason}")) from None


def open_store(name: str, url: str) -> Store:
    """Opens a storage, and checks that files can be written, read and removed there.

    Args:
        name: Name of the setting, for messages.
        url: An fsspec URL, such as "s3://bucket/study", or a local path. Credentials come from the
            environment or from the files of the storage's client.

    Raises:
        SettingError: If it cannot be used.
    """
    shown = redaction.without_secrets(url)
    try:
        system, root = fsspec.url_to_fs(url)
    except ImportError as error:
        raise SettingError(
            f"{name} is {shown}, which needs another package ({error}): install it with pip."
        ) from None
    except ValueError as error:
        raise SettingError(
            f"{name} must be a URL that fsspec opens, such as s3://bucket/study or "
            f"gs://bucket/study, got {shown} ({error})."
        ) from None
    store = Store(system, root, shown)
    try:
        store.probe()
    except StoreError as error:
        raise SettingError(
            f"{name} cannot be used ({error}): see that it exists, and that your credentials allow "
            "reading, writing and removing files there."
        ) from None
    return store


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
