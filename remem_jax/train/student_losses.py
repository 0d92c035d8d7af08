"""The losses that students minimise: one record each, with everything about the loss.

`LOSSES` has them by name. To add a loss, add a record to this file: the checks of settings, the
grid of students, compiled steps, reports, the table in docs/students.md and the tests read the
records. See docs/extending/loss.md.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import losses
from remem_jax.records import Labels, Outputs

# Settings that a loss may depend on: config.student.temperatures, .weights and .flatten.
SETTINGS = ("temperature", "weight", "flatten")
ALL = frozenset(SETTINGS)


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
        function: `(student, teacher, labels, *, temperature, weight, hard_labels) -> loss`. See
            `__call__`, which prepares its arguments.
        with_labels: Its form with `config.student.hard_labels`.
        without_labels: Its form without them, which depends on the teacher alone. None if the loss
            needs labels; settings then refuse `config.student.hard_labels=False`.
        features: The field of `Outputs` that it compares besides the logits: "patches" or "cls".
            None if it compares only logits.
        zero_at_teacher: Whether, without hard labels, it is 0 for a student whose logits are the
            teacher's.
        in_paper: Whether the paper has it.
    """

    name: str
    title: str
    function: Callable[..., Float[Array, ""]]
    with_labels: Form
    without_labels: Form | None
    features: str | None = None
    zero_at_teacher: bool
    in_paper: bool = False

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

        Returns:
            The mean over the batch, in float32.

        Raises:
            ValueError: If student or teacher lack the features that the loss compares.
        """
        student, teacher = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
        if self.features and any(
            getattr(outputs, self.features, None) is None for outputs in (student, teacher)
        ):
            raise ValueError(f"The loss {self.name} needs {self.features} of student and teacher.")
        if teacher is not None:
            weighted = jax.tree.map(
                lambda x: jnp.where(weight > 0, x, jnp.zeros_like(x)),
                jax.lax.stop_gradient(teacher),
            )
            teacher = weighted if hard_labels else weighted._replace(logits=teacher.logits)
        return self.function(
            student,
            teacher,
            labels,
            temperature=temperature,
            weight=weight,
            hard_labels=hard_labels,
        )


LOSSES: dict[str, StudentLoss] = {}


def register(loss: StudentLoss) -> None:
    """Adds a loss to `LOSSES`.

    Raises:
        ValueError: If its name is taken, which would replace the loss of other students.
    """
    if loss.name in LOSSES or loss.name == LABELS.name:
        raise ValueError(f"There is a loss named {loss.name!r} already; choose another name.")
    LOSSES[loss.name] = loss


def fields(names: Collection[str]) -> tuple[str, ...]:
    """Returns the fields of `Outputs` that the named losses compare besides the logits."""
    return tuple(sorted({LOSSES[name].features or "" for name in names} - {""}))


def used(name: str, *, hard_labels: bool) -> frozenset[str]:
    """Returns the `SETTINGS` that change the value of a loss, or of `LABELS`."""
    loss = LABELS if name == LABELS.name else LOSSES[name]
    return loss.form(hard_labels).settings


def _cross_entropy(
    student: Outputs, teacher: None, labels: Labels, **settings: object
) -> Float[Array, ""]:
    """Computes the cross-entropy of the labels; ignores `hard_labels`, as there is no teacher."""
    del teacher, settings
    return losses.cross_entropy(student.logits, labels)


_LABELS_ALONE = Form(formula="CE", settings=frozenset())
# Not in `LOSSES`: the loss of students without a teacher, for methods that have none.
LABELS = StudentLoss(
    name="labels",
    title="Labels alone",
    function=_cross_entropy,
    with_labels=_LABELS_ALONE,
    without_labels=_LABELS_ALONE,
    zero_at_teacher=False,
    in_paper=True,
)


def _kd(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
) -> Float[Array, ""]:
    """Computes KD; without hard labels T**2 * KL, for any weight (pure function matching)."""
    if not hard_labels:
        return losses.distillation(student.logits, teacher.logits, temperature)
    return losses.knowledge_distillation(
        student.logits, teacher.logits, labels, temperature=temperature, weight=weight
    )


register(
    StudentLoss(
        name="kd",
        title="Knowledge distillation",
        function=_kd,
        with_labels=Form(formula="(1 - w) CE + w T² KL(teacher, student)"),
        without_labels=Form(formula="T² KL", settings=ALL - {"weight"}),
        zero_at_teacher=True,
        in_paper=True,
    )
)


def _dist(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    masked: bool,
) -> Float[Array, ""]:
    """Computes DIST; without hard labels only weight * (inter + intra)."""
    logits = student.logits, teacher.logits
    if hard_labels:
        return losses.dist_distillation(
            *logits, labels, temperature=temperature, weight=weight, masked=masked
        )
    terms = losses.dist(*logits, temperature, inter_weight=1.0, intra_weight=1.0, masked=masked)
    return weight * terms


register(
    StudentLoss(
        name="dist",
        title="DIST",
        function=functools.partial(_dist, masked=False),
        with_labels=Form(formula="CE + w (inter + intra)"),
        without_labels=Form(formula="w (inter + intra)", excluded_weight=0.0),
        zero_at_teacher=False,  # Because of its epsilon; see `losses.dist`.
        in_paper=True,
    )
)
register(
    StudentLoss(
        name="dist_masked",
        title="DIST without its epsilon",
        function=functools.partial(_dist, masked=True),
        with_labels=Form(formula="CE + w (inter + intra)"),
        without_labels=Form(formula="w (inter + intra)", excluded_weight=0.0),
        zero_at_teacher=True,
    )
)


def _features(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    field: str,
) -> Float[Array, ""]:
    """Compares features; the head learns from labels or, without them, the teacher's logits."""
    if hard_labels:
        head_loss = losses.cross_entropy(student.logits, labels)
    else:
        head_loss = losses.distillation(student.logits, teacher.logits, temperature)
    feature_loss = losses.features(getattr(student, field), getattr(teacher, field))
    return (1 - weight) * head_loss + weight * feature_loss


_WITH_LABELS = Form(
    formula="(1 - w) CE + w MSE(features)", settings=frozenset({"weight"}), excluded_weight=1.0
)
_WITHOUT_LABELS = Form(formula="(1 - w) T² KL + w MSE(features)", excluded_weight=1.0)
register(
    StudentLoss(
        name="features",
        title="The teacher's patch tokens",
        function=functools.partial(_features, field="patches"),
        with_labels=_WITH_LABELS,
        without_labels=_WITHOUT_LABELS,
        features="patches",
        zero_at_teacher=False,
    )
)
register(
    StudentLoss(
        name="features_cls",
        title="The teacher's [CLS] token",
        function=functools.partial(_features, field="cls"),
        with_labels=_WITH_LABELS,
        without_labels=_WITHOUT_LABELS,
        features="cls",
        zero_at_teacher=False,
    )
)


def _kd_standardised(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
) -> Float[Array, ""]:
    """Computes KD of student's and teacher's logits, both standardised over the classes.

    Source: Sun et al. 2024, https://arxiv.org/abs/2403.01732.
    """
    soft = losses.distillation(
        losses.standardise(student.logits), losses.standardise(teacher.logits), temperature
    )
    if not hard_labels:
        return soft
    return (1 - weight) * losses.cross_entropy(student.logits, labels) + weight * soft


register(
    StudentLoss(
        name="kd_standardised",
        title="KD of standardised logits",
        function=_kd_standardised,
        with_labels=Form(
            formula="(1 - w) CE + w T² KL(standardised teacher, standardised student)",
            settings=ALL - {"flatten"},
        ),
        without_labels=Form(
            formula="T² KL(standardised teacher, standardised student)",
            settings=frozenset({"temperature"}),
        ),
        zero_at_teacher=True,
    )
)
