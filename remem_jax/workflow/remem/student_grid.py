"""The grids of students: every combination of hyperparameters, by method."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from remem_jax import models
from remem_jax.methods import METHODS
from remem_jax.records import HYPERPARAMETERS, Hyperparameters, TeacherApply, Variables
from remem_jax.train import student_losses
from remem_jax.workflow import context

LABELS = student_losses.LABELS.name  # The loss of students without a teacher.


class GridPoint(NamedTuple):
    """One student of a grid.

    Attributes:
        loss: Name of its loss: one of `student_losses.LOSSES`, or `LABELS`.
        hyperparameters: Its other hyperparameters.
        pretrained: Whether it starts from `config.student.init`.
    """

    loss: str
    hyperparameters: Hyperparameters
    pretrained: bool = False


class StudentGrid(NamedTuple):
    """The students of one method, for any of its teacher's checkpoints.

    Attributes:
        stage: Name of the method's stage of the run.
        points: The students.
        compute_targets: The teacher's outputs in evaluation mode, compiled once for all its
            checkpoints; None without a teacher.
        shapes: Shapes and shardings of the teacher's variables.
    """

    stage: str
    points: Sequence[GridPoint]
    compute_targets: TeacherApply | None
    shapes: Variables

    @property
    def one_per_loss(self) -> list[GridPoint]:
        """One student of each loss; students with the same loss share a compiled step."""
        return list({point.loss: point for point in self.points}.values())


def pretrained_rates(settings: ConfigDict) -> Sequence[float]:
    """Returns the learning rates of students from pretrained weights: those set, or defaults."""
    if settings.pretrained_learning_rates:
        return settings.pretrained_learning_rates
    return models.STUDENTS[settings.model].pretrained_rates[settings.optimizer]


def grid_points(settings: ConfigDict) -> list[GridPoint]:
    """Returns the grid of `config.student` for students with a teacher, without duplicates.

    If a loss does not use a hyperparameter, only its first value is in the grid.
    """
    pretrained = bool(settings.init)
    rates = pretrained_rates(settings) if pretrained else settings.learning_rates
    points = []
    for loss in settings.losses:
        used = student_losses.used(loss, hard_labels=settings.hard_labels)
        temperatures, weights = (
            values if name in used else values[:1]
            for name, values in (
                ("temperature", settings.temperatures),
                ("weight", settings.weights),
            )
        )
        points += [
            GridPoint(
                loss,
                Hyperparameters(float(rate), float(temperature), float(weight), seed),
                pretrained,
            )
            for rate in rates
            for temperature, weight in itertools.product(temperatures, weights)
            for seed in settings.seeds
        ]
    return points


def label_points(settings: ConfigDict, method: str) -> list[GridPoint]:
    """Returns the grid of `config.student` for a method without a teacher."""
    if METHODS[method].starts_random:
        rates = settings.scratch_learning_rates or settings.learning_rates
    else:
        rates = pretrained_rates(settings)
    return [
        GridPoint(
            LABELS, Hyperparameters(float(rate), 1.0, 0.0, seed), not METHODS[method].starts_random
        )
        for rate in rates
        for seed in settings.seeds
    ]


def points(settings: ConfigDict, method: str) -> list[GridPoint]:
    """Returns the grid of `config.student` for a method."""
    has_teacher = METHODS[method].has_teacher
    return grid_points(settings) if has_teacher else label_points(settings, method)


def hyperparameters(point: GridPoint, *, hard_labels: bool) -> dict[str, Any]:
    """Returns a student's hyperparameters for the results; None for those its loss does not use."""
    used = student_losses.used(point.loss, hard_labels=hard_labels)
    unused = {"temperature", "weight"} - used
    values = {name: getattr(point.hyperparameters, name) for name in HYPERPARAMETERS}
    return values | dict.fromkeys(unused)


def label_grid(run: context.Run, method: str) -> StudentGrid:
    """Builds the grid of a method without a teacher, whatever `config.student.hard_labels` is."""
    return StudentGrid(f"students/{method}", label_points(run.config.student, method), None, {})


def make_grid(
    run: context.Run, stage: str, compute_targets: TeacherApply, shapes: Variables
) -> StudentGrid:
    """Builds the grid that learns from the teachers of one method; see `StudentGrid`."""
    return StudentGrid(stage, grid_points(run.config.student), compute_targets, run.shapes(shapes))
