"""Students of one teacher: together on one pass, in runs apart, and on its stored answers."""

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
from remem_jax.records import Batch, Hyperparameters, Outputs, Variables
from remem_jax.storage import outputs
from remem_jax.train import lockstep, objectives, state, steps
from tools.benchmarks.rows import Grid

WAYS = ("together", "apart", "stored")
_BATCHES = 4  # That differ; they come again and again.
_WARM_UP = 2  # Steps of each way before the first that counts.


class _Class(NamedTuple):
    """What is the same in all ways."""

    teach: lockstep.Teach
    views: lockstep.Augment
    students: list[tuple[steps.StudentStep, Hyperparameters]]
    first: Callable[[], state.State]
    batches: list[Batch]
    grid: Grid


def compare(grid: Grid, repeats: int) -> dict[str, Any]:
    """Trains all students from their start in each way, in turn.

    Returns:
        "ways": by name, "wall" and "cpu", seconds of each repeat; "same_parameters": by name,
        whether all students end with the parameters that they have `together`, bit for bit.
    """
    room = _make(grid)
    for way in WAYS:
        _train(way, room, _WARM_UP)
    seconds: dict[str, dict[str, list[float]]] = {way: {"wall": [], "cpu": []} for way in WAYS}
    same = dict.fromkeys(WAYS, True)
    for _ in range(repeats):
        expected: Any = None
        for way in WAYS:
            ended, wall, cpu = _train(way, room, grid.steps)
            seconds[way]["wall"].append(wall)
            seconds[way]["cpu"].append(cpu)
            found = jax.device_get([one.params for one in ended])
            expected = found if expected is None else expected
            same[way] &= _equal(expected, found)
    return {"ways": seconds, "same_parameters": same}


def _train(way: str, room: _Class, count: int) -> tuple[list[state.State], float, float]:
    """The students after so many steps, with seconds on the wall and of the CPU."""
    firsts = jax.block_until_ready([room.first() for _ in room.students])
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        ended = list(_runs(way, room, count, firsts, pathlib.Path(folder)))
        jax.block_until_ready([one.params for one in ended])
        return ended, time.perf_counter() - wall, time.process_time() - cpu


def _runs(
    way: str, room: _Class, count: int, firsts: list[state.State], folder: pathlib.Path
) -> Iterator[state.State]:
    if way == "together":
        yield from _run(room.teach, room, room.students, firsts, count)
        return
    for student, first in zip(room.students, firsts, strict=True):
        with _teacher(way, room, count, folder) as teach:
            yield from _run(teach, room, [student], [first], count)


@contextlib.contextmanager
def _teacher(way: str, room: _Class, count: int, folder: pathlib.Path) -> Iterator[lockstep.Teach]:
    """As a run of its own has it: live, or by the answers that the first run has stored."""
    if way == "apart":
        yield room.teach
        return
    shape = (room.grid.batch, room.grid.classes)
    with outputs.StoredOutputs(
        folder=folder, facts={}, steps=count, shape=shape, dtype=np.float32
    ) as kept:

        def teach(step: int, images: Any) -> Any:
            stored = kept.read(step)
            if stored is not None:
                return Outputs(jnp.asarray(stored))
            answer = room.teach(step, images)
            if answer is not None:
                kept.write(step, np.asarray(answer.logits))
            return answer

        yield teach


def _run(
    teach: lockstep.Teach,
    room: _Class,
    students: list[tuple[steps.StudentStep, Hyperparameters]],
    firsts: list[state.State],
    count: int,
) -> lockstep.States:
    step, now = lockstep.make_step(room.views, teach, students, first_step=0), tuple(firsts)
    for number in range(count):
        now, _ = step(now, room.batches[number % _BATCHES])
    return now


def _make(grid: Grid) -> _Class:
    key = jax.random.key(0)
    common: dict[str, Any] = {"classes": grid.classes, "dtype": grid.dtype}
    teacher: Any = models.make("vit", variant=grid.variant, **common)
    variables = _answering(models.init(teacher, jax.random.key(1), grid.pixels))
    transform = augment.make_train_transform(size=grid.pixels, crop_area=(0.3, 1.0), flip=True)
    answer = jax.jit(models.teacher_apply(teacher))
    student: Any = models.make(grid.student, **common)
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loss = functools.partial(objectives.STUDENT_LOSSES["kd"], hard_labels=True)
    step = jax.jit(
        steps.make_student_step(models.student_apply(student), tx, loss=loss, key=key),
        donate_argnums=0,
    )
    start = models.init(student, key, grid.pixels)
    return _Class(
        lambda number, images: answer(variables, images),
        jax.jit(lockstep.make_augment(transform, classes=grid.classes, key=key)),
        [(step, Hyperparameters(0.001 * (1 + i), 4.0, 0.5, i)) for i in range(grid.students)],
        lambda: state.create(start, tx),
        list(_batches(grid)),
        grid,
    )


def _answering(variables: Variables) -> Variables:
    """The same teacher with a head that is not 0, so that its answers are not all alike."""
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
