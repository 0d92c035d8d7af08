"""Guarantees of a run for every loss in `student_losses.LOSSES`, including new ones."""

from typing import Any

import jax
import numpy as np
import pytest

from remem_jax.models import projection
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.train.student_losses import LABELS, LOSSES
from remem_jax.workflow import context
from remem_jax.workflow.remem import (
    finetune,
    pipeline,
    student_grid,
    student_groups,
    student_setup,
    teacher_training,
)

BOTH = ("scratch", "finetune")
WITHOUT_LABELS = tuple(name for name, loss in LOSSES.items() if loss.without_labels)


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    """A run with students of every loss, trained for two steps."""
    config = small_run.config
    config.teacher.steps = (2,)
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.steps, config.student.evaluations = 2, 1
    config.student.losses = tuple(LOSSES)
    config.student.learning_rates = (0.05,)
    return small_run


def _from_scratch(run: context.Run, folder: str, *methods: str, **changes: Any) -> list[Any]:
    """Runs the methods and returns the records of the students from scratch."""
    copy = run._replace(workdir=run.workdir / folder)
    copy.config.methods = methods
    copy.config.student.update(changes)
    check_remem(copy.config)
    pipeline.run_remem(copy)
    recorded: Any = results.read(copy.workdir / "results.json")
    distilled = {student["loss"] for student in recorded["students"]} - {None}
    assert distilled == (set(copy.config.student.losses) if "finetune" in methods else set())
    for student in recorded["students"]:
        assert np.isfinite(student["validation"]["loss"]), student["loss"]
    return [student for student in recorded["students"] if student["loss"] is None]


@pytest.mark.slow
def test_students_from_scratch_do_not_depend_on_the_losses(run: context.Run) -> None:
    with_labels = _from_scratch(run, "with_labels", *BOTH, hard_labels=True)
    without = _from_scratch(run, "without_labels", *BOTH, hard_labels=False, losses=WITHOUT_LABELS)

    assert len(with_labels) == 1
    assert with_labels == without


@pytest.mark.slow
@pytest.mark.parametrize("hard_labels", [True, False])
def test_states_and_memory_include_the_projection_of_feature_losses(
    run: context.Run, hard_labels: bool
) -> None:
    names = tuple(LOSSES) if hard_labels else WITHOUT_LABELS
    run.config.student.hard_labels, run.config.student.losses = hard_labels, names
    run.config.methods = BOTH
    pretrained = finetune.read_pretrained(run)
    setup = student_setup.make(run, pretrained)
    first = teacher_training.start(run, pretrained, "finetune")
    variables = {"params": first.variables(first.trainable)["params"]}
    compute_targets = student_setup.make_targets(run, teacher_training.teacher_apply(run, first))
    grid = student_grid.make_grid(run, "students/finetune", compute_targets, variables)

    assert list(setup.steps) == [*names, LABELS.name]
    plain = _bytes(setup, LABELS.name)
    for loss in map(LOSSES.__getitem__, names):
        has_projection = projection.NAME in setup.shapes[loss.name].params
        assert has_projection == bool(loss.features)
        assert (_bytes(setup, loss.name) > plain) == bool(loss.features)
        (point,) = (point for point in grid.one_per_loss if point.loss == loss.name)
        need = student_groups.need(run, setup, grid._replace(points=[point]))
        assert need.each == _bytes(setup, loss.name)


def _bytes(setup: student_setup.StudentSetup, loss: str) -> int:
    """Returns the size of a student's state."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.shapes[loss]))


def test_losses_without_features_can_use_stored_outputs(run: context.Run) -> None:
    run.config.student.store_outputs = True
    run.config.student.losses = tuple(loss.name for loss in LOSSES.values() if not loss.features)

    check_remem(run.config)
