"""Metrics agree with scikit-learn, closed forms and a slow loop."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from scipy import special
from sklearn import metrics

from remem_jax import evaluate, tallies
from remem_jax.records import Batch
from tests.oracles import calibration

CLASSES = 8
EXAMPLES = 23
SCALE = 64  # Grey levels per unit of a logit.


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """Classes 0 to 6; the last class does not occur."""
    return rng.choice(7, EXAMPLES, p=[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]).astype(np.int32)


@pytest.fixture
def images(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Images that encode logits: a student's in row 0, a teacher's in row 1."""
    image = rng.integers(0, 200, (EXAMPLES, 2, CLASSES, 3))
    image[np.arange(EXAMPLES), :, labels] += 55  # Better than chance, and not perfect.
    return image.astype(np.uint8)


def logits_of(images: np.ndarray, row: int = 0) -> np.ndarray:
    return images[:, row, :, 0].astype(np.float64) / SCALE


def model(row: int = 0, scale: float = 1.0) -> evaluate.Model:
    """Makes a model that reads its logits from a row of the images and scales them."""
    apply = jax.jit(lambda variables, images: images[:, row, :, 0] * variables["scale"])
    return evaluate.Model(apply, {"scale": jnp.float32(scale / SCALE)})


transform = jax.jit(lambda images: images.astype(jnp.float32))


def batches_of(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    sharding: NamedSharding | None = None,
) -> Iterator[Batch]:
    """Yields all examples in order; the first ones pad the last batch and are masked."""

    def put(array: np.ndarray) -> Array:
        return jax.device_put(jnp.asarray(array), sharding)

    for first in range(0, len(labels), batch_size):
        rows = np.arange(first, first + batch_size)
        wrapped = rows % len(labels)
        yield Batch(put(images[wrapped]), put(labels[wrapped]), put(rows < len(labels)))


def measure(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 7,
    *,
    student: evaluate.Model | None = None,
    sharding: NamedSharding | None = None,
    teacher: evaluate.Model | None = None,
    **wanted: bool,
) -> dict[str, Any]:
    return evaluate.evaluate(
        jax.jit(tallies.count, donate_argnums=0),
        transform,
        [student or model()],
        batches_of(images, labels, batch_size, sharding),
        classes=images.shape[2],
        teacher=teacher,
        wanted=evaluate.Wanted(**wanted),
    ).models[0]


def tally_metrics(logits: Any, labels: Any, mask: Any) -> dict[str, Any]:
    """Computes the metrics of one batch of logits."""
    rows = jnp.asarray(logits, jnp.float32)
    batch = Batch(
        jnp.zeros((len(rows), 1, 1, 3), jnp.uint8),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(mask, bool),
    )
    empty = tallies.init_tally(rows.shape[1], agreement=False, confusion=True)
    return tallies.metrics(jax.jit(tallies.count)(empty, rows, batch))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("top1", lambda y, logits: metrics.accuracy_score(y, logits.argmax(-1))),
        ("top5", lambda y, logits: metrics.top_k_accuracy_score(y, logits, k=5, labels=range(8))),
        ("mean_per_class", lambda y, logits: metrics.balanced_accuracy_score(y, logits.argmax(-1))),
        (
            "loss",
            lambda y, logits: metrics.log_loss(y, special.softmax(logits, -1), labels=range(8)),
        ),
        ("calibration_error", lambda y, logits: calibration.error(special.softmax(logits, -1), y)),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_match_the_oracle_at_any_batch_size(
    images: np.ndarray, labels: np.ndarray, batch_size: int, name: str, oracle: Any
) -> None:
    expected = oracle(labels, logits_of(images))

    actual = measure(images, labels, batch_size)[name]

    assert actual == pytest.approx(
        expected, rel=1e-5
    )  # The error of a float32 softmax of eight logits.


@pytest.mark.parametrize("batch_size", [4, 23])
def test_the_confusion_matrix_matches_scikit_learn(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> None:
    predicted = logits_of(images).argmax(-1)

    actual = measure(images, labels, batch_size, confusion=True)["confusion"]

    assert actual == metrics.confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist()


@pytest.mark.parametrize("batch_size", [4, 23])
def test_predictions_are_the_most_likely_classes_in_order(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> None:
    measured = measure(images, labels, batch_size, predictions=True)

    np.testing.assert_array_equal(measured["predictions"], logits_of(images).argmax(-1))
    expected = special.softmax(logits_of(images), axis=-1).max(-1)
    np.testing.assert_allclose(measured["confidences"], expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 23])
def test_logits_are_those_of_each_example_in_order(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> None:
    measured = measure(images, labels, batch_size, logits=True)

    np.testing.assert_allclose(measured["logits"], logits_of(images), rtol=1e-5)


def test_agreement_compares_predictions_without_labels(
    images: np.ndarray, labels: np.ndarray
) -> None:
    expected = metrics.accuracy_score(*(logits_of(images, row).argmax(-1) for row in (0, 1)))

    actual = measure(images, np.zeros_like(labels), teacher=model(1))["agreement"]

    assert 0 < expected < 1
    assert actual == expected


SCALES = 1.0, -1.0, 0.5  # One for each of three models.


@pytest.fixture
def together(images: np.ndarray, labels: np.ndarray) -> tuple[evaluate.Evaluated, dict[str, int]]:
    """Three models and their teacher, evaluated in one pass of four batches, and call counts."""
    calls: collections.Counter[str] = collections.Counter()

    def counted(name: str, function: Callable[..., Array]) -> Callable[..., Array]:
        def call(*arguments: Any) -> Array:
            calls[name] += 1
            return function(*arguments)

        return call

    def read() -> Iterator[Batch]:
        for batch in batches_of(images, labels, 7):
            calls["batches"] += 1
            yield batch

    def counted_model(name: str, wrapped: evaluate.Model) -> evaluate.Model:
        return wrapped._replace(apply=counted(name, wrapped.apply))

    evaluated = evaluate.evaluate(
        jax.jit(tallies.count, donate_argnums=0),
        counted("transform", transform),
        [counted_model("models", model(scale=scale)) for scale in SCALES],
        read(),
        classes=CLASSES,
        teacher=counted_model("teacher", model(1)),
        wanted=evaluate.Wanted(confusion=True),
    )
    return evaluated, dict(calls)


def test_models_evaluated_together_have_the_same_metrics_as_alone(
    together: tuple[evaluate.Evaluated, dict[str, int]], images: np.ndarray, labels: np.ndarray
) -> None:
    alone = [
        measure(images, labels, student=model(scale=scale), teacher=model(1), confusion=True)
        for scale in SCALES
    ]

    assert together[0].models == alone


def test_the_teacher_has_the_same_metrics_with_students_as_alone(
    together: tuple[evaluate.Evaluated, dict[str, int]], images: np.ndarray, labels: np.ndarray
) -> None:
    assert together[0].teacher == measure(images, labels, student=model(1))


def test_one_pass_reads_and_transforms_each_batch_and_runs_the_teacher_once(
    together: tuple[evaluate.Evaluated, dict[str, int]],
) -> None:
    assert together[1] == {"batches": 4, "transform": 4, "teacher": 4, "models": 3 * 4}


def test_without_a_model_no_batch_is_read(images: np.ndarray, labels: np.ndarray) -> None:
    batches = batches_of(images, labels, 7)

    actual = evaluate.evaluate(tallies.count, transform, [], batches, classes=CLASSES)

    assert actual == ([], None)
    assert len(list(batches)) == 4


def test_metrics_that_were_not_requested_are_absent(images: np.ndarray, labels: np.ndarray) -> None:
    assert not {"agreement", "confusion", "predictions"} & set(measure(images, labels))


def test_two_devices_give_the_same_metrics(images: np.ndarray, labels: np.ndarray) -> None:
    both = NamedSharding(Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data"))
    options: dict[str, Any] = {"teacher": model(1), "confusion": True, "predictions": True}
    on_one = measure(images, labels, 4, **options)

    on_two = measure(images, labels, 4, sharding=both, **options)

    np.testing.assert_array_equal(on_two.pop("predictions"), on_one.pop("predictions"))
    np.testing.assert_allclose(on_two.pop("confidences"), on_one.pop("confidences"), rtol=1e-6)
    for name in ("loss", "calibration_error"):  # The order of summation differs.
        assert on_two.pop(name) == pytest.approx(on_one.pop(name), rel=1e-6)
    assert on_two == on_one


def test_the_tally_is_replicated_on_both_devices(images: np.ndarray, labels: np.ndarray) -> None:
    both = NamedSharding(Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data"))
    batch = next(batches_of(images, labels, 4, both))
    apply, variables = model()

    tally = jax.jit(tallies.count)(
        tallies.init_tally(CLASSES, agreement=False, confusion=True),
        apply(variables, transform(batch.image)),
        batch,
    )

    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tally))


@pytest.fixture(scope="module")
def twenty_million() -> dict[str, Any]:
    """Metrics of 20,480,000 examples, more than float32 can count; class 0 has logit 1."""
    size, batches = 2**10, 20_000
    logits = jnp.zeros((size, CLASSES)).at[:, 0].set(1.0)
    labels = jnp.arange(size, dtype=jnp.int32) % CLASSES
    batch = Batch(jnp.zeros((size, 1, 1, 3), jnp.uint8), labels, jnp.ones(size, bool))

    def run(tally: tallies.Tally) -> tallies.Tally:
        return jax.lax.fori_loop(
            0, batches, lambda _, tally: tallies.count(tally, logits, batch, logits), tally
        )

    empty = tallies.init_tally(CLASSES, agreement=True, confusion=True)
    return tallies.metrics(jax.jit(run)(empty))


def test_counts_of_millions_are_exact(twenty_million: dict[str, Any]) -> None:
    actual = {name: twenty_million[name] for name in ("top1", "top5", "agreement", "confusion")}
    assert actual == {
        "top1": 1 / CLASSES,
        "top5": 5 / CLASSES,
        "agreement": 1.0,
        "confusion": [[20_480_000 // CLASSES, *[0] * (CLASSES - 1)]] * CLASSES,
    }


def test_sums_of_millions_are_as_accurate_as_those_of_one_batch(
    twenty_million: dict[str, Any],
) -> None:
    confidence = math.e / (math.e + CLASSES - 1)
    loss = math.log(math.e + CLASSES - 1) - 1 / CLASSES

    # The float32 error of one batch of 1,024; plain running sums would be off by 1e-4.
    assert twenty_million["loss"] == pytest.approx(loss, rel=1e-6)
    error = twenty_million["calibration_error"]
    assert error == pytest.approx(confidence - 1 / CLASSES, rel=1e-6)


def test_ties_go_to_the_lower_class() -> None:
    actual = tally_metrics(np.zeros((8, 8)), range(8), [True] * 8)

    assert (actual["top1"], actual["top5"]) == (1 / 8, 5 / 8)


def test_top5_is_1_with_at_most_five_classes() -> None:
    actual = tally_metrics([[3, 2, 1, 0], [3, 2, 1, 0]], [2, 3], [True] * 2)

    assert (actual["top1"], actual["top5"]) == (0.0, 1.0)


def test_masked_examples_are_ignored() -> None:
    logits = [[0, 0, 0], [math.nan, math.nan, math.nan], [math.inf, 0, 0]]

    actual = tally_metrics(logits, [1, -1, 7], [True, False, False])

    assert actual["loss"] == pytest.approx(math.log(3))
    assert actual["calibration_error"] == pytest.approx(1 / 3)
    assert actual["confusion"] == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_the_calibration_error_of_full_confidence_is_the_error_rate() -> None:
    actual = tally_metrics([[200, 0], [200, 0], [0, 200], [0, 200]], [0, 0, 0, 1], [True] * 4)

    assert actual["calibration_error"] == pytest.approx(1 / 4)


def test_a_confidence_bin_includes_its_upper_edge() -> None:
    # Correct with confidence 3/15, wrong with 0.15: both are in the third bin, |0.8 - 0.15| / 2.
    edge = [0.0] * 5 + [-200.0] * 3
    inside = np.log([0.15] + [0.85 / 7] * 7).tolist()

    actual = tally_metrics([edge, inside], [0, 1], [True] * 2)

    assert actual["calibration_error"] == pytest.approx(0.325)


def test_nan_logits_give_a_nan_loss() -> None:
    actual = tally_metrics(np.full((2, 3), math.nan), [0, 1], [True] * 2)

    assert math.isnan(actual["loss"])
    assert math.isnan(actual["calibration_error"])


@pytest.mark.parametrize("examples", [[], [False, False]])
def test_evaluating_no_examples_is_an_error(examples: list[bool]) -> None:
    mask = jnp.asarray(examples, bool)
    batch = Batch(jnp.zeros((len(mask), 2, 8, 3), jnp.uint8), jnp.zeros(len(mask), jnp.int32), mask)
    count = jax.jit(tallies.count, donate_argnums=0)

    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate.evaluate(count, transform, [model()], [batch] * bool(examples), classes=8)


@pytest.mark.parametrize("agreement", [True, False])
def test_a_tally_with_agreement_needs_the_teachers_logits(agreement: bool) -> None:
    tally = tallies.init_tally(3, agreement=agreement, confusion=False)
    logits = jnp.zeros((1, 3))
    batch = Batch(jnp.zeros((1, 1, 1, 3), jnp.uint8), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))

    with pytest.raises(ValueError, match="teacher's logits"):
        tallies.count(tally, logits, batch, None if agreement else logits)


def test_errors_are_sorted_by_frequency_and_then_by_class() -> None:
    confusion = [[50, 2, 0], [7, 50, 0], [2, 1, 0]]

    actual = tallies.most_confused(confusion, 3)

    assert actual == [(1, 0, 7), (0, 1, 2), (2, 0, 2)]


def test_errors_that_never_occur_are_not_listed() -> None:
    assert tallies.most_confused([[3, 1], [0, 4]], 5) == [(0, 1, 1)]
