"""Orbax checkpoints: written in the background, atomically, and verified when read.

Orbax writes a folder under another name; when it is complete, checksums are added, and it is
renamed last (see `checksums`). So a folder with its name was complete, and a file that does not
match its checksum has been damaged since.

If several processes make one run, all of them call these functions, in the same order, and share
the folder; the first adds the checksums and renames.
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
    """The checkpoints of one stage of a run, by step; a context manager.

    A kill at any moment leaves the previous checkpoint as the newest. If one cannot be written, a
    `SettingError` names the newest one that was: at the next `save`, at `wait`, or at the end of
    the block. If the block ends with another error, this one is logged instead.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int) -> None:
        """Opens, or makes, a directory for these checkpoints alone.

        Args:
            directory: The directory; incomplete checkpoints in it are removed.
            keep: Number of checkpoints to keep; at least 2, in case one is damaged.

        Raises:
            SettingError: If the directory cannot be used.
        """
        at_least("config.keep_checkpoints", keep, 2)
        self._directory, self._keep = directory.absolute(), keep
        self._checked: int | None = None  # The step that was just verified.
        self._pending: tuple[int, futures.Future[None]] | None = None
        with _errors_explained(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            if mesh.is_writer():
                checksums.clear(self._directory)
            # Kept open, to detect if another directory takes its name.
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
            self._finisher.shutdown(wait=False)  # Another process has died, and this one will exit.
            return
        try:
            if error is None:
                self.wait()
            else:  # Other processes may not reach this point.
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
        """Returns the step of the newest undamaged checkpoint, or None.

        Reads and verifies all of its files. Damaged ones are reported, and renamed to damaged-STEP.

        Raises:
            SettingError: If a damaged one cannot be renamed.
        """
        newest = self._find_newest() if mesh.is_writer() else None
        step = mesh.broadcast(-1 if newest is None else newest)
        self._checked = step if step >= 0 else None
        return self._checked

    def save(self, step: int, tree: Any, *, note: Any) -> None:
        """Writes a tree of arrays, with a note of JSON values, in the background.

        Waits for the previous save, and until the tree is copied: its arrays may be donated or
        overwritten afterwards. The oldest checkpoints are removed when the new one is complete.

        Raises:
            SettingError: If this checkpoint, or the previous one, cannot be written.
        """
        self.wait()
        with _errors_explained(self._directory, lambda: self._outcome(step)):
            self._require_directory()
            self._writer.save(checksums.partial(self._folder(step)), tree)
        self._pending = step, self._finisher.submit(self._finish, step, note)

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
            SettingError: If it could not be written.
        """
        waits = self._pending is not None
        self._wait_here()
        if waits:
            # A barrier. A process that could not write must exit: the others wait for it inside
            # orbax, and nothing else can reach them there.
            mesh.broadcast(1)

    def restore(self, step: int, like: T) -> tuple[T, Any]:
        """Returns the tree of a step, with the structure of `like`, and its note.

        Args:
            step: Return value of `newest`.
            like: Arrays, or `jax.ShapeDtypeStruct`s. The restored arrays have their shardings,
                whatever devices they were saved on; without a sharding they are put on the first
                device.

        Raises:
            SettingError: If the checkpoint is damaged, or contains another tree.
        """
        folder = self._folder(step)
        remedy = f"remove {folder}; the same command goes on from the one before, if there is one"
        note = _verified(folder, remedy, again=step != self._checked)
        self._checked = None
        restored = _read(self._writer, folder, like, remedy)
        logging.info("Resuming after step %d, from %s.", step, self._directory)
        return restored, note

    def _folder(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, in order."""
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
        with _errors_explained(self._directory):
            aside = checksums.set_aside(self._folder(step))
        logging.warning(
            "The checkpoint of step %d is damaged: %s. It is now %s; the one before it is used.",
            step,
            damage,
            aside.name,
        )

    def _require_directory(self) -> None:
        """Raises if the directory was replaced or removed; orbax would make it again."""
        if not os.path.samestat(self._directory.stat(), os.fstat(self._opened)):
            raise OSError(errno.ESTALE, "it is another folder than before")

    def _finish(self, step: int, note: Any) -> None:
        """Waits for orbax, completes the checkpoint, and removes the oldest ones."""
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
        with _errors_explained(self._directory, lambda: self._outcome(step)):
            try:
                finished.result()
            finally:  # More helpful than orbax's error if the directory is gone.
                self._require_directory()

    def _outcome(self, step: int) -> str:
        """Describes which step is safe after one could not be saved."""
        with contextlib.suppress(OSError):
            for last in self._steps()[-1:]:
                return f"Step {step} is lost, step {last} is safe: the same command goes on there."
        return f"Step {step} is lost, and no step is safe: the same command begins again."


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes one tree of arrays atomically, in place of an earlier one.

    A kill leaves the old or the new one, or for a moment neither.

    Raises:
        SettingError: If it cannot be written.
    """
    directory = directory.absolute()
    with _errors_explained(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        if mesh.is_writer():
            checksums.clear(directory.parent, directory.name)
        with ocp.StandardCheckpointer() as writer:
            writer.save(checksums.partial(directory), tree)
        if mesh.is_writer():
            checksums.finish(directory, None)
            checksums.clear(directory.parent, directory.name)
    mesh.broadcast(1)  # A barrier.


def load_tree(directory: pathlib.Path, like: T) -> T:
    """Reads a tree that `save_tree` wrote, with the structure and the shardings of `like`.

    Raises:
        SettingError: If it is damaged, missing, or contains another tree. The message names the
            folder to remove: the nearest parent with a result.
    """
    directory = directory.absolute()
    above = (folder for folder in directory.parents if (folder / "result.json").exists())
    remedy = f"remove {next(above, directory.parent)}; the same command makes it again"
    _verified(directory, remedy)
    with ocp.StandardCheckpointer() as reader:
        return _read(reader, directory, like, remedy)


def remove(directory: pathlib.Path) -> None:
    """Deletes checkpoints that are no longer needed."""
    shutil.rmtree(directory, ignore_errors=True)


def _verified(folder: pathlib.Path, remedy: str, *, again: bool = True) -> Any:
    """Verifies a folder, unless that was just done, and returns its note."""
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
    """Returns shape, type and sharding of an array; numbers are returned unchanged."""
    if not hasattr(leaf, "shape"):
        return leaf
    # Without a sharding, orbax uses the devices of the run that saved, which may not exist here.
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _errors_explained(
    directory: pathlib.Path, outcome: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turns orbax's errors of writing into one for the user."""
    try:
        yield
    except TimeoutError:
        raise  # Another process has died.
    except (OSError, ValueError) as error:
        result = outcome() if outcome else "The same command goes on from what is safe."
        reason, advice = _cause(error)
        raise SettingError(
            f"{directory} cannot be written ({reason}): {advice}. {result}"
        ) from error


def _cause(error: OSError | ValueError) -> tuple[str, str]:
    """Returns the system's message for an error, and advice."""
    number = error.errno if isinstance(error, OSError) else None
    # Orbax writes by tensorstore, which has errors of its own.
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(match.group(1)) if match else number
    reason = " ".join(str(error).split())[:300] if number is None else os.strerror(number)
    if isinstance(error, OSError):
        reason = error.strerror or reason
    return reason, files.advice(number)
