"""The class-balanced loss agrees with torch's weighted cross-entropy and with closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import settings as config_settings
from remem_jax import losses
from remem_jax.records import Labels, Outputs
from remem_jax.train import hard_labels, student_losses
from remem_jax.workflow.remem import student_steps
from tests.oracles import peers

LABELS = np.repeat(np.arange(4), (40, 8, 1, 3))  # Of all training images.
WEIGHTS = jnp.asarray([0.4, 0.9, 1.7, 1.0], jnp.float32)
INDICES = jnp.asarray([0, 2, 1, 0, 3], jnp.int32)
SHARES = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(4), 5), jnp.float32)


@pytest.fixture
def logits(rng: np.random.Generator) -> tuple[jax.Array, jax.Array]:
    """Logits of a student and of a teacher."""
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


def _torch_cross_entropy(logits: jax.Array, labels: Labels, smoothing: float) -> float:
    torch = peers.torch()
    loss = torch.nn.CrossEntropyLoss(
        weight=torch.tensor(np.asarray(WEIGHTS)), label_smoothing=smoothing, reduction="none"
    )
    values = np.asarray(labels)
    targets = torch.tensor(values.astype(np.int64) if values.ndim == 1 else values)
    return float(loss(torch.tensor(np.asarray(logits)), targets).mean())


def test_weights_are_inverse_effective_numbers_with_mean_1() -> None:
    beta, counts = 0.9, np.array([40, 8, 1, 3])
    effective = np.array([sum(beta**i for i in range(count)) for count in counts])

    actual = losses.effective_number_weights(LABELS, 4, beta)

    np.testing.assert_allclose(actual, (1 / effective) * 4 / (1 / effective).sum(), rtol=1e-6)


def test_weights_approach_inverse_counts_for_beta_near_1() -> None:
    inverse = 1 / np.array([40, 8, 1, 3])

    actual = losses.effective_number_weights(LABELS, 4, 1 - 1e-9)

    np.testing.assert_allclose(actual, inverse / inverse.mean(), rtol=1e-5)


def test_a_class_without_images_has_weight_1() -> None:
    actual = losses.effective_number_weights(LABELS[LABELS != 2], 4, 0.9)

    assert actual[2] == 1
    assert actual.mean() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [INDICES, SHARES], ids=["indices", "shares"])
def test_weighted_cross_entropy_matches_torch(
    logits: tuple[jax.Array, jax.Array], labels: Labels, smoothing: float
) -> None:
    actual = losses.cross_entropy(logits[0], labels, smoothing=smoothing, class_weights=WEIGHTS)

    expected = _torch_cross_entropy(logits[0], labels, smoothing)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_the_conditional_information_of_mcmi_is_not_weighted(
    logits: tuple[jax.Array, jax.Array],
) -> None:
    loss = functools.partial(losses.supervised, logits[0], INDICES, smoothing=0.0)

    information = losses.conditional_mutual_information(logits[0], INDICES)
    difference = loss(mcmi=0.0, class_weights=WEIGHTS) - loss(mcmi=0.5, class_weights=WEIGHTS)

    np.testing.assert_allclose(difference, 0.5 * information, rtol=1e-5)


@pytest.mark.parametrize("labels", [INDICES, SHARES], ids=["indices", "shares"])
def test_a_students_loss_weights_the_labels_and_not_the_teacher(
    logits: tuple[jax.Array, jax.Array], labels: Labels
) -> None:
    student, teacher = (Outputs(each) for each in logits)
    kd = functools.partial(student_losses.LOSSES["kd"], hard_labels=True)
    loss = hard_labels.with_class_weights(kd, WEIGHTS)

    actual = loss(student, teacher, labels, temperature=2.0, weight=0.3)

    soft = losses.distillation(*logits, 2.0)
    expected = 0.7 * _torch_cross_entropy(logits[0], labels, 0.0) + 0.3 * float(soft)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_weights_and_smoothing_do_not_change_the_class_of_an_image(
    logits: tuple[jax.Array, jax.Array], smoothing: float
) -> None:
    settings = config_settings.run().student
    settings.label_smoothing = smoothing
    shares = jnp.asarray([[0.6, 0.4, 0.0, 0.0]] * len(logits[0]))  # Weighted: 0.24 and 0.36.
    decoupled = student_losses.LOSSES["kd_decoupled"]
    loss = student_steps.bind(settings, WEIGHTS, unlabelled=False)(decoupled)

    actual = loss(*map(Outputs, logits), shares, temperature=2.0, weight=1.0, progress=1.0)

    hard = losses.cross_entropy(logits[0], shares, smoothing=smoothing, class_weights=WEIGHTS)
    of_class = jnp.zeros(len(shares), jnp.int32)
    soft = losses.decoupled(*logits, of_class, 2.0, target_weight=1.0, other_weight=8.0)
    assert float(actual) == pytest.approx(float(hard + soft), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_student_without_a_teacher_is_weighted_too(
    logits: tuple[jax.Array, jax.Array], smoothing: float
) -> None:
    settings = config_settings.run().student
    settings.label_smoothing = smoothing
    loss = student_steps.bind(settings, WEIGHTS, unlabelled=False)(student_losses.LABELS)

    actual = loss(Outputs(logits[0]), None, INDICES, temperature=1.0, weight=0.0)

    expected = _torch_cross_entropy(logits[0], INDICES, smoothing)
    assert float(actual) == pytest.approx(expected, rel=1e-5)
