"""What students learn from: a teacher's outputs, asked for once and stored."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import mesh
from remem_jax.storage import outputs, read_ahead
from remem_jax.workflow.remem import targets

STEPS, BATCH, CLASSES = 6, 4, 3


def _images(step: int) -> jax.Array:
    return jnp.full((BATCH, CLASSES), step / 7)


class Taught(NamedTuple):
    """The logits of all steps, and how often the teacher was asked."""

    logits: list[jax.Array]
    asked: int


def _teach(folder: pathlib.Path, answer: Callable[[jax.Array], jax.Array] = jnp.exp) -> Taught:
    """Takes all steps, on two devices."""
    sharding = mesh.batch_sharding(mesh.make_mesh(jax.devices()[:2]))
    with (
        outputs.StoredOutputs(
            folder=folder, facts={}, steps=STEPS, shape=(BATCH, CLASSES), dtype=np.float32
        ) as stored,
        read_ahead.ReadAhead(stored) as ahead,
    ):
        teach = targets._Answers(ahead, jax.jit(answer, out_shardings=sharding), sharding)
        logits = [teach(step, _images(step)).logits for step in range(STEPS)]
        teach.flush()
    assert teach.found + teach.asked == STEPS
    return Taught(logits, teach.asked)


def test_what_was_stored_is_what_the_teacher_said_to_the_last_bit(tmp_path: pathlib.Path) -> None:
    said = _teach(tmp_path)

    stored = _teach(tmp_path, jnp.log)  # Is not asked.

    assert (said.asked, stored.asked) == (STEPS, 0)
    for step, (one, other) in enumerate(zip(said.logits, stored.logits, strict=True)):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, np.exp(np.full((BATCH, CLASSES), step / 7)), rtol=1e-6)
        assert one.sharding == other.sharding


def test_a_teacher_is_asked_for_what_one_process_lacks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _teach(tmp_path)
    monkeypatch.setattr(mesh, "all_processes", lambda say: say & (np.arange(len(say)) != 2))

    found = _teach(tmp_path)

    np.testing.assert_array_equal(found.logits, said.logits)
    assert found.asked == 1


def test_the_host_waits_for_other_processes_once_in_many_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def gathered(own: np.ndarray) -> np.ndarray:
        waited.append(len(own))
        return np.stack([own, own])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(mesh.multihost_utils, "process_allgather", gathered)

    _teach(tmp_path)

    assert waited == [STEPS]
