"""Trains students of one teacher together, in separate runs, and on stored teacher outputs."""

import contextlib
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import models, optim
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch, Hyperparameters, Outputs, Variables
from remem_jax.storage import outputs
from remem_jax.train import lockstep, state, steps, student_losses
from tools.benchmarks import tiny
from tools.benchmarks.rows import TINY_STUDENT, Grid

WAYS = ("together", "apart", "stored")
_BATCHES = 4  # Number of different batches, which are repeated.
_WARM_UP = 2  # Untimed steps of each way.


class _Setup(NamedTuple):
    """What all ways share."""

    get_targets: lockstep.GetTargets
    augment: lockstep.Augment
    students: list[tuple[steps.StudentStep, Hyperparameters]]
    first: Callable[[], state.TrainState]
    batches: list[Batch]
    grid: Grid


def compare(grid: Grid, repeats: int) -> dict[str, Any]:
    """Trains all students from step 0 in each way, in turn.

    Returns:
        "ways" has the seconds of each repeat, by way and clock ("wall" and "cpu").
        "same_parameters" has, by way, whether the final parameters of all students equal those of
        `together`, bit for bit.
    """
    setup = _make(grid)
    for way in WAYS:
        _train(way, setup, _WARM_UP)
    seconds: dict[str, dict[str, list[float]]] = {way: {"wall": [], "cpu": []} for way in WAYS}
    same = dict.fromkeys(WAYS, True)
    for _ in range(repeats):
        expected: Any = None
        for way in WAYS:
            ended, wall, cpu = _train(way, setup, grid.steps)
            seconds[way]["wall"].append(wall)
            seconds[way]["cpu"].append(cpu)
            params = jax.device_get([student.params for student in ended])
            expected = params if expected is None else expected
            same[way] &= _equal(expected, params)
    return {"ways": seconds, "same_parameters": same}


def _train(way: str, setup: _Setup, count: int) -> tuple[list[state.TrainState], float, float]:
    """Returns the students after this many steps, wall-clock seconds and CPU-seconds."""
    firsts = jax.block_until_ready([setup.first() for _ in setup.students])
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        ended = list(_runs(way, setup, count, firsts, pathlib.Path(folder)))
        jax.block_until_ready([student.params for student in ended])
        return ended, time.perf_counter() - wall, time.process_time() - cpu


def _runs(
    way: str, setup: _Setup, count: int, firsts: list[state.TrainState], folder: pathlib.Path
) -> Iterator[state.TrainState]:
    if way == "together":
        yield from _run(setup.get_targets, setup, setup.students, firsts, count)
        return
    for student, first in zip(setup.students, firsts, strict=True):
        with _teacher(way, setup, count, folder) as get_targets:
            yield from _run(get_targets, setup, [student], [first], count)


@contextlib.contextmanager
def _teacher(
    way: str, setup: _Setup, count: int, folder: pathlib.Path
) -> Iterator[lockstep.GetTargets]:
    """Yields a separate run's source of targets: the teacher, or its outputs stored before."""
    if way == "apart":
        yield setup.get_targets
        return
    shape = (setup.grid.batch, setup.grid.classes)
    with outputs.StoredOutputs(
        folder=folder, facts={}, steps=count, shape=shape, dtype=np.float32
    ) as stored_outputs:

        def get_targets(step: int, images: Any) -> Any:
            stored = stored_outputs.read(step)
            if stored is not None:
                return Outputs(jnp.asarray(stored))
            computed = setup.get_targets(step, images)
            if computed is not None:
                stored_outputs.write(step, np.asarray(computed.logits))
            return computed

        yield get_targets


def _run(
    get_targets: lockstep.GetTargets,
    setup: _Setup,
    students: list[tuple[steps.StudentStep, Hyperparameters]],
    firsts: list[state.TrainState],
    count: int,
) -> lockstep.States:
    step = lockstep.make_step(setup.augment, get_targets, students, first_step=0)
    states: lockstep.States = tuple(firsts)
    for number in range(count):
        states, _ = step(states, setup.batches[number % _BATCHES])
    return states


def _make(grid: Grid) -> _Setup:
    key = jax.random.key(0)
    common: dict[str, Any] = {"classes": grid.classes, "dtype": grid.dtype}
    teacher: Any = models.make("vit", variant=grid.variant, **common)
    variables = _with_random_head(models.init(teacher, jax.random.key(1), grid.pixels))
    transform = augment.make_train_transform(size=grid.pixels, crop_area=(0.3, 1.0), flip=True)
    compute_targets = jax.jit(models.teacher_apply(teacher))
    if grid.student == TINY_STUDENT:
        tiny.add_student()
    student: Any = models.make(grid.student, **common)
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=None)
    loss = functools.partial(student_losses.LOSSES["kd"], hard_labels=True)
    step = jax.jit(
        steps.make_student_step(models.student_apply(student), tx, loss=loss, key=key),
        donate_argnums=0,
    )
    start = models.init(student, key, grid.pixels)
    return _Setup(
        lambda number, images: compute_targets(variables, images),
        jax.jit(lockstep.make_augment(transform, classes=grid.classes, key=key, mixing=Mixing())),
        [(step, Hyperparameters(0.001 * (1 + i), 4.0, 0.5, i)) for i in range(grid.students)],
        lambda: state.create(start, tx),
        list(_batches(grid)),
        grid,
    )


def _with_random_head(variables: Variables) -> Variables:
    """Replaces the teacher's new head, which is 0 and gives equal outputs, by a random one."""
    head = dict(variables["params"]["head"])
    head["kernel"] = jax.random.normal(jax.random.key(2), head["kernel"].shape)
    return {"params": {**variables["params"], "head": head}}


def _batches(grid: Grid) -> Iterator[Batch]:
    rng, shape = np.random.default_rng(0), (grid.batch, grid.pixels, grid.pixels, 3)
    for _ in range(_BATCHES):
        labels = rng.integers(0, grid.classes, grid.batch)
        yield Batch(
            jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
            jnp.asarray(labels, jnp.int32),
            jnp.ones(grid.batch, bool),
        )


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)
