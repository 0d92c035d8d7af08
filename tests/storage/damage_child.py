"""Processes of test_damage.py, which write and read checkpoints."""

import itertools
import pathlib
import resource
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from remem_jax import checks
from remem_jax.storage import checkpoints


def write_too_much(folder: str) -> None:
    """Writes two checkpoints that are larger than a file may be."""
    # Limit files to 100 kB, to get real system errors as on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    small, large = jnp.ones(10), jax.random.uniform(jax.random.key(0), (100_000,))
    path = pathlib.Path(folder)
    with checkpoints.Checkpoints(path / "steps", keep=2) as directory:
        directory.save(1, {"weight": small}, note={"seconds": 0.0})
        directory.save(2, {"weight": large}, note={"seconds": 0.0})
        try:
            directory.wait()
        except checks.SettingError as error:
            print(error)  # noqa: T201
        directory.save(3, {"weight": small}, note={"seconds": 0.0})
    try:
        checkpoints.save_tree(path / "tree", {"weight": large})
    except checks.SettingError as error:
        print(error)  # noqa: T201


def save_for_ever(folder: str) -> None:
    """Restores the newest checkpoint, and saves the next ones until it is killed."""
    with checkpoints.Checkpoints(pathlib.Path(folder), keep=2) as directory:
        newest = directory.newest() or 0
        if newest:
            tree, note = directory.restore(newest, {"weight": jnp.zeros(1000)})
            assert (tree["weight"] == newest).all()
            assert note["seconds"] == newest
        print(newest, flush=True)  # noqa: T201
        for step in itertools.count(newest + 1):
            tree = {"weight": jnp.full((1000,), float(step))}
            directory.save(step, tree, note={"seconds": float(step)})
            if step > newest + 2:  # Saving waits for the previous save.
                print(step - 1, flush=True)  # noqa: T201


def restore_on_devices(folder: str, devices: int) -> None:
    """Restores a tree on this number of devices."""
    jax.config.update("jax_num_cpu_devices", devices)
    rows = NamedSharding(jax.make_mesh((jax.device_count(),), ("row",)), PartitionSpec("row"))
    like = {
        "rows": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=rows),
        "whole": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    }
    tree: Any = checkpoints.load_tree(pathlib.Path(folder), like)
    for leaf in tree.values():
        np.testing.assert_array_equal(leaf, np.arange(12.0).reshape(4, 3))
    print([len(leaf.devices()) for leaf in tree.values()])  # noqa: T201
