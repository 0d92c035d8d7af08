"""Checkpoints are restored exactly as saved, and incomplete ones are ignored."""

import pathlib
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax.records import Key
from remem_jax.storage import checkpoints
from remem_jax.train import state


def _state(key: Key, size: int = 3) -> state.State:
    """Returns a training state after one step, with momentum and statistics."""
    tx = optax.sgd(0.1, momentum=0.9)
    params_key, statistics_key = jax.random.split(key)
    variables = {
        "params": {"dense": {"kernel": jax.random.normal(params_key, (size, 2))}},
        "batch_stats": {"mean": jax.random.normal(statistics_key, (4,))},
    }
    first = state.create(variables, tx)
    updates, opt_state = tx.update(first.params, first.opt_state, first.params)
    params = optax.apply_updates(first.params, updates)
    return first._replace(step=jnp.int32(1), params=params, opt_state=opt_state)


def _like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def test_a_state_is_restored_exactly(tmp_path: pathlib.Path, key: Key) -> None:
    saved = _state(key)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 0.0})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(saved))

    chex.assert_trees_all_equal(restored, saved, strict=True)


def test_two_states_are_restored_as_two_states(tmp_path: pathlib.Path, key: Key) -> None:
    saved = tuple(_state(k) for k in jax.random.split(key))
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 0.0})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(saved))

    chex.assert_trees_all_equal(restored, saved, strict=True)


def test_a_restored_state_has_the_types_of_the_saved_one(tmp_path: pathlib.Path, key: Key) -> None:
    saved = _state(key)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 0.0})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(saved))

    assert jax.tree.structure(restored) == jax.tree.structure(saved)


def test_the_note_of_a_step_is_restored(tmp_path: pathlib.Path, key: Key) -> None:
    saved = _state(key)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 12.5})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        _, note = directory.restore(1, _like(saved))

    assert note == {"seconds": 12.5}


def test_a_state_donated_after_saving_is_restored_exactly(tmp_path: pathlib.Path, key: Key) -> None:
    # Large, so that it is still being written when its donated memory is reused.
    first, expected = (_state(key, size=1_000_000) for _ in range(2))
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, first, note={"seconds": 0.0})
        second = step(first)
        third = jax.block_until_ready(step(second))

    assert second.params["dense"]["kernel"].is_deleted()  # The step did reuse the memory.
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(third))
    chex.assert_trees_all_equal(restored, expected, strict=True)


def test_an_empty_folder_has_no_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        assert directory.newest() is None


@pytest.fixture
def saved(tmp_path: pathlib.Path, key: Key) -> pathlib.Path:
    """A folder in which steps 2, 9 and 10 were saved."""
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        for step in (2, 9, 10):
            directory.save(step, {"step": jnp.int32(step)}, note={"seconds": 0.0})
    return tmp_path


def test_the_newest_checkpoint_is_the_last_one_saved(saved: pathlib.Path) -> None:
    with checkpoints.Checkpoints(saved, keep=2) as directory:
        assert directory.newest() == 10


def test_two_checkpoints_are_kept(saved: pathlib.Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["10", "9"]


def test_each_step_has_its_own_values(saved: pathlib.Path) -> None:
    with checkpoints.Checkpoints(saved, keep=2) as directory:
        restored = [directory.restore(step, {"step": jnp.int32(0)})[0] for step in (9, 10)]

    assert [int(tree["step"]) for tree in restored] == [9, 10]


@pytest.fixture
def partial(saved: pathlib.Path) -> pathlib.Path:
    """An incomplete checkpoint of step 11 beside those of steps 9 and 10."""
    # Orbax uses this name until a checkpoint is complete.
    partial = saved / "11.orbax-checkpoint-tmp"
    shutil.copytree(saved / "10", partial)
    shutil.rmtree(partial / "d")
    return partial


def test_an_incomplete_checkpoint_is_ignored(partial: pathlib.Path) -> None:
    with checkpoints.Checkpoints(partial.parent, keep=2) as directory:
        assert directory.newest() == 10


def test_an_incomplete_checkpoint_is_removed_after_the_next_save(partial: pathlib.Path) -> None:
    with checkpoints.Checkpoints(partial.parent, keep=2) as directory:
        directory.save(12, {"step": jnp.int32(12)}, note={"seconds": 0.0})

    assert not partial.exists()


_SAVE_AND_DIE = """
    import os, pathlib, sys
    import jax.numpy as jnp
    from remem_jax.storage import checkpoints

    with checkpoints.Checkpoints(pathlib.Path(sys.argv[1]), keep=2) as directory:
        directory.save(1, {"weight": jnp.full((1000,), 1.0)}, note={"seconds": 0.0})
        directory.save(2, {"weight": jnp.full((20_000_000,), 2.0)}, note={"seconds": 0.0})
        print(sorted(os.listdir(sys.argv[1])), flush=True)
        os._exit(9)  # As a kill: nothing is finished, nothing is tidied.
"""


def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path: pathlib.Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SAVE_AND_DIE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=200,
    )
    assert process.returncode == 9, process.stderr
    assert "'1'" in process.stdout
    assert "'2'" not in process.stdout  # It was still being written.

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        newest = directory.newest()
        restored, _ = directory.restore(1, {"weight": jnp.zeros((1000,))})

    assert newest == 1
    np.testing.assert_array_equal(restored["weight"], 1.0)


def test_a_step_can_be_saved_again_after_a_kill_while_saving_it(partial: pathlib.Path) -> None:
    with checkpoints.Checkpoints(partial.parent, keep=2) as directory:
        directory.save(11, {"step": jnp.int32(11)}, note={"seconds": 0.0})

    with checkpoints.Checkpoints(partial.parent, keep=2) as directory:
        restored, _ = directory.restore(11, {"step": jnp.int32(0)})
    assert int(restored["step"]) == 11


def test_a_tree_is_restored_exactly(tmp_path: pathlib.Path, key: Key) -> None:
    saved = {"a": {"b": jax.random.normal(key, (2, 3))}, "c": jnp.arange(3)}

    checkpoints.save_tree(tmp_path / "tree", saved)

    restored = checkpoints.load_tree(tmp_path / "tree", _like(saved))
    chex.assert_trees_all_equal(restored, saved, strict=True)


def test_a_tree_is_restored_from_shapes_only(tmp_path: pathlib.Path, key: Key) -> None:
    saved = {"a": jax.random.normal(key, (2, 3))}
    checkpoints.save_tree(tmp_path / "tree", saved)

    restored = checkpoints.load_tree(
        tmp_path / "tree", {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    )

    np.testing.assert_array_equal(restored["a"], saved["a"])


def test_a_tree_replaces_the_old_one(tmp_path: pathlib.Path) -> None:
    for value in (1, 2):
        checkpoints.save_tree(tmp_path / "tree", {"a": jnp.int32(value)})

    restored = checkpoints.load_tree(tmp_path / "tree", {"a": jnp.int32(0)})

    assert int(restored["a"]) == 2


def test_saving_a_tree_returns_after_it_is_written(tmp_path: pathlib.Path) -> None:
    checkpoints.save_tree(tmp_path / "tree", {"a": jnp.zeros((1_000_000,))})

    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("name", ["checkpoints", "nothing"])
def test_checkpoints_are_removed_if_they_exist(saved: pathlib.Path, name: str) -> None:
    shutil.copytree(saved, saved / "checkpoints")

    checkpoints.remove(saved / name)

    assert (saved / "checkpoints").exists() == (name != "checkpoints")
