"""Logs the memory that the stages of a run need, before it runs (config.plan_only)."""

import jax
from absl import logging

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.workflow import advice, context, memory_plan, stages, step_memory
from remem_jax.workflow.information import decoders, measurement
from remem_jax.workflow.remem import (
    finetune,
    student_grid,
    student_groups,
    student_setup,
    teacher_training,
)

_GIB = 2**30


def show(
    run: context.Run, pretrained: finetune.Pretrained | None, members: student_setup.StudentSetup
) -> list[step_memory.Need]:
    """Logs the memory that every stage of a run needs.

    Raises:
        SettingError: If a stage needs more memory than the device has.
    """
    resident = run.dataset.resident_bytes
    needs = []
    for method in run.config.methods:
        if pretrained and METHODS[method].has_teacher:
            needs.append(_of_teacher(run, pretrained, method))
            if run.config.information.seeds:
                needs.append(_of_decoders(run, pretrained, method))
        needs.append(_of_students(run, pretrained, members, method))
    logging.info("The data set takes %.2f GiB on the device.", resident / _GIB)
    for need in needs:
        logging.info(
            "%s: %.2f GiB held, %.2f more while a step runs%s.",
            stages.title(need.stage),
            need.at_rest / _GIB,
            need.running / _GIB,
            f" ({need.models} students at once)" if need.models > 1 else "",
        )
    largest = max(needs, key=lambda need: need.at_rest + need.running)
    total, available = resident + largest.at_rest + largest.running, run.memory()
    logging.info("At most %.2f GiB of %.2f on the device.", total / _GIB, available / _GIB)
    if total > available:
        raise SettingError(
            f"{stages.title(largest.stage)} and the data set take {total / _GIB:.2f} GiB, the "
            f"device has {available / _GIB:.2f}: lower the batch_size of config.teacher or "
            "config.student or config.student.group, or set config.teacher.rematerialise, "
            "config.teacher.accumulate, "
            "config.fsdp, config.compute_dtype to bfloat16, or config.data.input to streamed."
        )
    return needs


def _of_teacher(run: context.Run, pretrained: finetune.Pretrained, method: str) -> step_memory.Need:
    start = teacher_training.start(run, pretrained, method)
    return of_step(run, teacher_training.planned_step(run, method, start))


def _of_decoders(
    run: context.Run, pretrained: finetune.Pretrained, method: str
) -> step_memory.Need:
    start = teacher_training.start(run, pretrained, method)
    variables = run.shapes(jax.eval_shape(start.teacher, start.trainable))
    patches = measurement.with_patches(run, teacher_training.patches_apply(start))
    steps = teacher_training.settings_of(run.config, method).steps
    teachers = [decoders.Teacher(f"step {at}", patches, variables) for at in steps]
    return of_step(run, decoders.planned_step(run, f"information/{method}", teachers))


def of_step(run: context.Run, step: memory_plan.Step) -> step_memory.Need:
    """Logs the memory of each plan of a training step; returns that of the chosen plan."""
    options, chosen = memory_plan.listed(run, step)
    for option in options:
        mark = " (chosen)" if option == chosen else ""
        logging.info("%s, a step that %s%s.", stages.title(step.stage), option, mark)
    plan = chosen.plan if chosen else step.plans[-1]
    with advice.on_out_of_memory(step.stage):
        held, running = step.needs(plan)
    each = step.at_rest - mesh.device_bytes(step.frozen)
    return step_memory.Need(step.stage, held - each, each, running)


def _of_students(
    run: context.Run,
    pretrained: finetune.Pretrained | None,
    members: student_setup.StudentSetup,
    method: str,
) -> step_memory.Need:
    if pretrained is None or not METHODS[method].has_teacher:
        grid = student_grid.label_grid(run, method)
    else:
        start = teacher_training.start(run, pretrained, method)
        merged = jax.eval_shape(start.teacher, start.trainable)
        targets = student_setup.make_targets(run, teacher_training.teacher_apply(run, start))
        grid = student_grid.make_grid(run, f"students/{method}", targets, merged)
    need = student_groups.need(run, members, grid)
    return need._replace(models=student_groups.fitting(run, need, len(grid.points)))
