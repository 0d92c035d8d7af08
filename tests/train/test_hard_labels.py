"""Class weights, smoothing and missing labels, in every loss, against torch.

Images without a label count in the term of the teacher alone: the term of the labels, its gradient
too, is torch's cross-entropy of the labelled images.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from configs import settings as config_settings
from remem_jax.data.images import augment
from remem_jax.records import Batch, Labels, Outputs
from remem_jax.train import hard_labels, lockstep
from remem_jax.train.student_losses import LOSSES, StudentLoss
from remem_jax.workflow.remem import student_steps
from tests.oracles import peers
from tests.train import drawn

EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
SETTINGS: Any = {"temperature": 2.0, "weight": 0.7}
WEIGHTS = jnp.asarray([0.4, 0.9, 1.7], jnp.float32)
ALL = jnp.asarray([0, 2, 1, 1, 0], jnp.int32)
SOME = jnp.asarray([0, -1, 1, -1, 0], jnp.int32)
NONE = jnp.full(5, -1, jnp.int32)


@pytest.fixture
def outputs(rng: np.random.Generator) -> tuple[Outputs, Outputs]:
    """The outputs of a student and of a teacher that predicts the labels, with all features."""
    student, teacher = drawn.outputs(rng)
    return student, teacher._replace(logits=teacher.logits + 8 * jax.nn.one_hot(ALL, 3))


def _of_labels(loss: StudentLoss) -> float:
    """Returns the weight of the cross-entropy in a loss."""
    return 0.3 if loss.with_labels.formula.startswith("(1 - w) CE") else 1.0


def _value_and_grad(loss: hard_labels.Loss, outputs: Any, labels: Labels) -> tuple[Any, Outputs]:
    """Computes a loss and its gradient with respect to the student's outputs."""
    student, teacher = outputs
    return jax.value_and_grad(lambda student: loss(student, teacher, labels, **SETTINGS))(student)


def _torchs(
    logits: Array, labels: Labels, smoothing: float = 0.0, weights: Array | None = None
) -> tuple[float, np.ndarray]:
    """Returns torch's mean cross-entropy of the labelled images alone, and its gradient."""
    torch = peers.torch()
    leaf = torch.tensor(np.asarray(logits), requires_grad=True)
    chosen = np.flatnonzero(np.asarray(labels) >= 0)
    loss = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(np.asarray(weights)),
        label_smoothing=smoothing,
        reduction="none",
    )
    value = loss(leaf[chosen], torch.tensor(np.asarray(labels)[chosen].astype(np.int64))).mean()
    value.backward()
    return float(value.detach()), leaf.grad.numpy()


@EACH
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothed_labels_change_a_loss_by_the_smoothing_of_its_cross_entropy(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], mixed: bool
) -> None:
    torch = peers.torch()
    given = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), 5), jnp.float32)
    given = given if mixed else ALL

    def torchs(smoothing: float) -> float:
        logits = torch.tensor(np.asarray(outputs[0].logits))
        targets = torch.tensor(np.asarray(given)).to(torch.float32 if mixed else torch.int64)
        return float(torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets))

    bound = functools.partial(loss, hard_labels=True)
    smoothed = hard_labels.with_smoothing(bound, 0.2, unlabelled=False)

    change = float(smoothed(*outputs, given, **SETTINGS) - bound(*outputs, given, **SETTINGS))
    assert change == pytest.approx(_of_labels(loss) * (torchs(0.2) - torchs(0.0)), abs=1e-5)
    assert hard_labels.with_smoothing(bound, 0.0, unlabelled=False) is bound


@EACH
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_the_term_of_the_labels_is_the_mean_over_the_labelled_images(
    loss: StudentLoss,
    outputs: tuple[Outputs, Outputs],
    smoothing: float,
    weights: Array | None,
) -> None:
    settings = config_settings.run().student
    settings.label_smoothing = smoothing
    whole = functools.partial(loss, hard_labels=True)
    partial = student_steps.bind(settings, weights, unlabelled=True)(loss)
    logits = outputs[0].logits

    expected, expected_grads = _value_and_grad(whole, outputs, ALL)
    # The term of the teacher is that of all images; the term of the labels is torch's.
    before, after = _torchs(logits, ALL), _torchs(logits, SOME, smoothing, weights)
    expected += _of_labels(loss) * (after[0] - before[0])
    expected_logits = expected_grads.logits + _of_labels(loss) * (after[1] - before[1])
    actual, grads = _value_and_grad(partial, outputs, SOME)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads.logits, expected_logits, atol=1e-6)
    for name in ("patches", "cls"):
        np.testing.assert_array_equal(getattr(grads, name), getattr(expected_grads, name))


def test_kd_of_partly_labelled_images_matches_torch(outputs: tuple[Outputs, Outputs]) -> None:
    torch = peers.torch()
    leaf = torch.tensor(np.asarray(outputs[0].logits), requires_grad=True)
    teacher = torch.tensor(np.asarray(outputs[1].logits))
    hard = torch.nn.functional.cross_entropy(leaf[[0, 2, 4]], torch.tensor([0, 1, 0]))
    soft = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(
        torch.log_softmax(leaf / 2.0, -1), torch.log_softmax(teacher / 2.0, -1)
    )
    expected = 0.3 * hard + 0.7 * 2.0**2 * soft
    expected.backward()
    settings = config_settings.run().student
    loss = student_steps.bind(settings, None, unlabelled=True)(LOSSES["kd"])

    actual, grads = _value_and_grad(loss, outputs, SOME)

    assert float(actual) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(grads.logits, leaf.grad.numpy(), atol=1e-6)


@EACH
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_any_label_only_the_teacher_counts(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs], smoothing: float
) -> None:
    settings = config_settings.run().student
    settings.label_smoothing = smoothing
    whole = functools.partial(loss, hard_labels=True)
    partial = student_steps.bind(settings, WEIGHTS, unlabelled=True)(loss)
    (value, grads), (hard, hard_grads) = (
        _value_and_grad(whole, outputs, ALL),
        _torchs(outputs[0].logits, ALL),
    )

    actual, actual_grads = _value_and_grad(partial, outputs, NONE)

    np.testing.assert_allclose(actual, value - _of_labels(loss) * hard, rtol=1e-4, atol=1e-6)
    expected = grads.logits - _of_labels(loss) * hard_grads
    np.testing.assert_allclose(actual_grads.logits, expected, atol=1e-6)


@EACH
def test_a_fully_labelled_batch_has_the_usual_loss(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs]
) -> None:
    whole = functools.partial(loss, hard_labels=True)

    actual = _value_and_grad(hard_labels.with_unlabelled(whole), outputs, ALL)

    expected = _value_and_grad(whole, outputs, ALL)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *(actual, expected)
    )


@EACH
def test_without_hard_labels_missing_ones_change_nothing(
    loss: StudentLoss, outputs: tuple[Outputs, Outputs]
) -> None:
    if loss.without_labels is None:
        pytest.skip("It needs labels.")
    plain = functools.partial(loss, hard_labels=False)

    actual = _value_and_grad(hard_labels.with_unlabelled(plain), outputs, SOME)

    jax.tree.map(np.testing.assert_array_equal, actual, _value_and_grad(plain, outputs, ALL))


@pytest.mark.parametrize("mixing", [augment.Mixing(mixup=0.8), augment.Mixing(cutmix=1.0)])
def test_a_mixture_counts_as_its_share_of_labelled_images(
    rng: np.random.Generator, outputs: tuple[Outputs, Outputs], mixing: augment.Mixing
) -> None:
    torch = peers.torch()
    pixels = jnp.asarray(rng.integers(0, 256, (5, 6, 6, 3)), jnp.float32)
    augmented = lockstep.make_augment(
        lambda key, images: images, classes=3, key=jax.random.key(1), mixing=mixing
    )(np.int32(0), Batch(pixels, SOME, jnp.ones(5, bool)))
    shares = np.asarray(augmented.labels)
    settings = config_settings.run().student
    settings.label_smoothing = 0.2
    loss = student_steps.bind(settings, None, unlabelled=True)(LOSSES["kd"])

    actual, grads = _value_and_grad(loss, outputs, augmented.labels)

    known = shares.sum(axis=1)  # 1 of each labelled image, in its mixture and in the next one.
    assert known.sum() == pytest.approx(3, rel=1e-6)
    assert 0 < known[1] < 1
    leaf = torch.tensor(np.asarray(outputs[0].logits), requires_grad=True)
    smoothed = torch.tensor(0.8 * shares + 0.2 * known[:, None] / 3)
    hard = -(smoothed * torch.log_softmax(leaf, -1)).sum() / 3
    soft = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(
        torch.log_softmax(leaf / 2.0, -1),
        torch.log_softmax(torch.tensor(np.asarray(outputs[1].logits)) / 2.0, -1),
    )
    expected = 0.3 * hard + 0.7 * 4.0 * soft
    expected.backward()
    assert float(actual) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(grads.logits, leaf.grad.numpy(), atol=1e-6)
