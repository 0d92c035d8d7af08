"""Many students on one teacher pass.

The teacher runs once per batch; then one compiled student step is called once per student, with
the images and the teacher's logits already on the device and the student's settings as traced
values. Students trained together equal students trained alone. (vmap over the students would
turn their convolutions into grouped ones, which are 2 to 25 times slower.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from remem_jax.records import Apply, Batch, Key, Labels, Metrics, Settings, Variables, View
from remem_jax.train.state import State
from remem_jax.train.steps import StudentStep, mixed_view

States = tuple[State, ...]


class Lesson(NamedTuple):
    """What all students of a step learn from.

    Attributes:
        images: As the models take them.
        labels: Indices of the classes, or shares of them where images are mixed.
        teacher_logits: The teacher's answers to the same images.
    """

    images: Float[Array, "batch height width channel"]
    labels: Labels
    teacher_logits: Float[Array, "batch klass"]


TeacherPass = Callable[[Variables, Int[Array, ""], Batch], Lesson]


def make_teacher_pass(apply: Apply, view: View, *, key: Key, mixup: float = 0.0) -> TeacherPass:
    """Builds the pass that makes a lesson of a batch.

    Args:
        apply: The teacher in evaluation mode; see `no_teacher` for training from scratch.
        view: Makes model inputs of stored images, the same for teacher and students.
        key: Root of the run's randomness.
        mixup: See `steps.mixed_view`; teacher and students see the same mixtures.

    Returns:
        A pure function `(teacher variables, step, batch) -> lesson`.
    """

    def teacher_pass(variables: Variables, step: Int[Array, ""], batch: Batch) -> Lesson:
        images, labels = mixed_view(view, jax.random.fold_in(key, step), batch, mixup)
        logits = apply(variables, images)
        return Lesson(images, labels(logits.shape[-1]), logits)

    return teacher_pass


def make_step(
    teacher_pass: TeacherPass,
    teacher: Variables,
    student_step: StudentStep,
    settings: Sequence[Settings],
) -> Callable[[States, Batch], tuple[States, Metrics]]:
    """Builds the step of all students of a grid.

    Args:
        teacher_pass: From `make_teacher_pass`, jitted.
        teacher: Variables of the teacher.
        student_step: From `steps.make_student_step`, jitted once for all students.
        settings: One per student.

    Returns:
        A step over the tuple of the students' states, all at the same step; not to be jitted.
        Its metrics are lists of one value per student.
    """

    def step(students: States, batch: Batch) -> tuple[States, Metrics]:
        lesson = teacher_pass(teacher, students[0].step, batch)
        taught = [
            student_step(student, *lesson, own)
            for student, own in zip(students, settings, strict=True)
        ]
        return tuple(student for student, _ in taught), {
            "loss": [metrics["loss"] for _, metrics in taught]
        }

    return step
