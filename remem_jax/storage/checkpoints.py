"""Checkpoints by orbax: atomic, the newest ones kept."""

import pathlib
import shutil
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one part of a run, by step; use it in a `with`.

    A checkpoint appears under its name only when it is whole, so that a kill at any moment
    leaves the one before it as the newest.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Opens (and makes) a directory that belongs to these checkpoints alone."""
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def newest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, *, seconds: float) -> None:
        """Writes a tree of arrays in the background, with the time that went into it."""
        items = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), time=ocp.args.JsonSave({"seconds": seconds})
        )
        self._manager.save(step, args=items)

    def restore(self, step: int, like: T) -> tuple[T, float]:
        """The tree of a step, with the structure of `like`, and the seconds that went into it."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            tree=ocp.args.StandardRestore(abstract), time=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        logging.info("Restored step %d of %s.", step, self._manager.directory)
        return restored["tree"], restored["time"]["seconds"]


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes one tree of arrays, whole or not at all; replaces what was there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), tree, force=True)


def load_tree(directory: pathlib.Path, like: T) -> T:
    """Reads what `save_tree` wrote, with the structure of `like`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.absolute(), abstract)


def remove(directory: pathlib.Path) -> None:
    """Deletes checkpoints that nothing needs any more."""
    shutil.rmtree(directory, ignore_errors=True)
