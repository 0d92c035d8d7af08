"""Losses agree with SciPy, closed forms and torch's automatic gradients."""

import functools
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jaxtyping import Array, Float, Int
from scipy import special, stats

from remem_jax import losses, mesh
from tests.oracles import dist_numpy, peers

MASKED = pytest.mark.parametrize("masked", [False, True])
TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 4.0])


@functools.partial(jax.jit, static_argnames="masked")
def dist(
    student: Array, teacher: Array, temperature: Float[Array, ""] | float, *, masked: bool
) -> Float[Array, ""]:
    """Computes DIST with the paper's weights."""
    return losses.dist(
        student, teacher, temperature, inter_weight=1.0, intra_weight=1.0, masked=masked
    )


@functools.partial(jax.jit, static_argnames="masked")
def dist_and_grad(
    student: Array, teacher: Array, temperature: Float[Array, ""] | float, *, masked: bool
) -> tuple[Float[Array, ""], Float[Array, "batch classes"]]:
    """Computes DIST and its gradient with respect to the student's logits."""
    return jax.value_and_grad(dist)(student, teacher, temperature, masked=masked)


def sharp_teacher(
    rng: np.random.Generator, *, batch: int, classes: int, margin: float, noise: float
) -> Float[Array, "batch classes"]:
    """Draws logits of a teacher that is confident in one class per image."""
    logits = rng.normal(0, noise, (batch, classes))
    logits[np.arange(batch), rng.integers(0, classes, batch)] += margin
    return jnp.asarray(logits, jnp.float32)


def torch_dist(student: Any, teacher: Any, temperature: float, *, epsilon: float) -> Any:
    """Computes the official formula in torch."""

    def distance(a: Any, b: Any) -> Any:
        a = a - a.mean(1, keepdim=True)
        b = b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + epsilon)).mean()

    a, b = ((logits / temperature).softmax(1) for logits in (student, teacher))
    return temperature**2 * (distance(a, b) + distance(a.T, b.T))


def torch_value_and_grad(loss: Any, student: Array, teacher: Array) -> tuple[float, np.ndarray]:
    """Computes a torch loss and its gradient with respect to the student's logits, in float64."""
    torch = peers.torch()
    leaf, fixed = (torch.tensor(np.asarray(x, np.float64)) for x in (student, teacher))
    value = loss(leaf.requires_grad_(), fixed)
    value.backward()
    return value.item(), leaf.grad.numpy()


@pytest.fixture
def logits(rng: np.random.Generator) -> Float[Array, "2 batch classes"]:
    """The logits of a student and of a teacher."""
    return jnp.asarray(rng.normal(0, 3, size=(2, 5, 3)), jnp.float32)


@pytest.fixture
def labels() -> Int[Array, " batch"]:
    return jnp.asarray([0, 2, 1, 1, 0], jnp.int32)


def test_cross_entropy_is_the_mean_negative_log_probability(logits: Array, labels: Array) -> None:
    log_probs = special.log_softmax(np.asarray(logits[0], np.float64), axis=-1)
    expected = -log_probs[np.arange(5), labels].mean()

    assert losses.cross_entropy(logits[0], labels) == pytest.approx(expected, rel=1e-5)


def test_smoothing_mixes_in_the_uniform_distribution(logits: Array, labels: Array) -> None:
    log_probs = special.log_softmax(np.asarray(logits[0], np.float64), axis=-1)
    target = 0.9 * np.eye(3)[np.asarray(labels)] + 0.1 / 3
    expected = -(target * log_probs).sum(-1).mean()

    actual = losses.cross_entropy(logits[0], labels, smoothing=0.1)

    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_agrees_with_scipy(logits: Array, temperature: float) -> None:
    student, teacher = special.softmax(np.asarray(logits, np.float64) / temperature, axis=-1)
    expected = temperature**2 * np.asarray(stats.entropy(teacher, student, axis=-1)).mean()

    actual = losses.distillation(*logits, temperature=temperature)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_distillation_is_zero_when_the_student_matches(logits: Array) -> None:
    student, _ = logits
    assert losses.distillation(student, student, 2.0) == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_reaches_the_teacher(logits: Array) -> None:
    grads = jax.grad(losses.distillation, argnums=1)(*logits, 1.0)
    np.testing.assert_array_equal(grads, 0.0)


def test_the_gradient_of_distillation_matches_the_closed_form(logits: Array) -> None:
    # d/ds T^2 KL(t || s) = T (softmax(s / T) - softmax(t / T)), over the batch.
    student, teacher = special.softmax(np.asarray(logits, np.float64) / 4.0, axis=-1)
    expected = 4.0 * (student - teacher) / 5

    actual = jax.grad(losses.distillation)(*logits, 4.0)

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_knowledge_distillation_weights_labels_and_teacher(
    logits: Array, labels: Array, weight: float
) -> None:
    hard = losses.cross_entropy(logits[0], labels)
    soft = losses.distillation(logits[0], logits[1], 2.0)

    student, teacher = logits
    actual = losses.knowledge_distillation(student, teacher, labels, temperature=2.0, weight=weight)

    np.testing.assert_allclose(actual, (1 - weight) * hard + weight * soft, rtol=1e-6)


def test_sharp_logits_give_no_nan() -> None:
    student, teacher = jnp.asarray([[1e4, 0.0, -1e4]]), jnp.asarray([[-1e4, 0.0, 1e4]])
    assert np.isfinite(losses.distillation(student, teacher, 1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_may_be_class_probabilities(
    logits: Array, rng: np.random.Generator, smoothing: float
) -> None:
    shares = rng.dirichlet(np.ones(3), 5)
    target = (1 - smoothing) * shares + smoothing / 3
    expected = -(target * special.log_softmax(np.asarray(logits[0], np.float64), -1)).sum(-1).mean()

    actual = losses.cross_entropy(logits[0], jnp.asarray(shares, jnp.float32), smoothing=smoothing)

    assert actual == pytest.approx(expected, rel=1e-5)


@TEMPERATURES
def test_distillation_and_its_gradient_match_torch(logits: Array, temperature: float) -> None:
    functional = peers.torch().nn.functional

    def batchmean(student: Any, teacher: Any) -> Any:
        softened = [functional.log_softmax(x / temperature, dim=1) for x in (student, teacher)]
        return temperature**2 * functional.kl_div(*softened, log_target=True, reduction="batchmean")

    expected, expected_grads = torch_value_and_grad(batchmean, *logits)

    actual, grads = jax.value_and_grad(losses.distillation)(*logits, temperature)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)


@TEMPERATURES
@MASKED
def test_each_term_of_dist_matches_a_slow_loop(
    rng: np.random.Generator, temperature: float, masked: bool
) -> None:
    student, teacher = jnp.asarray(rng.normal(0, 2, (2, 12, 7)), jnp.float32)
    expected = dist_numpy.terms(
        *np.asarray([student, teacher]), temperature=temperature, masked=masked
    )

    actual = [
        losses.dist(
            student, teacher, temperature, inter_weight=inter, intra_weight=1 - inter, masked=masked
        )
        for inter in (1.0, 0.0)
    ]

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_weights_of_dist_scale_its_terms(logits: Array) -> None:
    inter, intra, both = (
        losses.dist(*logits, temperature=2.0, inter_weight=inter, intra_weight=intra, masked=False)
        for inter, intra in [(1.0, 0.0), (0.0, 1.0), (0.5, 3.0)]
    )

    np.testing.assert_allclose(both, 0.5 * inter + 3 * intra, rtol=1e-6)


@TEMPERATURES
@MASKED
def test_dist_and_its_gradient_match_torch(
    rng: np.random.Generator, temperature: float, masked: bool
) -> None:
    student, teacher = jnp.asarray(rng.normal(0, 2, (2, 12, 7)), jnp.float32)
    expected, expected_grads = torch_value_and_grad(
        lambda a, b: torch_dist(a, b, temperature, epsilon=0.0 if masked else 1e-8),
        student,
        teacher,
    )

    actual, grads = dist_and_grad(student, teacher, temperature, masked=masked)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)


@MASKED
def test_the_epsilon_of_dist_has_the_official_effect(
    rng: np.random.Generator, masked: bool
) -> None:
    # Teacher and student are so sharp that column norms lie on both sides of the epsilon.
    teacher = sharp_teacher(rng, batch=32, classes=97, margin=14.0, noise=1.0)
    student = sharp_teacher(rng, batch=32, classes=97, margin=14.0, noise=1.0)
    expected, expected_grads = torch_value_and_grad(
        lambda a, b: torch_dist(a, b, 1.0, epsilon=0.0 if masked else 1e-8), student, teacher
    )

    actual, grads = dist_and_grad(student, teacher, 1.0, masked=masked)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # The tolerance is float32 rounding of logits of 16, divided by a norm of at least 1e-3.
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 1.2])
def test_dist_of_a_sharp_teacher_with_itself_is_zero_only_if_masked(
    rng: np.random.Generator, noise: float
) -> None:
    teacher = sharp_teacher(rng, batch=128, classes=397, margin=16.0, noise=noise)
    _, per_class = dist_numpy.correlations(
        *np.asarray([teacher, teacher]), temperature=1.0, masked=False
    )

    official, masked = (dist(teacher, teacher, 1.0, masked=masked) for masked in (False, True))

    assert np.mean(per_class) < 0.4
    assert np.mean(np.asarray(per_class) < 0.9) > 0.6
    np.testing.assert_allclose(official, 1 - np.mean(per_class), rtol=1e-4)
    assert masked == pytest.approx(0.0, abs=1e-5)


def test_only_masked_dist_has_no_gradient_if_the_student_equals_a_sharp_teacher(
    rng: np.random.Generator,
) -> None:
    teacher = sharp_teacher(rng, batch=128, classes=397, margin=16.0, noise=1.2)

    official, masked = (
        jnp.linalg.norm(dist_and_grad(teacher, teacher, 1.0, masked=masked)[1])
        for masked in (False, True)
    )

    assert official > 1e-3
    assert masked < 1e-6


def test_masked_dist_ignores_classes_whose_teacher_probability_is_constant(
    rng: np.random.Generator,
) -> None:
    teacher = jnp.asarray(16 * np.eye(7)[rng.integers(0, 3, 20)], jnp.float32)
    student = jnp.asarray(rng.normal(0, 2, (20, 7)), jnp.float32)
    _, per_class = dist_numpy.correlations(
        *np.asarray([student, teacher]), temperature=1.0, masked=True
    )

    actual = losses.dist(student, teacher, 1.0, inter_weight=0.0, intra_weight=1.0, masked=True)

    assert len(per_class) == 3
    np.testing.assert_allclose(actual, 1 - np.mean(per_class), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masked_dist_of_a_student_with_itself_is_zero_at_any_scale(
    logits: Array, scale: float
) -> None:
    value = dist(scale * logits[0], scale * logits[0], 1.0, masked=True)
    assert value == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("case", ["one", "uniform"])
def test_masked_dist_is_zero_if_no_correlation_is_defined(case: str, logits: Array) -> None:
    student = logits[0, :1, :1] if case == "one" else logits[0]
    assert dist(student, jnp.zeros_like(student), 1.0, masked=True) == 0.0


@MASKED
@pytest.mark.parametrize(
    ("student_scale", "teacher_scale"),
    [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e4, -1e4), (1e4, 1e4), (1e30, 1.0)],
)
def test_gradients_of_dist_are_finite(
    logits: Array, student_scale: float, teacher_scale: float, masked: bool
) -> None:
    student, teacher = student_scale * logits[0], teacher_scale * logits[0]

    value, grads = dist_and_grad(student, teacher, 1.0, masked=masked)

    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_a_uniform_student_gets_a_bounded_gradient_only_if_masked(
    rng: np.random.Generator,
) -> None:
    teacher = sharp_teacher(rng, batch=128, classes=397, margin=16.0, noise=1.0)
    student = jnp.zeros_like(teacher)

    official, masked = (
        jnp.abs(dist_and_grad(student, teacher, 1.0, masked=masked)[1]).max()
        for masked in (False, True)
    )

    assert official > 1e3
    assert masked < 2e1


@MASKED
def test_dist_accepts_bfloat16_and_computes_in_float32(logits: Array, masked: bool) -> None:
    low = logits.astype(jnp.bfloat16)

    actual = dist(*low, temperature=4.0, masked=masked)

    assert actual.dtype == jnp.float32
    assert actual == dist(*low.astype(jnp.float32), temperature=4.0, masked=masked)


@MASKED
def test_dist_of_a_batch_on_two_devices_equals_that_on_one(
    rng: np.random.Generator, masked: bool
) -> None:
    student, teacher = jnp.asarray(rng.normal(0, 2, (2, 12, 7)), jnp.float32)
    expected, expected_grads = dist_and_grad(student, teacher, 4.0, masked=masked)
    of_each_half = [dist(student[i::2], teacher[i::2], 4.0, masked=masked) for i in range(2)]

    devices = mesh.make_mesh()
    split = jax.device_put((student, teacher), mesh.batch_sharding(devices))
    actual, grads = dist_and_grad(*split, temperature=4.0, masked=masked)

    assert devices.size == 2
    assert not split[0].is_fully_replicated
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)
    assert abs(np.mean(of_each_half) - expected) > 1e-2 * expected


@MASKED
def test_no_gradient_of_dist_reaches_the_teacher(logits: Array, masked: bool) -> None:
    grads = jax.grad(dist, argnums=1)(*logits, 1.0, masked=masked)
    np.testing.assert_array_equal(grads, 0.0)


@MASKED
@hypothesis.given(
    logits=hypothesis.extra.numpy.arrays(
        np.float32, (2, 4, 3), elements=strategies.floats(-200, 200, width=32)
    ),
    temperature=strategies.sampled_from([0.5, 1.0, 8.0]),
)
@hypothesis.settings(deadline=None)
def test_dist_stays_within_its_bounds(logits: np.ndarray, temperature: float, masked: bool) -> None:
    student, teacher = jnp.asarray(logits)

    value = dist(student, teacher, temperature, masked=masked)

    # The slack covers rounding of two means of four correlations.
    assert -1e-6 * temperature**2 <= value <= (4 + 1e-5) * temperature**2


@hypothesis.given(
    logits=hypothesis.extra.numpy.arrays(
        np.float32, (4, 3), elements=strategies.floats(-200, 200, width=32)
    )
)
@hypothesis.settings(deadline=None)
def test_masked_dist_of_any_student_with_itself_is_zero(logits: np.ndarray) -> None:
    student = jnp.asarray(logits)
    assert abs(dist(student, student, 1.0, masked=True)) <= 1e-5


@MASKED
def test_dist_distillation_adds_dist_to_the_cross_entropy(
    logits: Array, labels: Array, masked: bool
) -> None:
    student, teacher = logits
    expected = losses.cross_entropy(student, labels) + 0.3 * dist(
        *logits, temperature=4.0, masked=masked
    )

    actual = losses.dist_distillation(
        student, teacher, labels, temperature=4.0, weight=0.3, masked=masked
    )

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.fixture
def tokens(rng: np.random.Generator) -> Float[Array, "2 batch token feature"]:
    """A student's predictions and a teacher's tokens, with different scales and means."""
    drawn = rng.normal(0, 1, (2, 3, 4, 8))
    drawn[1] = 5 * drawn[1] * rng.uniform(0.1, 2, (3, 4, 1)) + rng.normal(0, 3, (3, 4, 1))
    return jnp.asarray(drawn, jnp.float32)


@pytest.mark.parametrize("kind", ["patches", "cls"])
def test_the_feature_loss_and_its_gradient_match_torch(tokens: Array, kind: str) -> None:
    functional = peers.torch().nn.functional
    student, teacher = tokens if kind == "patches" else tokens[:, :, 0]

    def whitened(student: Any, teacher: Any) -> Any:
        return functional.mse_loss(student, functional.layer_norm(teacher, (8,), eps=1e-6))

    expected, expected_grads = torch_value_and_grad(whitened, student, teacher)

    actual, grads = jax.value_and_grad(losses.features)(student, teacher)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)


def test_a_student_that_predicts_zeros_has_a_loss_of_1_for_any_teacher(
    tokens: Array,
) -> None:
    for scale, mean in ((1.0, 0.0), (100.0, -40.0)):
        value = losses.features(jnp.zeros_like(tokens[0]), scale * tokens[1] + mean)
        assert value == pytest.approx(1.0, rel=1e-3)


def test_a_constant_token_becomes_a_target_of_zeros(tokens: Array) -> None:
    teacher = jnp.full_like(tokens[1], 7.0)

    value, grads = jax.value_and_grad(losses.features)(jnp.zeros_like(teacher), teacher)

    assert value == 0
    np.testing.assert_array_equal(grads, 0.0)


def test_no_gradient_of_features_reaches_the_teacher(tokens: Array) -> None:
    np.testing.assert_array_equal(jax.grad(losses.features, argnums=1)(*tokens), 0.0)


def test_features_in_bfloat16_are_compared_in_float32(tokens: Array) -> None:
    low = tokens.astype(jnp.bfloat16)

    actual = losses.features(*low)

    assert actual.dtype == jnp.float32
    assert actual == losses.features(*low.astype(jnp.float32))


def test_the_feature_loss_on_two_devices_equals_that_on_one(
    rng: np.random.Generator,
) -> None:
    student, teacher = jnp.asarray(rng.normal(0, 2, (2, 4, 3, 8)), jnp.float32)
    both = jax.jit(jax.value_and_grad(losses.features))
    expected, expected_grads = both(student, teacher)

    actual, grads = both(*jax.device_put((student, teacher), mesh.batch_sharding(mesh.make_mesh())))

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-5, atol=1e-7)
