"""How many students are trained at once: all of a grid, or as many as fit on the device."""

import jax
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import results
from remem_jax.train import state
from remem_jax.workflow import memory, parts
from remem_jax.workflow.classroom import Classroom, Course, Point

_CHOSEN = "students/group.json"
_PLENTY = 0.25  # Of a device's memory: what takes less needs no closer look.


def need(run: parts.Run, classroom: Classroom, course: Course) -> memory.Need:
    """Memory that students take: each is stepped in turn, on one pass of the teacher."""
    batch = memory.batch(run, run.config.student.batch_size)
    number, by_batch = jax.ShapeDtypeStruct((), "int32"), mesh.batch_sharding(run.mesh)
    of_batch, of_view = memory.of_step(classroom.view_pass, number, batch)
    seen = mesh.shapes(jax.eval_shape(classroom.view_pass, number, batch), by_batch)
    answer, taught, of_answer = None, mesh.device_bytes(seen.images), 0
    if course.answer:
        taught, of_answer = memory.of_step(course.answer, course.shapes, seen.images)
        answer = mesh.shapes(jax.eval_shape(course.answer, course.shapes, seen.images), by_batch)
    states = [_state_shapes(run, classroom, point) for point in course.of_each_loss]
    of_steps = [
        memory.of_step(classroom.steps[point.loss], one, *seen, answer, point.settings)[1]
        for point, one in zip(course.of_each_loss, states, strict=True)
    ]
    # Images and answers are held while the students are stepped, and are what the passes give.
    held = of_batch + taught + mesh.device_bytes((seen.labels, answer))
    passes = max(of_view - mesh.device_bytes(seen), of_answer - mesh.device_bytes(answer))
    each = max(map(mesh.device_bytes, states))
    return memory.Need(course.part, held, each, max(passes, *of_steps))


def fitting(run: parts.Run, need: memory.Need, students: int) -> int:
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
            f"{one} of {need.part} does not fit on the device: lower config.student.batch_size, "
            f"{'' if seeds == 1 else 'name fewer config.student.seeds, '}or set "
            "config.compute_dtype to bfloat16 or config.data.input to streamed."
        )
    groups = -(-settings // fit)
    return -(-settings // groups) * seeds  # Of one size, as far as that goes.


def _state_shapes(run: parts.Run, classroom: Classroom, point: Point) -> state.State:
    return run.shapes(jax.eval_shape(lambda: classroom.first_state(point)))


def size(run: parts.Run, classroom: Classroom, course: Course) -> int:
    """How many students are trained at once, the same in every start of a run."""
    students, chosen = len(course.points), run.config.student.group
    if chosen:
        return min(chosen, students)
    # Another device may fit others, and a checkpoint holds a whole group.
    found = results.read_for_all(run.workdir / _CHOSEN) or {}
    if course.part in found:
        return found[course.part]
    each = max(
        mesh.device_bytes(_state_shapes(run, classroom, point)) for point in course.of_each_loss
    )
    held = run.dataset.resident_bytes + mesh.device_bytes(course.shapes)
    if held + students * each < _PLENTY * run.memory():
        return students
    fit = mesh.told_by_writer(fitting(run, need(run, classroom, course), students))
    results.write_for_all(run.workdir / _CHOSEN, found | {course.part: fit})
    logging.info("%s: %d students at once.", course.part, fit)
    return fit
