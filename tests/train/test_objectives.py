"""What students minimise: each loss by its name, with and without hard labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int
from scipy import special
from sklearn import metrics

from remem_jax import losses
from remem_jax.records import Outputs
from remem_jax.train import objectives

NAMES = pytest.mark.parametrize("name", objectives.STUDENT_LOSSES)
OF_LOGITS = pytest.mark.parametrize("name", ["kd", "dist", "dist_masked"])
HARD = pytest.mark.parametrize("hard_labels", [True, False])
SETTINGS = {"temperature": 2.0, "weight": 0.7}


@pytest.fixture
def answers(rng: np.random.Generator) -> list[Outputs]:
    """Of a student and of a teacher, with all features."""
    shapes = (5, 3), (5, 4, 8), (5, 8)
    return [
        Outputs(*(jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in shapes))
        for _ in range(2)
    ]


@pytest.fixture
def labels() -> Int[Array, " batch"]:
    return jnp.asarray([0, 2, 1, 1, 0], jnp.int32)


def value_and_grad(name: str, answers: list[Outputs], labels: Array, **settings: Any) -> Any:
    """A loss, and its gradient by the student's answer."""
    loss = objectives.STUDENT_LOSSES[name]
    return jax.value_and_grad(lambda student: loss(student, answers[1], labels, **settings))(
        answers[0]
    )


@OF_LOGITS
def test_with_hard_labels_a_loss_of_logits_is_the_papers(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    student, teacher = answers
    if name == "kd":
        expected = losses.knowledge_distillation(student.logits, teacher.logits, labels, **SETTINGS)
    else:
        expected = losses.dist_distillation(
            student.logits, teacher.logits, labels, masked=name == "dist_masked", **SETTINGS
        )

    actual = objectives.STUDENT_LOSSES[name](*answers, labels, hard_labels=True, **SETTINGS)

    assert actual == expected


@OF_LOGITS
def test_without_hard_labels_a_loss_of_logits_is_the_teachers_part_alone(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    logits = [answer.logits for answer in answers]
    if name == "kd":
        expected = losses.distillation(*logits, temperature=2.0)
    else:
        weights = {"inter_weight": 0.7, "intra_weight": 0.7}
        expected = losses.dist(*logits, temperature=2.0, masked=name == "dist_masked", **weights)

    actual = objectives.STUDENT_LOSSES[name](*answers, labels, hard_labels=False, **SETTINGS)

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@HARD
@pytest.mark.parametrize("name", ["features", "features_cls"])
def test_features_are_weighed_against_what_the_head_learns(
    name: str, answers: list[Outputs], labels: Array, hard_labels: bool
) -> None:
    student, teacher = answers
    if hard_labels:
        of_head = losses.cross_entropy(student.logits, labels)
    else:
        of_head = losses.distillation(student.logits, teacher.logits, 2.0)
    field = objectives.FEATURES[name]
    of_features = losses.features(getattr(student, field), getattr(teacher, field))

    actual, grads = value_and_grad(name, answers, labels, hard_labels=hard_labels, **SETTINGS)

    np.testing.assert_allclose(actual, 0.3 * of_head + 0.7 * of_features, rtol=1e-6)
    other = "cls" if field == "patches" else "patches"
    np.testing.assert_array_equal(getattr(grads, other), 0.0)


@NAMES
def test_without_hard_labels_no_label_counts(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    settings = {"hard_labels": False, **SETTINGS}

    actual = value_and_grad(name, answers, labels, **settings)

    expected = value_and_grad(name, answers, (labels + 1) % 3, **settings)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@NAMES
def test_a_student_loss_of_weight_0_is_the_cross_entropy(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    expected = jax.value_and_grad(losses.cross_entropy)(answers[0].logits, labels)

    actual, grads = value_and_grad(
        name, answers, labels, temperature=4.0, weight=0.0, hard_labels=True
    )

    for one, other in zip((actual, grads.logits), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@HARD
@NAMES
def test_no_gradient_of_a_student_loss_reaches_the_teacher(
    name: str, answers: list[Outputs], labels: Array, hard_labels: bool
) -> None:
    loss = objectives.STUDENT_LOSSES[name]

    def of_teacher(teacher: Outputs) -> Array:
        return loss(answers[0], teacher, labels, hard_labels=hard_labels, **SETTINGS)

    grads = jax.grad(of_teacher)(answers[1])

    jax.tree.map(lambda grad: np.testing.assert_array_equal(grad, 0.0), grads)


@HARD
@NAMES
def test_settings_of_a_student_loss_may_be_traced(
    name: str, answers: list[Outputs], labels: Array, hard_labels: bool
) -> None:
    settings = jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([0.1, 0.5, 1.0])

    def loss(temperature: Float[Array, ""] | float, weight: Float[Array, ""] | float) -> Array:
        return objectives.STUDENT_LOSSES[name](
            *answers, labels, temperature=temperature, weight=weight, hard_labels=hard_labels
        )

    expected = [
        loss(float(temperature), float(weight))
        for temperature, weight in zip(*settings, strict=True)
    ]

    actual = jax.jit(jax.vmap(loss))(*settings)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@HARD
@NAMES
def test_what_does_not_count_for_a_loss_changes_nothing_and_what_does_changes_it(
    name: str, answers: list[Outputs], labels: Array, hard_labels: bool
) -> None:
    counting = objectives.counting(name, hard_labels=hard_labels)
    loss = objectives.STUDENT_LOSSES[name]

    for setting in ("temperature", "weight"):
        value, other = (
            loss(*answers, labels, hard_labels=hard_labels, **(SETTINGS | {setting: changed}))
            for changed in (SETTINGS[setting], 0.5 * SETTINGS[setting])
        )
        assert (value != other) == (setting in counting)


@pytest.mark.parametrize("name", ["features", "features_cls"])
def test_features_that_are_not_answered_are_named(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    with pytest.raises(ValueError, match=f"answer with {objectives.FEATURES[name]}"):
        objectives.STUDENT_LOSSES[name](
            answers[0], Outputs(answers[1].logits), labels, hard_labels=True, **SETTINGS
        )


def test_the_features_of_losses_are_those_that_one_of_them_compares() -> None:
    assert objectives.fields(("kd", "dist")) == ()
    assert objectives.fields(("features", "kd")) == ("patches",)
    assert objectives.fields(("features", "features_cls")) == ("cls", "patches")


def test_from_scratch_a_student_minimises_what_scikit_learn_measures(
    answers: list[Outputs], labels: Array
) -> None:
    student = answers[0]
    shares = special.softmax(np.asarray(student.logits, np.float64), axis=-1)

    actual = objectives.labels_alone(student, None, labels, temperature=1.0, weight=0.0)

    assert actual == pytest.approx(metrics.log_loss(labels, shares), rel=1e-5)


@NAMES
def test_a_teacher_of_weight_0_may_say_what_it_will(
    name: str, answers: list[Outputs], labels: Array
) -> None:
    student, teacher = answers
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), teacher)
    expected = jax.grad(lambda own: losses.cross_entropy(own, labels))(student.logits)

    _, found = value_and_grad(
        name, [student, nothing], labels, temperature=2.0, weight=0.0, hard_labels=True
    )

    np.testing.assert_allclose(found.logits, expected, rtol=1e-6)
