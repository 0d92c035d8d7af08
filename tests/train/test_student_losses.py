"""Student losses: properties of every record in `student_losses.LOSSES`, and each formula."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util
from jaxtyping import Array, Float, Int
from scipy import special
from sklearn import metrics

from remem_jax import losses
from remem_jax.records import Outputs
from remem_jax.train import student_losses
from remem_jax.train.student_losses import LABELS, LOSSES, StudentLoss
from tests.oracles import losses_torch, peers
from tests.train import drawn

EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
WITHOUT_LABELS = {name: loss for name, loss in LOSSES.items() if loss.without_labels}
EACH_WITHOUT_LABELS = pytest.mark.parametrize("loss", WITHOUT_LABELS.values(), ids=WITHOUT_LABELS)
EACH_FORM = pytest.mark.parametrize(
    ("loss", "hard_labels"),
    [
        pytest.param(loss, hard_labels, id=f"{loss.name}-{hard_labels}")
        for loss in LOSSES.values()
        for hard_labels in ((True, False) if loss.without_labels else (True,))
    ],
)
AT_TEACHER = {name: loss for name, loss in LOSSES.items() if loss.zero_at_teacher}
HARD = pytest.mark.parametrize("hard_labels", [True, False])
SETTINGS: dict[str, Any] = {"temperature": 2.0, "weight": 0.7}


@pytest.fixture
def outputs(rng: np.random.Generator) -> tuple[Outputs, Outputs]:
    """The outputs of a student and of a teacher, with all features."""
    return drawn.outputs(rng)


@pytest.fixture
def labels() -> Int[Array, " batch"]:
    return jnp.asarray([0, 2, 1, 1, 0], jnp.int32)


def value_and_grad(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, **settings: Any
) -> Any:
    """Computes a loss and its gradient with respect to the student's outputs."""
    student, teacher = outputs
    return jax.value_and_grad(lambda student: loss(student, teacher, labels, **settings))(student)


@EACH_FORM
def test_the_loss_is_a_finite_scalar_that_gradient_descent_reduces(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    settings = {"hard_labels": hard_labels, **SETTINGS}

    value, grads = value_and_grad(loss, outputs, labels, **settings)

    assert value.shape == ()
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    lower = jax.tree.map(lambda x, grad: x - 1e-2 * grad, outputs[0], grads)
    assert loss(lower, outputs[1], labels, **settings) < value


@EACH_FORM
def test_the_gradient_matches_finite_differences(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    def value(student: Outputs) -> Array:
        student = jax.tree.map(jnp.asarray, student)
        return loss(student, outputs[1], labels, hard_labels=hard_labels, **SETTINGS)

    test_util.check_grads(value, (outputs[0],), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("loss", AT_TEACHER.values(), ids=AT_TEACHER)
def test_the_loss_is_zero_at_the_teacher_if_the_record_claims_it(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    teacher = outputs[1]

    value, grads = value_and_grad(loss, (teacher, teacher), labels, hard_labels=False, **SETTINGS)

    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(grads.logits, 0.0, atol=1e-6)


@EACH_WITHOUT_LABELS
def test_without_hard_labels_the_loss_ignores_labels(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    settings = {"hard_labels": False, **SETTINGS}

    actual = value_and_grad(loss, outputs, labels, **settings)

    expected = value_and_grad(loss, outputs, (labels + 1) % 3, **settings)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@EACH
def test_labels_may_be_class_probabilities(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    settings = {"hard_labels": True, **SETTINGS}

    actual = value_and_grad(loss, outputs, jax.nn.one_hot(labels, 3), **settings)

    expected = value_and_grad(loss, outputs, labels, **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected)


@pytest.mark.parametrize("finite", [True, False])
@EACH
def test_at_weight_0_the_loss_is_the_cross_entropy_even_if_the_teacher_is_nan(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, finite: bool
) -> None:
    student, teacher = outputs
    if not finite:
        teacher = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), teacher)
    expected = jax.value_and_grad(losses.cross_entropy)(student.logits, labels)

    actual, grads = value_and_grad(
        loss, (student, teacher), labels, temperature=4.0, weight=0.0, hard_labels=True
    )

    for a, b in zip((actual, grads.logits), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@EACH_FORM
def test_no_gradient_reaches_the_teacher(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    def loss_of_teacher(teacher: Outputs) -> Array:
        return loss(outputs[0], teacher, labels, hard_labels=hard_labels, **SETTINGS)

    grads = jax.grad(loss_of_teacher)(outputs[1])

    jax.tree.map(lambda grad: np.testing.assert_array_equal(grad, 0.0), grads)


@EACH_FORM
def test_temperature_and_weight_may_be_traced(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    grid = jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([0.1, 0.5, 1.0])

    def value(temperature: Float[Array, ""] | float, weight: Float[Array, ""] | float) -> Array:
        return loss(
            *outputs, labels, temperature=temperature, weight=weight, hard_labels=hard_labels
        )

    expected = [
        value(float(temperature), float(weight)) for temperature, weight in zip(*grid, strict=True)
    ]

    actual = jax.jit(jax.vmap(value))(*grid)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@EACH_FORM
def test_half_precision_outputs_are_compared_in_float32(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    settings = {"hard_labels": hard_labels, **SETTINGS}
    student, teacher = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)

    actual = loss(student, teacher, labels, **settings)

    student, teacher = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
    assert actual.dtype == jnp.float32
    assert actual == loss(student, teacher, labels, **settings)


@EACH_FORM
@pytest.mark.parametrize("setting", student_losses.SETTINGS)
def test_a_setting_changes_the_loss_if_and_only_if_the_record_lists_it(
    loss: StudentLoss,
    outputs: tuple[Outputs, Outputs],
    labels: Array,
    hard_labels: bool,
    setting: str,
) -> None:
    def value(**changes: float) -> Float[Array, ""]:
        settings: dict[str, Any] = SETTINGS | {"flatten": 1.0} | changes
        student, teacher = outputs
        teacher = teacher._replace(logits=teacher.logits / settings.pop("flatten"))
        return loss(student, teacher, labels, hard_labels=hard_labels, **settings)

    used = student_losses.used(loss.name, hard_labels=hard_labels)

    changed = not np.isclose(value(), value(**{setting: 0.5}), rtol=1e-6)

    assert used <= set(student_losses.SETTINGS)
    assert changed == (setting in used)


@EACH_FORM
def test_an_excluded_weight_would_leave_the_head_without_gradient(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    for weight in (0.0, 1.0):
        settings = {"temperature": 2.0, "weight": weight, "hard_labels": hard_labels}
        _, grads = value_and_grad(loss, outputs, labels, **settings)
        learns = bool(np.any(grads.logits))
        assert learns == (loss.form(hard_labels).excluded_weight != weight)


@EACH_FORM
def test_a_loss_needs_exactly_the_features_of_its_record(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    needed = {"logits", *loss.features, *(["queue"] if loss.has_queue else [])}
    unused = dict.fromkeys(set(Outputs._fields) - needed)
    student, teacher = (output._replace(**unused) for output in outputs)
    settings = {"hard_labels": hard_labels, **SETTINGS}

    assert loss(student, teacher, labels, **settings) == loss(*outputs, labels, **settings)

    if loss.features:
        plain = Outputs(student.logits)
        for incomplete in ((plain, teacher), (student, plain)):
            with pytest.raises(ValueError, match=f"{loss.name} needs {loss.features[0]}"):
                loss(*incomplete, labels, **settings)
    if loss.has_queue:
        with pytest.raises(ValueError, match=f"{loss.name} needs the queue"):
            loss(student, teacher._replace(queue=None), labels, **settings)


@EACH
def test_a_record_is_listed_under_its_name(loss: StudentLoss) -> None:
    assert LOSSES[loss.name] is loss
    # The claim is about the form without labels.
    assert loss.without_labels or not loss.zero_at_teacher


def test_a_loss_that_needs_labels_has_no_form_without_them() -> None:
    loss = dataclasses.replace(LOSSES["kd"], without_labels=None)

    assert loss.form(True) is loss.with_labels
    with pytest.raises(ValueError, match="The loss kd needs labels"):
        loss.form(False)


def test_the_features_of_a_record_are_a_tuple_of_fields() -> None:
    with pytest.raises(ValueError, match="features of the loss kd must be a tuple of patches"):
        dataclasses.replace(LOSSES["kd"], features=("patch",))
    with pytest.raises(ValueError, match="kd has a queue, so its features need 'pooled'"):
        dataclasses.replace(LOSSES["kd"], features=("cls",), has_queue=True)


@EACH_FORM
def test_a_loss_depends_on_the_progress_if_and_only_if_it_is_scheduled(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    early, late = (
        loss(*outputs, labels, hard_labels=hard_labels, progress=progress, **SETTINGS)
        for progress in (0.01, 1.0)
    )

    assert bool(early != late) == loss.scheduled


@pytest.mark.parametrize("name", ["kd", LABELS.name])
def test_a_loss_cannot_replace_another_or_that_of_students_from_scratch(name: str) -> None:
    record = StudentLoss(
        name=name,
        title="",
        function=LABELS.function,
        with_labels=LABELS.with_labels,
        without_labels=LABELS.without_labels,
        zero_at_teacher=False,
    )

    with pytest.raises(ValueError, match=f"There is a loss named '{name}'"):
        student_losses.register(record)


@HARD
def test_the_loss_of_students_from_scratch_matches_scikit_learn(
    outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    student = outputs[0]
    shares = special.softmax(np.asarray(student.logits, np.float64), axis=-1)

    actual = LABELS(student, None, labels, temperature=1.0, weight=0.0, hard_labels=hard_labels)

    assert actual == pytest.approx(metrics.log_loss(labels, shares), rel=1e-5)


def test_fields_lists_the_features_that_any_loss_compares() -> None:
    assert student_losses.fields(("kd", "dist")) == ()
    assert student_losses.fields(("features", "kd")) == ("patches",)
    assert student_losses.fields(("features", "features_cls")) == ("cls", "patches")


@HARD
def test_kd_matches_the_paper(
    outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    student, teacher = outputs
    if hard_labels:
        expected = losses.knowledge_distillation(student.logits, teacher.logits, labels, **SETTINGS)
    else:
        expected = losses.distillation(student.logits, teacher.logits, temperature=2.0)

    actual = LOSSES["kd"](*outputs, labels, hard_labels=hard_labels, **SETTINGS)

    assert actual == expected


def soft_and_hard(
    name: str, outputs: tuple[Outputs, Outputs], labels: Array, **settings: Any
) -> tuple[Any, Any]:
    """Returns the value and the gradient of the logits of a loss without and with hard labels."""
    values = []
    for hard_labels in (False, True):
        value, grads = value_and_grad(
            LOSSES[name], outputs, labels, hard_labels=hard_labels, **SETTINGS, **settings
        )
        values.append((value, grads.logits))
    return values[0], values[1]


def cross_entropy_of(outputs: tuple[Outputs, Outputs], labels: Array) -> tuple[Any, Any]:
    """Returns torch's cross-entropy and its gradient."""
    torch = peers.torch()
    return losses_torch.value_and_grads(
        lambda s: torch.nn.functional.cross_entropy(s, torch.tensor(np.asarray(labels)).long()),
        outputs[0].logits,
    )


def test_standardised_kd_and_its_gradient_match_torch_with_the_authors_weights(
    outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    teacher = losses_torch.tensor(outputs[1].logits)
    soft, (soft_grad,) = losses_torch.value_and_grads(
        lambda s: losses_torch.standardised_kd(s, teacher, 2.0), outputs[0].logits
    )
    hard, (hard_grad,) = cross_entropy_of(outputs, labels)

    without, _ = soft_and_hard("kd_standardised", outputs, labels)
    actual, grads = value_and_grad(
        LOSSES["kd_standardised"], outputs, labels, temperature=2.0, weight=0.9, hard_labels=True
    )

    np.testing.assert_allclose(without[0], 10 * soft, rtol=1e-5)
    np.testing.assert_allclose(without[1], 10 * soft_grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual, 0.1 * hard + 9 * soft, rtol=1e-5)
    np.testing.assert_allclose(grads.logits, 0.1 * hard_grad + 9 * soft_grad, rtol=1e-4, atol=1e-5)


@HARD
@pytest.mark.parametrize("name", ["kd_standardised", "kd_decoupled"])
def test_gradients_are_finite_for_equal_logits_and_for_a_certain_teacher(
    name: str, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    equal = jnp.full((5, 3), 0.1, jnp.float32)
    certain = 1e4 * jax.nn.one_hot(labels, 3)
    for student, teacher in itertools.product((equal, certain), repeat=2):
        value, grads = value_and_grad(
            LOSSES[name],
            (Outputs(student), Outputs(teacher)),
            labels,
            hard_labels=hard_labels,
            **SETTINGS,
        )
        assert np.isfinite(value)
        assert np.isfinite(grads.logits).all()


@pytest.mark.parametrize(("progress", "share"), [(1 / 240, 1 / 20), (0.05, 0.6), (0.5, 1.0)])
def test_decoupled_kd_and_its_gradient_match_torch_and_warm_up(
    outputs: tuple[Outputs, Outputs], labels: Array, progress: float, share: float
) -> None:
    teacher = losses_torch.tensor(outputs[1].logits)

    def loss(student: Any, classes: Any) -> Any:
        target, others = losses_torch.decoupled(student, teacher, classes, 2.0)
        return share * (target + 8 * others).mean()

    by_label, by_teacher = (
        losses_torch.value_and_grads(functools.partial(loss, classes=classes), outputs[0].logits)
        for classes in (labels, np.argmax(outputs[1].logits, -1))
    )
    hard, (hard_grad,) = cross_entropy_of(outputs, labels)

    without, with_labels = soft_and_hard("kd_decoupled", outputs, labels, progress=progress)

    np.testing.assert_allclose(without[0], by_teacher[0], rtol=1e-5)
    np.testing.assert_allclose(without[1], by_teacher[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(with_labels[0], hard + 0.7 * by_label[0], rtol=1e-5)
    expected = hard_grad + 0.7 * by_label[1][0]
    np.testing.assert_allclose(with_labels[1], expected, rtol=1e-4, atol=1e-5)


def test_decoupled_kd_takes_the_largest_share_and_the_teachers_class_without_a_label(
    outputs: tuple[Outputs, Outputs],
) -> None:
    shares = jnp.asarray(
        [[0.6, 0.4, 0], [0, 0.1, 0.9], [0, 0, 0], [1.5, 0, 0], [0, 0, 0]], jnp.float32
    )
    of_teacher = np.argmax(outputs[1].logits, -1)
    classes = jnp.asarray([0, 2, of_teacher[2], 0, of_teacher[4]])

    def soft(labels: Array) -> Array:
        value = LOSSES["kd_decoupled"](*outputs, labels, hard_labels=True, **SETTINGS)
        return value - losses.cross_entropy(outputs[0].logits, labels)

    np.testing.assert_allclose(soft(shares), soft(classes), rtol=1e-5)


def test_with_constant_labels_decoupled_kd_at_equal_weights_is_kd(
    outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    # KL = KL(class) + (1 - p[class]) KL(others), equation 5 of the paper.
    student, teacher = (output.logits for output in outputs)
    both = [
        losses.decoupled(
            student[i][None],
            teacher[i][None],
            labels[i][None],
            2.0,
            target_weight=1.0,
            other_weight=float(1 - jax.nn.softmax(teacher[i] / 2.0)[labels[i]]),
        )
        for i in range(5)
    ]

    expected = losses.distillation(student, teacher, 2.0)

    np.testing.assert_allclose(np.mean(both), expected, rtol=1e-5)


def test_standardised_kd_ignores_scale_and_shift_of_the_teacher(
    outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    student, teacher = outputs
    scaled = Outputs(100 * teacher.logits + 7)
    loss = LOSSES["kd_standardised"]

    expected, actual = (
        loss(student, target, labels, hard_labels=True, **SETTINGS) for target in (teacher, scaled)
    )

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@HARD
@pytest.mark.parametrize(("name", "masked"), [("dist", False), ("dist_masked", True)])
def test_dist_matches_the_paper(
    name: str, masked: bool, outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    student, teacher = outputs
    logits = student.logits, teacher.logits
    if hard_labels:
        expected = losses.dist_distillation(*logits, labels, masked=masked, **SETTINGS)
    else:
        weights = {"inter_weight": 0.7, "intra_weight": 0.7}
        expected = losses.dist(*logits, temperature=2.0, masked=masked, **weights)

    actual = LOSSES[name](*outputs, labels, hard_labels=hard_labels, **SETTINGS)

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@HARD
@pytest.mark.parametrize(
    ("name", "field", "other"), [("features", "patches", "cls"), ("features_cls", "cls", "patches")]
)
def test_the_feature_loss_is_weighted_against_the_loss_of_the_head(
    name: str,
    field: str,
    other: str,
    outputs: tuple[Outputs, Outputs],
    labels: Array,
    hard_labels: bool,
) -> None:
    student, teacher = outputs
    if hard_labels:
        head_loss = losses.cross_entropy(student.logits, labels)
    else:
        head_loss = losses.distillation(student.logits, teacher.logits, 2.0)
    feature_loss = losses.features(getattr(student, field), getattr(teacher, field))

    actual, grads = value_and_grad(
        LOSSES[name], outputs, labels, hard_labels=hard_labels, **SETTINGS
    )

    np.testing.assert_allclose(actual, 0.3 * head_loss + 0.7 * feature_loss, rtol=1e-6)
    np.testing.assert_array_equal(getattr(grads, other), 0.0)


def head_loss(outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool) -> Any:
    """Returns the loss of the head beside features: of the labels, or of the teacher's logits."""
    if hard_labels:
        return losses.cross_entropy(outputs[0].logits, labels)
    return losses.distillation(outputs[0].logits, outputs[1].logits, 2.0)


@HARD
def test_relations_and_their_gradients_match_torch(
    outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    student, teacher = outputs
    pooled, patches, queue = map(
        losses_torch.tensor, (teacher.pooled, teacher.patches, teacher.queue)
    )
    expected, (of_pooled, of_patches) = losses_torch.value_and_grads(
        lambda s, p: losses_torch.relations(s, pooled, p, patches, queue),
        student.pooled,
        student.patches,
    )

    actual, grads = value_and_grad(
        LOSSES["relations"], outputs, labels, hard_labels=hard_labels, **SETTINGS
    )

    hard = head_loss(outputs, labels, hard_labels)
    np.testing.assert_allclose(actual, hard + 0.7 * expected, rtol=1e-5)
    np.testing.assert_allclose(grads.pooled, 0.7 * of_pooled, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(grads.patches, 0.7 * of_patches, rtol=1e-3, atol=1e-5)


def test_relations_have_finite_gradients_for_zeros(
    outputs: tuple[Outputs, Outputs], labels: Array
) -> None:
    zeros = jax.tree.map(jnp.zeros_like, outputs)

    value, grads = value_and_grad(LOSSES["relations"], zeros, labels, hard_labels=True, **SETTINGS)

    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


@HARD
def test_the_loss_of_several_layers_and_its_gradients_match_torch(
    outputs: tuple[Outputs, Outputs], labels: Array, hard_labels: bool
) -> None:
    student, teacher = outputs
    assert student.layers
    assert teacher.layers
    # The student has two stages, which predict the last two of the teacher's three layers.
    targets = [losses_torch.tensor(layer) for layer in teacher.layers[1:]]
    expected, layer_grads = losses_torch.value_and_grads(
        lambda *layers: sum(map(losses_torch.whitened_error, layers, targets)) / 2, *student.layers
    )

    actual, grads = value_and_grad(
        LOSSES["features_layers"], outputs, labels, hard_labels=hard_labels, **SETTINGS
    )

    hard = head_loss(outputs, labels, hard_labels)
    np.testing.assert_allclose(actual, 0.3 * hard + 0.7 * expected, rtol=1e-5)
    for grad, expected_grad in zip(grads.layers, layer_grads, strict=True):
        np.testing.assert_allclose(grad, 0.7 * expected_grad, rtol=1e-4, atol=1e-7)
