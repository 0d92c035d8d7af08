"""Decides how many students are trained at once: a whole grid, or as many as fit on the device."""

import jax
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import results
from remem_jax.train import state
from remem_jax.workflow import context, stages, step_memory
from remem_jax.workflow.remem.student_grid import GridPoint, StudentGrid
from remem_jax.workflow.remem.student_setup import StudentSetup

_CHOSEN = "students/group.json"
_PLENTY = 0.25  # Fraction of a device's memory below which nothing is compiled to measure more.


def need(run: context.Run, setup: StudentSetup, grid: StudentGrid) -> step_memory.Need:
    """Returns the memory that students need. After the teacher's pass, they step in turn."""
    batch = step_memory.batch(run, run.config.student.batch_size)
    number, by_batch = jax.ShapeDtypeStruct((), "int32"), mesh.batch_sharding(run.mesh)
    batch_bytes, augment_bytes = step_memory.of_step(setup.augment, number, batch)
    augmented = mesh.shapes(jax.eval_shape(setup.augment, number, batch), by_batch)
    targets, teacher_held, teacher_bytes = None, mesh.device_bytes(augmented.images), 0
    if grid.compute_targets:
        inputs = grid.shapes, augmented.images
        teacher_held, teacher_bytes = step_memory.of_step(grid.compute_targets, *inputs)
        targets = mesh.shapes(jax.eval_shape(grid.compute_targets, *inputs), by_batch)
    states = [_state_shapes(run, setup, point) for point in grid.one_per_loss]
    step_bytes = [
        step_memory.of_step(setup.step(point), state, *augmented, targets, point.hyperparameters)[1]
        for point, state in zip(grid.one_per_loss, states, strict=True)
    ]
    # The augmented images and the targets stay in memory during the students' steps.
    held = batch_bytes + teacher_held + mesh.device_bytes((augmented.labels, targets))
    passes = max(
        augment_bytes - mesh.device_bytes(augmented), teacher_bytes - mesh.device_bytes(targets)
    )
    each = max(map(mesh.device_bytes, states))
    return step_memory.Need(grid.stage, held, each, max(passes, *step_bytes))


def fitting(run: context.Run, need: step_memory.Need, students: int) -> int:
    """Returns how many students are trained at once: `config.student.group`, or all that fit.

    Students that differ only in their seed are always trained together.

    Raises:
        SettingError: If not even one fits.
    """
    if run.config.student.group:
        return min(run.config.student.group, students)
    available = run.memory() - run.dataset.resident_bytes - need.held - need.running
    seeds = len(run.config.student.seeds)
    settings, fit = students // seeds, int(available // need.each) // seeds
    if fit < 1:
        subject = "A student" if seeds == 1 else f"A student with each of {seeds} seeds"
        raise SettingError(
            f"{subject} of {stages.title(need.stage)} does not fit on the device: lower "
            "config.student.batch_size, "
            f"{'' if seeds == 1 else 'name fewer config.student.seeds, '}or set "
            "config.compute_dtype to bfloat16 or config.data.input to streamed."
        )
    groups = -(-settings // fit)
    return -(-settings // groups) * seeds  # As far as possible, all groups have one size.


def _state_shapes(run: context.Run, setup: StudentSetup, point: GridPoint) -> state.TrainState:
    return run.shapes(jax.eval_shape(lambda: setup.first_state(point)))


def size(run: context.Run, setup: StudentSetup, grid: StudentGrid) -> int:
    """Returns how many students are trained at once; the same in every start of a run."""
    students, chosen = len(grid.points), run.config.student.group
    if chosen:
        return min(chosen, students)
    # The recorded number is kept, because a checkpoint holds a whole group.
    recorded = results.read_for_all(run.workdir / _CHOSEN) or {}
    if grid.stage in recorded:
        return recorded[grid.stage]
    each = max(mesh.device_bytes(_state_shapes(run, setup, point)) for point in grid.one_per_loss)
    held = run.dataset.resident_bytes + mesh.device_bytes(grid.shapes)
    if held + students * each < _PLENTY * run.memory():
        return students
    fit = mesh.broadcast(fitting(run, need(run, setup, grid), students))
    results.write_for_all(run.workdir / _CHOSEN, recorded | {grid.stage: fit})
    logging.info("%s, at once: %d of %d.", stages.title(grid.stage), fit, students)
    return fit
