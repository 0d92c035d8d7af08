"""Copies of trials in `config.artifacts`, for workers that share no folder.

While a worker runs a trial, threads copy its folder and that of its teachers when a checkpoint or a
stage is complete. A worker that takes over a trial fetches the copies first, and resumes from them.
"""

import collections
import contextlib
import fnmatch
import functools
import os
import pathlib
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from absl import logging

from remem_jax.storage import artifacts, locks, results, snapshots, workdir
from remem_jax.storage.artifacts import StoreError

POLL_SECONDS = 5.0  # Time between two looks at the folder.
_SHARE = 0.1  # Share of the time that copying may take.
_RETRY_SECONDS = 30.0  # After a failure.
_END_SECONDS = 60.0  # Time that a worker waits for copies when its trial, or the worker, ends.
_VERSION = "copy.json"  # In the folder: the version that it was last copied as, or fetched from.


class Copies:
    """The copies of a study's trials. A failure is a warning; the trial goes on.

    Used in a `with` statement, at whose end final copies that failed are tried again.

    Attributes:
        store: The storage; None keeps no copies.
    """

    def __init__(self, store: artifacts.Store | None) -> None:
        """Stores the storage."""
        self.store, self._warned = store, False
        self._to_conclude: dict[pathlib.Path, None] = {}  # In the order of `conclude`.
        # By folder: one thread copies it at a time.
        self._locks: dict[pathlib.Path, threading.Lock] = collections.defaultdict(threading.Lock)

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *error: object) -> None:
        end = time.monotonic() + _END_SECONDS
        while self._conclude() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        for folder in self._to_conclude:
            logging.warning("There is no final copy of %s: keep this folder.", folder)

    @contextlib.contextmanager
    def of(
        self, folders: Iterable[pathlib.Path | None], lost: Callable[[], bool]
    ) -> Iterator[None]:
        """Fetches folders of a study, and copies them while the block runs and at its end.

        Args:
            folders: Folders of a trial and of its teachers; None is left out.
            lost: Returns whether another worker has taken over the trial, whose copies then count.
        """
        copied = [folder for folder in folders if folder is not None and self.store is not None]
        for folder in copied:
            self._fetch(folder)
        threads = [
            _Copying(folder, functools.partial(self._push, folder, lost)) for folder in copied
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.end()

    def conclude(self, folder: pathlib.Path | None) -> None:
        """Replaces the copies of a folder by a final one; if that fails, the next call does it."""
        if folder is not None and self.store is not None:
            self._to_conclude[folder] = None
            self._conclude()

    def _conclude(self) -> bool:
        """Makes the final copies that are still to be made; returns whether one failed."""
        for folder in [*self._to_conclude]:
            if self._push(folder, lambda: False, final=True) or not folder.is_dir():
                del self._to_conclude[folder]
        return bool(self._to_conclude)

    def has(self, folder: pathlib.Path, pattern: str) -> bool:
        """Returns whether the newest copy of a folder has a file whose path matches a pattern."""
        if self.store is None:
            return False
        try:
            return any(
                fnmatch.fnmatchcase(path, pattern) for path in self.store.files(_name(folder))
            )
        except StoreError:  # A warning follows when the folder is fetched or copied.
            return False

    def url(self, folder: pathlib.Path) -> str:
        """Returns where the final copy of a folder is; "" if there are no copies."""
        return self.store.url(_name(folder), final=True) if self.store else ""

    def _fetch(self, folder: pathlib.Path) -> None:
        """Replaces a folder by the newest copy, unless it was copied last, or is as far."""
        for path in folder.parent.glob(_snapshot(folder, "*").name):  # Of killed workers.
            if not pathlib.Path(f"/proc/{path.name.split('.')[-2]}").exists():
                shutil.rmtree(path, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.fetching")
        waiting = f"Waiting for another worker, which fetches {folder}."
        with locks.held(lock, waiting=waiting, remove=True):
            self._fetch_alone(folder)

    def _fetch_alone(self, folder: pathlib.Path) -> None:
        """Fetches a folder while no other process does."""
        store, name = self.store, _name(folder)
        if store is None:
            return
        try:
            newest = store.version(name)
            if newest in ("", _read_version(folder)) or workdir.is_held(folder):
                return
            if all((folder / file).exists() for file in store.files(name)):
                return  # Both are as far, and another worker may be reading the folder.
            version = store.pull(name, folder)
            if version:
                results.write(folder / _VERSION, {"version": version})
                logging.info("Fetched %s.", store.url(name))
        except (StoreError, OSError) as error:
            logging.warning("A copy cannot be fetched: %s", error)

    def _push(
        self, folder: pathlib.Path, lost: Callable[[], bool], *, final: bool = False
    ) -> snapshots.State | None:
        """Copies a folder as it is, after a copy of it that is in progress.

        Returns:
            Its state, which is empty if it cannot be copied now; None if the storage failed.
        """
        with self._locks[folder]:
            return self._push_alone(folder, lost, final=final)

    def _push_alone(
        self, folder: pathlib.Path, lost: Callable[[], bool], *, final: bool
    ) -> snapshots.State | None:
        """Copies a folder while no other thread does."""
        store = self.store
        if store is None or lost() or not folder.is_dir():
            return {}
        snapshot = _snapshot(folder, os.getpid())
        try:
            state = snapshots.take(folder, snapshot)
            if state and not lost():
                version = store.push(snapshot, _name(folder), final=final)
                results.write(folder / _VERSION, {"version": version})
                self._warned = False
            return state or {}
        except (StoreError, OSError) as error:
            if not self._warned:
                logging.warning("A copy cannot be stored: %s; trying again.", error)
            self._warned = True
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)
        return None


def _read_version(folder: pathlib.Path) -> str:
    """Returns the version that the folder was last copied as, or fetched from."""
    return (results.read(folder / _VERSION) or {}).get("version", "")


class _Copying(threading.Thread):
    """Copies a folder when it has changed, and rests in between."""

    def __init__(self, folder: pathlib.Path, push: Callable[[], snapshots.State | None]) -> None:
        super().__init__(name=f"copy {folder.name}", daemon=True)
        self._folder, self._push, self._ended = folder, push, threading.Event()
        self._copied: snapshots.State | None = None

    def run(self) -> None:
        pause = POLL_SECONDS
        while not self._ended.wait(pause):
            pause = self._copy()
        self._copy()

    def end(self) -> None:
        """Copies the last state, and ends."""
        self._ended.set()
        self.join(_END_SECONDS)
        if self.is_alive():
            logging.warning("%s is still being copied.", self._folder)

    def _copy(self) -> float:
        """Copies the folder if it has changed; returns the seconds to rest."""
        if snapshots.state(self._folder) == self._copied:
            return POLL_SECONDS
        begin = time.monotonic()
        copied = self._push()
        if copied is None:
            return _RETRY_SECONDS
        self._copied = copied
        return max(POLL_SECONDS, (time.monotonic() - begin) / _SHARE)


def open_copies(url: str) -> Copies:
    """Opens the storage that `config.artifacts` names; "" keeps no copies.

    Raises:
        SettingError: If it cannot be used.
    """
    return Copies(artifacts.open_store("config.artifacts", url) if url else None)


def _snapshot(folder: pathlib.Path, process: int | str) -> pathlib.Path:
    """Returns where a process of this host keeps a folder's snapshot while it is copied."""
    return folder.with_name(f".{folder.name}.{platform.node()}.{process}.copy")


def _name(folder: pathlib.Path) -> str:
    """Returns the name of a folder's copy, such as "trials/KEY"."""
    return f"{folder.parent.name}/{folder.name}"
