"""Checkpoints: what is restored is what was saved, and only what is whole counts."""

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
    """A state as training has it: after a step, with momentum and statistics."""
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


def test_a_state_comes_back_as_it_was_saved(tmp_path: pathlib.Path, key: Key) -> None:
    saved = _state(key)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 0.0})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(saved))

    chex.assert_trees_all_equal(restored, saved, strict=True)


def test_two_states_come_back_as_two_states(tmp_path: pathlib.Path, key: Key) -> None:
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


def test_the_note_of_a_step_comes_back(tmp_path: pathlib.Path, key: Key) -> None:
    saved = _state(key)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, saved, note={"seconds": 12.5})

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        _, note = directory.restore(1, _like(saved))

    assert note == {"seconds": 12.5}


def test_a_state_that_is_given_away_after_saving_is_restored_as_it_was(
    tmp_path: pathlib.Path, key: Key
) -> None:
    # Large, so that it is still being written while its memory is used again.
    first, expected = (_state(key, size=1_000_000) for _ in range(2))
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)

    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, first, note={"seconds": 0.0})
        second = step(first)
        third = jax.block_until_ready(step(second))

    assert second.params["dense"]["kernel"].is_deleted()  # Steps do use memory again.
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        restored, _ = directory.restore(1, _like(third))
    chex.assert_trees_all_equal(restored, expected, strict=True)


def test_there_is_no_newest_checkpoint_at_first(tmp_path: pathlib.Path) -> None:
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        assert directory.newest() is None


@pytest.fixture
def saved(tmp_path: pathlib.Path, key: Key) -> pathlib.Path:
    """A folder where steps 2, 9 and 10 were saved."""
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        for step in (2, 9, 10):
            directory.save(step, {"step": jnp.int32(step)}, note={"seconds": 0.0})
    return tmp_path


def test_the_newest_checkpoint_is_the_last_saved(saved: pathlib.Path) -> None:
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
    """Half of the checkpoint of step 11, beside those of steps 9 and 10."""
    # Orbax gives a checkpoint its name when it is whole; this is its name before.
    partial = saved / "11.orbax-checkpoint-tmp"
    shutil.copytree(saved / "10", partial)
    shutil.rmtree(partial / "d")
    return partial


def test_half_a_checkpoint_is_none(partial: pathlib.Path) -> None:
    with checkpoints.Checkpoints(partial.parent, keep=2) as directory:
        assert directory.newest() == 10


def test_half_a_checkpoint_is_gone_after_the_next_whole_one(partial: pathlib.Path) -> None:
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


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SAVE_AND_DIE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=200,
    )
    assert done.returncode == 9, done.stderr
    assert "'1'" in done.stdout
    assert "'2'" not in done.stdout  # It was still being written.

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


def test_a_tree_comes_back_as_it_was_saved(tmp_path: pathlib.Path, key: Key) -> None:
    saved = {"a": {"b": jax.random.normal(key, (2, 3))}, "c": jnp.arange(3)}

    checkpoints.save_tree(tmp_path / "tree", saved)

    restored = checkpoints.load_tree(tmp_path / "tree", _like(saved))
    chex.assert_trees_all_equal(restored, saved, strict=True)


def test_a_tree_is_read_by_its_shapes_alone(tmp_path: pathlib.Path, key: Key) -> None:
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


def test_a_tree_is_written_when_saving_returns(tmp_path: pathlib.Path) -> None:
    checkpoints.save_tree(tmp_path / "tree", {"a": jnp.zeros((1_000_000,))})

    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("name", ["checkpoints", "nothing"])
def test_checkpoints_are_removed_if_they_are_there(saved: pathlib.Path, name: str) -> None:
    shutil.copytree(saved, saved / "checkpoints")

    checkpoints.remove(saved / name)

    assert (saved / "checkpoints").exists() == (name != "checkpoints")
