"""Checkpoints by orbax: written beside the training, whole or not at all, and checked when read.

Orbax writes a folder under another name; when all its files are there, their checksums are added,
and last it gets its name (see `checksums`). So a folder with its name was whole, and what does not
fit its checksums has been damaged since.

Where several processes make one run, all of them call these functions, in the same order, and
share the folder; the first one adds the checksums and gives the names.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError, at_least
from remem_jax.storage import checksums, files

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one part of a run, by step; use it in a `with`.

    A kill at any moment leaves the checkpoint before as the newest. What cannot be written ends
    in a `SettingError` that names the step that is safe: at the next `save`, at `wait`, or when
    the block ends. If that ends by an error, this one is logged instead.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int) -> None:
        """Opens (and makes) a directory that belongs to these checkpoints alone.

        Args:
            directory: The directory; what a kill has left there half-written is removed.
            keep: How many are kept, the newest ones; at least 2, should one be damaged.

        Raises:
            SettingError: If the directory cannot be used.
        """
        at_least("config.keep_checkpoints", keep, 2)
        self._directory, self._keep = directory.absolute(), keep
        self._checked: int | None = None  # The step that was just read to the end.
        self._pending: tuple[int, futures.Future[None]] | None = None
        with _told(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            if mesh.is_writer():
                checksums.clear(self._directory)
            # Held open, so that another directory of this name is told from it.
            self._opened = os.open(self._directory, os.O_RDONLY)
        self._writer = ocp.StandardCheckpointer()
        self._finisher = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            self._finisher.shutdown(wait=False)  # Another process has ended; this one is about to.
            return
        try:
            if error is None:
                self.wait()
            else:  # Other processes may not get here.
                self._wait_here()
        except (SettingError, RuntimeError) as failure:
            if error is None:
                raise
            logging.error("%s", failure)
        finally:
            self._finisher.shutdown()
            self._writer.close()
            os.close(self._opened)

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is as it was written, or None.

        Reads it to the end. One that is damaged is reported, and set aside as damaged-STEP.

        Raises:
            SettingError: If one cannot be set aside.
        """
        found = self._find_newest() if mesh.is_writer() else None
        step = mesh.broadcast(-1 if found is None else found)
        self._checked = step if step >= 0 else None
        return self._checked

    def save(self, step: int, tree: Any, *, note: Any) -> None:
        """Writes a tree of arrays in the background, with a note, as JSON has it.

        Waits for the save before, then until the tree is copied: its arrays may be donated, or
        written over, when this returns. The oldest checkpoints go when the new one is there.

        Raises:
            SettingError: If this one, or the one before, cannot be written.
        """
        self.wait()
        with _told(self._directory, lambda: self._outcome(step)):
            self._require_directory()
            self._writer.save(checksums.partial(self._folder(step)), tree)
        self._pending = step, self._finisher.submit(self._finish, step, note)

    def wait(self) -> None:
        """Waits until what was saved is safe.

        Raises:
            SettingError: If it could not be written.
        """
        waits = self._pending is not None
        self._wait_here()
        if waits:
            # That it is there. A process that could not write must end: the others are waiting for
            # it inside of orbax, where nothing else can reach them.
            mesh.broadcast(1)

    def restore(self, step: int, like: T) -> tuple[T, Any]:
        """The tree of a step, with the structure of `like`, and its note.

        Args:
            step: As `newest` has it.
            like: Arrays, or `jax.ShapeDtypeStruct`s. The arrays come back where these are, by
                their shardings, on however many devices they were before; to the first device
                where there is none.

        Raises:
            SettingError: If the checkpoint is damaged, or is of another tree.
        """
        folder = self._folder(step)
        remedy = f"remove {folder}; the same command goes on from the one before, if there is one"
        note = _checked(folder, remedy, again=step != self._checked)
        self._checked = None
        restored = _read(self._writer, folder, like, remedy)
        logging.info("Restored step %d of %s.", step, self._directory)
        return restored, note

    def _folder(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _steps(self) -> list[int]:
        """Steps whose checkpoints have got their names, in order."""
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def _find_newest(self) -> int | None:
        damaged = False
        for step in reversed(self._steps()):
            try:
                checksums.check(self._folder(step))
                return step
            except checksums.DamagedError as error:
                self._set_aside(step, error)
                damaged = True
        if damaged:
            logging.warning(
                "No checkpoint in %s is whole: starting from the beginning.", self._directory
            )
        return None

    def _set_aside(self, step: int, damage: checksums.DamagedError) -> None:
        with _told(self._directory):
            aside = checksums.set_aside(self._folder(step))
        logging.warning(
            "The checkpoint of step %d is damaged: %s. It is now %s; the one before it is used.",
            step,
            damage,
            aside.name,
        )

    def _require_directory(self) -> None:
        """Raises if the directory has gone; orbax would make it again, with what is left."""
        if not os.path.samestat(self._directory.stat(), os.fstat(self._opened)):
            raise OSError(errno.ESTALE, "it is another folder than before")

    def _finish(self, step: int, note: Any) -> None:
        """Waits for orbax, then makes a checkpoint of what it wrote, and removes the oldest."""
        self._writer.wait_until_finished()
        if not mesh.is_writer():
            return
        self._require_directory()
        checksums.finish(self._folder(step), note)
        for old in self._steps()[: -self._keep]:
            checksums.discard(self._folder(old))
        checksums.clear(self._directory)

    def _wait_here(self) -> None:
        if self._pending is None:
            return
        (step, finished), self._pending = self._pending, None
        with _told(self._directory, lambda: self._outcome(step)):
            try:
                finished.result()
            finally:  # Tells more than what orbax stumbles over when the directory has gone.
                self._require_directory()

    def _outcome(self, step: int) -> str:
        """What is safe after a step could not be saved."""
        with contextlib.suppress(OSError):
            for last in self._steps()[-1:]:
                return f"Step {step} is lost, step {last} is safe: the same command goes on there."
        return f"Step {step} is lost, and no step is safe: the same command begins again."


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes one tree of arrays, whole or not at all; replaces what was there.

    A kill leaves the old one or the new one, or for a moment neither.

    Raises:
        SettingError: If it cannot be written.
    """
    directory = directory.absolute()
    with _told(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        if mesh.is_writer():
            checksums.clear(directory.parent, directory.name)
        with ocp.StandardCheckpointer() as writer:
            writer.save(checksums.partial(directory), tree)
        if mesh.is_writer():
            checksums.finish(directory, None)
            checksums.clear(directory.parent, directory.name)
    mesh.broadcast(1)  # That it is there.


def load_tree(directory: pathlib.Path, like: T) -> T:
    """Reads what `save_tree` wrote, with the structure of `like`, to where `like` is.

    Raises:
        SettingError: If it is damaged or not there, or is of another tree. It says which part of
            the run to remove: the nearest folder above with a result.
    """
    directory = directory.absolute()
    above = (folder for folder in directory.parents if (folder / "result.json").exists())
    remedy = f"remove {next(above, directory.parent)}; the same command makes it again"
    _checked(directory, remedy)
    with ocp.StandardCheckpointer() as reader:
        return _read(reader, directory, like, remedy)


def remove(directory: pathlib.Path) -> None:
    """Deletes checkpoints that nothing needs any more."""
    shutil.rmtree(directory, ignore_errors=True)


def _checked(folder: pathlib.Path, remedy: str, *, again: bool = True) -> Any:
    """The note of a folder, which is read to the end, unless that was just done."""
    try:
        return checksums.check(folder) if again else checksums.read_note(folder)
    except checksums.DamagedError as error:
        raise SettingError(f"{error}: {remedy}.") from error


def _read(reader: Any, folder: pathlib.Path, like: T, remedy: str) -> T:
    try:
        return reader.restore(folder, jax.tree.map(_placed, like))
    except (OSError, ValueError) as error:
        raise SettingError(f"{folder} cannot be used ({_cause(error)[0]}): {remedy}.") from error


def _placed(leaf: Any) -> Any:
    """Shape, type and place of an array; numbers are left as they are."""
    if not hasattr(leaf, "shape"):
        return leaf
    # Without a place orbax takes the devices of the run that saved, which may not be here.
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _told(directory: pathlib.Path, outcome: Callable[[], str] | None = None) -> Iterator[None]:
    """Turns errors of writing, as orbax has them, into one for the user."""
    try:
        yield
    except TimeoutError:
        raise  # Of another process that has ended.
    except (OSError, ValueError) as error:
        then = outcome() if outcome else "The same command goes on from what is safe."
        reason, advice = _cause(error)
        raise SettingError(f"{directory} cannot be written ({reason}): {advice}. {then}") from error


def _cause(error: OSError | ValueError) -> tuple[str, str]:
    """What the system says of an error, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    # Tensorstore, which orbax writes with, has its own errors.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(found.group(1)) if found else number
    reason = " ".join(str(error).split())[:300] if number is None else os.strerror(number)
    if isinstance(error, OSError):
        reason = error.strerror or reason
    return reason, files.advice(number)
