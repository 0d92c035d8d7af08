"""The teacher outputs that students learn from are computed once and stored."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import settings
from remem_jax import mesh
from remem_jax.storage import outputs, read_ahead
from remem_jax.workflow.remem import targets

STEPS, BATCH, CLASSES = 6, 4, 3


def _images(step: int) -> jax.Array:
    return jnp.full((BATCH, CLASSES), step / 7)


class Targets(NamedTuple):
    """The logits of all steps, and how many of them the teacher computed."""

    logits: list[jax.Array]
    computed: int


def _all_steps(
    folder: pathlib.Path, teacher: Callable[[jax.Array], jax.Array] = jnp.exp
) -> Targets:
    """Computes or reads the targets of all steps, on two devices."""
    sharding = mesh.batch_sharding(mesh.make_mesh(jax.devices()[:2]))
    with (
        outputs.StoredOutputs(
            folder=folder, facts={}, steps=STEPS, shape=(BATCH, CLASSES), dtype=np.float32
        ) as stored,
        read_ahead.ReadAhead(stored) as rows,
    ):
        get_targets = targets.StoredTargets(
            rows, jax.jit(teacher, out_shardings=sharding), sharding
        )
        logits = [get_targets(step, _images(step)).logits for step in range(STEPS)]
        get_targets.flush()
    assert get_targets.read + get_targets.computed == STEPS
    return Targets(logits, get_targets.computed)


def test_stored_outputs_equal_those_of_the_teacher_bit_by_bit(tmp_path: pathlib.Path) -> None:
    live = _all_steps(tmp_path)

    stored = _all_steps(tmp_path, jnp.log)  # This teacher is not called.

    assert (live.computed, stored.computed) == (STEPS, 0)
    for step, (computed, read) in enumerate(zip(live.logits, stored.logits, strict=True)):
        np.testing.assert_array_equal(read, computed)
        np.testing.assert_allclose(computed, np.exp(np.full((BATCH, CLASSES), step / 7)), rtol=1e-6)
        assert computed.sharding == read.sharding


def test_the_teacher_computes_steps_that_one_process_lacks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = _all_steps(tmp_path)
    monkeypatch.setattr(
        mesh, "all_processes", lambda stored: stored & (np.arange(len(stored)) != 2)
    )

    repeated = _all_steps(tmp_path)

    np.testing.assert_array_equal(repeated.logits, live.logits)
    assert repeated.computed == 1


def test_the_host_waits_for_other_processes_once_in_many_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def gathered(stored: np.ndarray) -> np.ndarray:
        waits.append(len(stored))
        return np.stack([stored, stored])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(mesh.multihost_utils, "process_allgather", gathered)

    _all_steps(tmp_path)

    assert waits == [STEPS]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.augment", "trivial"),
        ("data.color_jitter", 0.4),
        ("data.random_erasing", 0.25),
        ("data.balanced_sampling", 1.0),
        ("student.cutmix", 1.0),
    ],
)
def test_settings_that_change_the_images_identify_stored_outputs(name: str, value: Any) -> None:
    config = settings.run()
    before = targets._added(config)

    group, _, last = name.partition(".")
    config[group][last] = value

    assert before == {}  # Outputs that earlier versions stored are still read.
    assert targets._added(config) == {last: value}


def test_the_magnitude_of_rand_augment_identifies_stored_outputs() -> None:
    config = settings.run()
    config.data.augment = "rand"

    assert targets._added(config) == {
        "augment": "rand",
        "augment_operations": 2,
        "augment_magnitude": 9,
    }
