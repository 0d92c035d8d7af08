"""The losses that students minimise: one record each, with everything about the loss.

`LOSSES` has them by name; those of features are in `feature_losses`. To add a loss, add a record to
this file: the checks of settings, the grid of students, compiled steps, reports, the table in
docs/students.md and the tests read the records. See docs/extending/loss.md.
"""

import functools
from collections.abc import Collection

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from remem_jax import losses
from remem_jax.records import Labels, Outputs
from remem_jax.train import feature_losses
from remem_jax.train.loss_records import ALL as ALL
from remem_jax.train.loss_records import SETTINGS as SETTINGS
from remem_jax.train.loss_records import Form as Form
from remem_jax.train.loss_records import StudentLoss as StudentLoss

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
    return tuple(sorted({field for name in names for field in LOSSES[name].features}))


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


for _feature_loss in feature_losses.RECORDS:
    register(_feature_loss)


def _kd_standardised(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    factor: float,
) -> Float[Array, ""]:
    """Computes KD of student's and teacher's logits, both standardised over the classes.

    At w = 0.9 it is 0.1 CE + 9 T**2 KL, as in the authors' code. Without hard labels it is the
    second term at w = 1, for any weight.

    Source: Sun et al. 2024, https://arxiv.org/abs/2403.01732; the weights are those of its code.
    """
    soft = factor * losses.distillation(
        losses.standardise(student.logits), losses.standardise(teacher.logits), temperature
    )
    if not hard_labels:
        return soft
    return (1 - weight) * losses.cross_entropy(student.logits, labels) + weight * soft


_STANDARDISED = "10 T² KL(standardised teacher, standardised student)"
register(
    StudentLoss(
        name="kd_standardised",
        title="KD of standardised logits",
        function=functools.partial(_kd_standardised, factor=10.0),
        with_labels=Form(formula=f"(1 - w) CE + w {_STANDARDISED}", settings=ALL - {"flatten"}),
        without_labels=Form(formula=_STANDARDISED, settings=frozenset({"temperature"})),
        zero_at_teacher=True,
    )
)


_OTHER_CLASSES = 8.0  # The authors' weight of the other classes (beta); that of the class is 1.
_WARMUP = 20 / 240  # Length of the authors' warm-up, as a fraction of their epochs.


def _decoupled_kd(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    progress: Float[Array, ""] | float,
    classes: Int[Array, " batch"],
) -> Float[Array, ""]:
    """Computes decoupled KD, whose terms of the teacher grow linearly to w in the warm-up.

    At w = 1 it is the authors' loss. Without hard labels it is that without the cross-entropy, for
    any weight.

    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679; the warm-up is in its code only.
    """
    soft = jnp.minimum(progress / _WARMUP, 1.0) * losses.decoupled(
        student.logits,
        teacher.logits,
        classes,
        temperature,
        target_weight=1.0,
        other_weight=_OTHER_CLASSES,
    )
    return losses.cross_entropy(student.logits, labels) + weight * soft if hard_labels else soft


_DECOUPLED = "min(12 t, 1) T² (KL(class or not) + 8 KL(other classes))"
register(
    StudentLoss(
        name="kd_decoupled",
        title="Decoupled KD",
        function=_decoupled_kd,
        with_labels=Form(formula=f"CE + w {_DECOUPLED}"),
        without_labels=Form(formula=_DECOUPLED, settings=ALL - {"weight"}),
        scheduled=True,
        needs_classes=True,
        zero_at_teacher=True,
    )
)
