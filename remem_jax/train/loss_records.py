"""The record of a student loss, and how its function is called; the records: `student_losses`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from remem_jax.records import Labels, Outputs
from remem_jax.train import hard_labels as labelling

# Settings that a loss may depend on: config.student.temperatures, .weights and .flatten.
SETTINGS = ("temperature", "weight", "flatten")
ALL = frozenset(SETTINGS)
FEATURES = ("patches", "cls", "pooled", "layers")  # Fields of `Outputs`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """A loss, either with or without hard labels.

    Attributes:
        formula: Formula for the docs. CE is the cross-entropy of the labels, w the weight, T the
            temperature.
        settings: The `SETTINGS` that change its value. Students that differ only in others are
            trained once.
        excluded_weight: A weight at which the student, or its head, would learn nothing; None if
            all from 0 to 1 are allowed.
    """

    formula: str
    settings: frozenset[str] = ALL
    excluded_weight: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentLoss:
    """A loss that students minimise.

    Attributes:
        name: Its name in `config.student.losses` and in results.
        title: Its title in the docs.
        function: `(student, teacher, labels, *, temperature, weight, hard_labels) -> loss`, with
            `progress` if it is `scheduled`, and `classes` if it `needs_classes`. See `__call__`,
            which prepares its arguments.
        with_labels: Its form with `config.student.hard_labels`.
        without_labels: Its form without them, which depends on the teacher alone. None if the loss
            needs labels; settings then refuse `config.student.hard_labels=False`.
        features: The `FEATURES` that it compares besides the logits. Empty if it compares only
            logits.
        has_queue: Whether it compares `pooled` with a queue of the teacher's, its `queue`.
        scheduled: Whether it changes during training, with the argument `progress`.
        needs_classes: Whether it needs one class for each image, as the argument `classes`.
        zero_at_teacher: Whether, without hard labels, it is 0 for a student whose logits are the
            teacher's.
        in_paper: Whether the paper has it.
    """

    name: str
    title: str
    function: Callable[..., Float[Array, ""]]
    with_labels: Form
    without_labels: Form | None
    features: tuple[str, ...] = ()
    has_queue: bool = False
    scheduled: bool = False
    needs_classes: bool = False
    zero_at_teacher: bool
    in_paper: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError` if `features` is not a tuple of fields of `Outputs`."""
        if not set(self.features) <= set(FEATURES):
            raise ValueError(
                f"The features of the loss {self.name} must be a tuple of {', '.join(FEATURES)}; "
                f"got {self.features!r}."
            )
        if self.has_queue and "pooled" not in self.features:
            raise ValueError(f"The loss {self.name} has a queue, so its features need 'pooled'.")

    def form(self, hard_labels: bool) -> Form:
        """Returns the form of the loss with hard labels, or without.

        Raises:
            ValueError: If the loss needs labels and there are none.
        """
        form = self.with_labels if hard_labels else self.without_labels
        if form is None:
            raise ValueError(f"The loss {self.name} needs labels.")
        return form

    def __call__(
        self,
        student: Outputs,
        teacher: Outputs | None,
        labels: Labels,
        *,
        temperature: Float[Array, ""] | float,
        weight: Float[Array, ""] | float,
        hard_labels: bool,
        progress: Float[Array, ""] | float = 1.0,
        classes: Int[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """Computes the loss, with the arguments prepared for `function`.

        All outputs are cast to float32, and no gradient flows to the teacher. At weight 0, the
        teacher's outputs are replaced by zeros, because 0 times NaN is NaN. Its logits are
        replaced only with hard labels; without them, the student learns from nothing else.

        Args:
            student: Outputs of the student.
            teacher: Outputs of the teacher; None for students without one.
            labels: As in `losses.cross_entropy`.
            temperature: Above 0. May be traced.
            weight: From 0 to 1. May be traced.
            hard_labels: Whether labels are used.
            progress: Fraction of the training that is done after this step, above 0, at most 1.
                May be traced. Only `scheduled` losses use it.
            classes: The class of each image, for losses that need it. None is that of
                `hard_labels.classes`; those of labels that are weighted by their classes must be
                given. Without hard labels, it is the teacher's.

        Returns:
            The mean over the batch, in float32.

        Raises:
            ValueError: If student or teacher lack the features that the loss compares.
        """
        student, teacher = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
        for field in self.features:
            if any(getattr(outputs, field, None) is None for outputs in (student, teacher)):
                raise ValueError(f"The loss {self.name} needs {field} of student and teacher.")
        if self.has_queue and (teacher is None or teacher.queue is None):
            raise ValueError(f"The loss {self.name} needs the queue of the teacher.")
        if teacher is not None:
            weighted = jax.tree.map(
                lambda x: jnp.where(weight > 0, x, jnp.zeros_like(x)),
                jax.lax.stop_gradient(teacher),
            )
            teacher = weighted if hard_labels else weighted._replace(logits=teacher.logits)
        others: dict[str, Array | float] = {"progress": progress} if self.scheduled else {}
        if self.needs_classes and teacher is not None:
            if classes is None:
                classes = labelling.classes(labels, teacher.logits)
            others["classes"] = classes if hard_labels else jnp.argmax(teacher.logits, axis=-1)
        return self.function(
            student,
            teacher,
            labels,
            temperature=temperature,
            weight=weight,
            hard_labels=hard_labels,
            **others,
        )
