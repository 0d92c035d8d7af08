"""How many students are trained at once: all of a grid, or as many as fit on the device."""

import jax
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import results
from remem_jax.train import state
from remem_jax.workflow import context, step_memory
from remem_jax.workflow.remem.student_setup import GridPoint, StudentGrid, StudentSetup

_CHOSEN = "students/group.json"
_PLENTY = 0.25  # Of a device's memory: what takes less needs no closer look.


def need(run: context.Run, setup: StudentSetup, grid: StudentGrid) -> step_memory.Need:
    """Memory that students take: each is stepped in turn, on one pass of the teacher."""
    batch = step_memory.batch(run, run.config.student.batch_size)
    number, by_batch = jax.ShapeDtypeStruct((), "int32"), mesh.batch_sharding(run.mesh)
    of_batch, of_view = step_memory.of_step(setup.augment, number, batch)
    seen = mesh.shapes(jax.eval_shape(setup.augment, number, batch), by_batch)
    answer, taught, of_answer = None, mesh.device_bytes(seen.images), 0
    if grid.answer:
        taught, of_answer = step_memory.of_step(grid.answer, grid.shapes, seen.images)
        answer = mesh.shapes(jax.eval_shape(grid.answer, grid.shapes, seen.images), by_batch)
    states = [_state_shapes(run, setup, point) for point in grid.one_per_loss]
    of_steps = [
        step_memory.of_step(setup.steps[point.loss], one, *seen, answer, point.hyperparameters)[1]
        for point, one in zip(grid.one_per_loss, states, strict=True)
    ]
    # Images and answers are held while the students are stepped, and are what the passes give.
    held = of_batch + taught + mesh.device_bytes((seen.labels, answer))
    passes = max(of_view - mesh.device_bytes(seen), of_answer - mesh.device_bytes(answer))
    each = max(map(mesh.device_bytes, states))
    return step_memory.Need(grid.stage, held, each, max(passes, *of_steps))


def fitting(run: context.Run, need: step_memory.Need, students: int) -> int:
    """How many students are trained at once: as `config.student.group` says, or as many as fit.

    Those that differ in nothing but their seed are always trained together.

    Raises:
        SettingError: If not one fits.
    """
    if run.config.student.group:
        return min(run.config.student.group, students)
    there = run.memory() - run.dataset.resident_bytes - need.held - need.running
    seeds = len(run.config.student.seeds)
    settings, fit = students // seeds, int(there // need.each) // seeds
    if fit < 1:
        one = "A student" if seeds == 1 else f"A student with each of {seeds} seeds"
        raise SettingError(
            f"{one} of {need.stage} does not fit on the device: lower config.student.batch_size, "
            f"{'' if seeds == 1 else 'name fewer config.student.seeds, '}or set "
            "config.compute_dtype to bfloat16 or config.data.input to streamed."
        )
    groups = -(-settings // fit)
    return -(-settings // groups) * seeds  # Of one size, as far as that goes.


def _state_shapes(run: context.Run, setup: StudentSetup, point: GridPoint) -> state.State:
    return run.shapes(jax.eval_shape(lambda: setup.first_state(point)))


def size(run: context.Run, setup: StudentSetup, grid: StudentGrid) -> int:
    """How many students are trained at once, the same in every start of a run."""
    students, chosen = len(grid.points), run.config.student.group
    if chosen:
        return min(chosen, students)
    # Another device may fit others, and a checkpoint holds a whole group.
    found = results.read_for_all(run.workdir / _CHOSEN) or {}
    if grid.stage in found:
        return found[grid.stage]
    each = max(mesh.device_bytes(_state_shapes(run, setup, point)) for point in grid.one_per_loss)
    held = run.dataset.resident_bytes + mesh.device_bytes(grid.shapes)
    if held + students * each < _PLENTY * run.memory():
        return students
    fit = mesh.broadcast(fitting(run, need(run, setup, grid), students))
    results.write_for_all(run.workdir / _CHOSEN, found | {grid.stage: fit})
    logging.info("%s: %d students at once.", grid.stage, fit)
    return fit
