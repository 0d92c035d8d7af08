"""What a run takes of a device's memory, found by compiling its steps and running none."""

from typing import Any, NamedTuple

import jax
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.data import device
from remem_jax.settings import METHODS
from remem_jax.workflow import distill, finetune, parts

_GIB = 2**30


class Need(NamedTuple):
    """Memory of one part of a run, in bytes per device.

    Attributes:
        part: Its name.
        held: Between steps: parameters, state of the optimiser, images of a batch.
        running: More than that, while a step runs.
    """

    part: str
    held: int
    running: int


def show(
    run: parts.Run, pretrained: finetune.Pretrained, classroom: distill.Classroom
) -> list[Need]:
    """Says what every part of a run takes.

    Raises:
        SettingError: If one of them takes more than the device has.
    """
    resident = run.dataset.resident_bytes
    needs = []
    for method in run.config.methods:
        if METHODS[method] is not None:
            needs.append(_of_teacher(run, pretrained, method))
        needs.append(_of_students(run, pretrained, classroom, method))
    logging.info("The data set takes %.2f GiB on the device.", resident / _GIB)
    for need in needs:
        logging.info(
            "%s: %.2f GiB held, %.2f more while a step runs.",
            need.part,
            need.held / _GIB,
            need.running / _GIB,
        )
    largest = max(needs, key=lambda need: need.held + need.running)
    total, there = resident + largest.held + largest.running, device.memory()
    logging.info("At most %.2f GiB of %.2f on the device.", total / _GIB, there / _GIB)
    if total > there:
        raise SettingError(
            f"{largest.part} and the data set take {total / _GIB:.2f} GiB, the device has "
            f"{there / _GIB:.2f}: lower the batch_size of config.teacher or config.student or the "
            "number of students (learning_rates, temperatures, weights), or set "
            "config.teacher.rematerialise, config.compute_dtype to bfloat16, or config.data.input "
            "to streamed."
        )
    return needs


def _of_teacher(run: parts.Run, pretrained: finetune.Pretrained, method: str) -> Need:
    settings = finetune.settings_of(run.config, method)
    first = finetune.start(run, pretrained, method)
    training = finetune.make_training(run, settings, first)
    state = run.shapes(jax.eval_shape(training.first_state))
    arguments = state, _batch(run, settings.batch_size), first.frozen
    held, running = _step(training.step, *arguments)
    return Need(f"teachers/{method}", held, running)


def _of_students(
    run: parts.Run, pretrained: finetune.Pretrained, classroom: distill.Classroom, method: str
) -> Need:
    """All students of a teacher: each is stepped in turn, on one pass of the teacher."""
    settings = run.config.student
    if METHODS[method] is None:
        apply, teacher = distill.no_teacher(run), {}
        students = len(settings.learning_rates)
    else:
        first = finetune.start(run, pretrained, method)
        apply = finetune.evaluation_apply(first)
        merged = jax.eval_shape(
            lambda: {"params": first.tuned.merge(first.variables(first.trainable)["params"])}
        )
        teacher = run.shapes(merged)
        students = len(distill.grid(settings))
    lessons = distill.make_lessons(run, classroom, apply)
    one = run.shapes(jax.eval_shape(classroom.first_state))
    batch = _batch(run, settings.batch_size)
    step = jax.ShapeDtypeStruct((), "int32")
    of_lesson = jax.eval_shape(lessons, teacher, step, batch)
    lesson = mesh.shapes(of_lesson, mesh.batch_sharding(run.mesh))
    taught, of_pass = _step(lessons, teacher, step, batch)
    _, of_step = _step(classroom.step, one, *lesson, distill.Settings(0.1, 1.0, 0.5))
    of_lesson = mesh.device_bytes(lesson)
    held = taught + of_lesson + students * mesh.device_bytes(one)
    return Need(f"students/{method}", held, max(of_pass - of_lesson, of_step))


def _step(jitted: Any, *arguments: Any) -> tuple[int, int]:
    """Bytes, on each device, of a function's arguments and of what else it takes while it runs."""
    found = jitted.lower(*arguments).compile().memory_analysis()
    more = found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    return found.argument_size_in_bytes, more


def _batch(run: parts.Run, batch_size: int) -> Any:
    """Shapes of a batch of training."""
    batches = run.feed.train(batch_size, 0)
    try:
        return mesh.shapes(next(batches), mesh.batch_sharding(run.mesh))
    finally:
        batches.close()
