"""Metrics, against scikit-learn, closed forms and a slow loop."""

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

from remem_jax import evaluate
from remem_jax.records import Batch
from tests.oracles import calibration

CLASSES = 8
EXAMPLES = 23
SCALE = 64  # Pixels in one unit of a logit.


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """Classes 0 to 6; the last class does not occur."""
    return rng.choice(7, EXAMPLES, p=[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]).astype(np.int32)


@pytest.fixture
def images(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Images that carry logits: a student's in row 0, a teacher's in row 1."""
    image = rng.integers(0, 200, (EXAMPLES, 2, CLASSES, 3))
    image[np.arange(EXAMPLES), :, labels] += 55  # Better than chance, and not perfect.
    return image.astype(np.uint8)


def logits_of(images: np.ndarray, row: int = 0) -> np.ndarray:
    return images[:, row, :, 0].astype(np.float64) / SCALE


def model(row: int = 0, scale: float = 1.0) -> evaluate.Model:
    """A model that reads its logits off a row of the images, and multiplies them."""
    apply = jax.jit(lambda variables, images: images[:, row, :, 0] * variables["scale"])
    return evaluate.Model(apply, {"scale": jnp.float32(scale / SCALE)})


transform = jax.jit(lambda images: images.astype(jnp.float32))


def batches_of(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    sharding: NamedSharding | None = None,
) -> Iterator[Batch]:
    """All examples in order; the first ones fill up the last batch, masked."""

    def put(array: np.ndarray) -> Array:
        return jax.device_put(jnp.asarray(array), sharding)

    for first in range(0, len(labels), batch_size):
        rows = np.arange(first, first + batch_size)
        own = rows % len(labels)
        yield Batch(put(images[own]), put(labels[own]), put(rows < len(labels)))


def measure(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 7,
    *,
    of: evaluate.Model | None = None,
    sharding: NamedSharding | None = None,
    teacher: evaluate.Model | None = None,
    confusion: bool = False,
    predictions: bool = False,
) -> dict[str, Any]:
    return evaluate.evaluate(
        jax.jit(evaluate.count, donate_argnums=0),
        transform,
        [of or model()],
        batches_of(images, labels, batch_size, sharding),
        classes=images.shape[2],
        teacher=teacher,
        confusion=confusion,
        predictions=predictions,
    ).models[0]


def tallied(logits: Any, labels: Any, mask: Any) -> dict[str, Any]:
    """Metrics of one batch of logits."""
    rows = jnp.asarray(logits, jnp.float32)
    batch = Batch(
        jnp.zeros((len(rows), 1, 1, 3), jnp.uint8),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(mask, bool),
    )
    empty = evaluate.init_tally(rows.shape[1], agreement=False, confusion=True)
    return evaluate.metrics(jax.jit(evaluate.count)(empty, rows, batch))


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
def test_metrics_are_the_oracles_whatever_the_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, name: str, oracle: Any
) -> None:
    expected = oracle(labels, logits_of(images))

    actual = measure(images, labels, batch_size)[name]

    assert actual == pytest.approx(expected, rel=1e-5)  # float32: softmax of eight logits.


@pytest.mark.parametrize("batch_size", [4, 23])
def test_the_confusion_matrix_is_scikit_learns(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> None:
    predicted = logits_of(images).argmax(-1)

    actual = measure(images, labels, batch_size, confusion=True)["confusion"]

    assert actual == metrics.confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist()


@pytest.mark.parametrize("batch_size", [4, 23])
def test_predictions_are_the_likeliest_classes_in_the_order_of_the_examples(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> None:
    actual = measure(images, labels, batch_size, predictions=True)["predictions"]

    np.testing.assert_array_equal(actual, logits_of(images).argmax(-1))


def test_agreement_is_that_of_the_predictions_and_asks_no_labels(
    images: np.ndarray, labels: np.ndarray
) -> None:
    expected = metrics.accuracy_score(*(logits_of(images, row).argmax(-1) for row in (0, 1)))

    actual = measure(images, np.zeros_like(labels), teacher=model(1))["agreement"]

    assert 0 < expected < 1
    assert actual == expected


SCALES = 1.0, -1.0, 0.5  # Of three models.


@pytest.fixture
def together(images: np.ndarray, labels: np.ndarray) -> tuple[evaluate.Evaluated, dict[str, int]]:
    """Three models and their teacher in one pass of four batches, and what was called how often."""
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

    def counted_model(name: str, own: evaluate.Model) -> evaluate.Model:
        return own._replace(apply=counted(name, own.apply))

    found = evaluate.evaluate(
        jax.jit(evaluate.count, donate_argnums=0),
        counted("view", transform),
        [counted_model("models", model(scale=scale)) for scale in SCALES],
        read(),
        classes=CLASSES,
        teacher=counted_model("teacher", model(1)),
        confusion=True,
    )
    return found, dict(calls)


def test_models_in_one_pass_have_the_metrics_that_each_has_alone(
    together: tuple[evaluate.Evaluated, dict[str, int]], images: np.ndarray, labels: np.ndarray
) -> None:
    alone = [
        measure(images, labels, of=model(scale=scale), teacher=model(1), confusion=True)
        for scale in SCALES
    ]

    assert together[0].models == alone


def test_the_teacher_of_models_has_the_metrics_that_it_has_alone(
    together: tuple[evaluate.Evaluated, dict[str, int]], images: np.ndarray, labels: np.ndarray
) -> None:
    assert together[0].teacher == measure(images, labels, of=model(1))


def test_one_pass_reads_and_views_each_batch_and_asks_the_teacher_once(
    together: tuple[evaluate.Evaluated, dict[str, int]],
) -> None:
    assert together[1] == {"batches": 4, "view": 4, "teacher": 4, "models": 3 * 4}


def test_where_there_is_no_model_nothing_is_read(images: np.ndarray, labels: np.ndarray) -> None:
    batches = batches_of(images, labels, 7)

    found = evaluate.evaluate(evaluate.count, transform, [], batches, classes=CLASSES)

    assert found == ([], None)
    assert len(list(batches)) == 4


def test_what_is_not_asked_for_is_not_there(images: np.ndarray, labels: np.ndarray) -> None:
    assert not {"agreement", "confusion", "predictions"} & set(measure(images, labels))


def test_two_devices_count_the_same(images: np.ndarray, labels: np.ndarray) -> None:
    both = NamedSharding(Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data"))
    options: dict[str, Any] = {"teacher": model(1), "confusion": True, "predictions": True}
    on_one = measure(images, labels, 4, **options)

    on_two = measure(images, labels, 4, sharding=both, **options)

    np.testing.assert_array_equal(on_two.pop("predictions"), on_one.pop("predictions"))
    for name in ("loss", "calibration_error"):  # The order of a sum differs.
        assert on_two.pop(name) == pytest.approx(on_one.pop(name), rel=1e-6)
    assert on_two == on_one


def test_the_tally_of_two_devices_is_whole_on_each(images: np.ndarray, labels: np.ndarray) -> None:
    both = NamedSharding(Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data"))
    batch = next(batches_of(images, labels, 4, both))
    apply, variables = model()

    tally = jax.jit(evaluate.count)(
        evaluate.init_tally(CLASSES, agreement=False, confusion=True),
        apply(variables, transform(batch.image)),
        batch,
    )

    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tally))


@pytest.fixture(scope="module")
def twenty_million() -> dict[str, Any]:
    """Metrics of 20,480,000 examples, more than float32 can count; the first class gets logit 1."""
    size, batches = 2**10, 20_000
    logits = jnp.zeros((size, CLASSES)).at[:, 0].set(1.0)
    labels = jnp.arange(size, dtype=jnp.int32) % CLASSES
    batch = Batch(jnp.zeros((size, 1, 1, 3), jnp.uint8), labels, jnp.ones(size, bool))

    def run(tally: evaluate.Tally) -> evaluate.Tally:
        return jax.lax.fori_loop(
            0, batches, lambda _, now: evaluate.count(now, logits, batch, logits), tally
        )

    empty = evaluate.init_tally(CLASSES, agreement=True, confusion=True)
    return evaluate.metrics(jax.jit(run)(empty))


def test_counts_of_millions_are_exact(twenty_million: dict[str, Any]) -> None:
    found = {name: twenty_million[name] for name in ("top1", "top5", "agreement", "confusion")}
    assert found == {
        "top1": 1 / CLASSES,
        "top5": 5 / CLASSES,
        "agreement": 1.0,
        "confusion": [[20_480_000 // CLASSES, *[0] * (CLASSES - 1)]] * CLASSES,
    }


def test_sums_of_millions_are_as_good_as_those_of_few(twenty_million: dict[str, Any]) -> None:
    confidence = math.e / (math.e + CLASSES - 1)
    loss = math.log(math.e + CLASSES - 1) - 1 / CLASSES

    # What one batch of 1,024 loses in float32 itself; carried along plainly, sums lose 1e-4.
    assert twenty_million["loss"] == pytest.approx(loss, rel=1e-6)
    error = twenty_million["calibration_error"]
    assert error == pytest.approx(confidence - 1 / CLASSES, rel=1e-6)


def test_of_equal_logits_the_lower_class_is_likelier() -> None:
    found = tallied(np.zeros((8, 8)), range(8), [True] * 8)

    assert (found["top1"], found["top5"]) == (1 / 8, 5 / 8)


def test_all_classes_are_among_the_likeliest_if_there_are_five_at_most() -> None:
    found = tallied([[3, 2, 1, 0], [3, 2, 1, 0]], [2, 3], [True] * 2)

    assert (found["top1"], found["top5"]) == (0.0, 1.0)


def test_what_is_masked_may_be_anything() -> None:
    logits = [[0, 0, 0], [math.nan, math.nan, math.nan], [math.inf, 0, 0]]

    found = tallied(logits, [1, -1, 7], [True, False, False])

    assert found["loss"] == pytest.approx(math.log(3))
    assert found["calibration_error"] == pytest.approx(1 / 3)
    assert found["confusion"] == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_the_calibration_error_of_certainty_is_the_share_of_errors() -> None:
    found = tallied([[200, 0], [200, 0], [0, 200], [0, 200]], [0, 0, 0, 1], [True] * 4)

    assert found["calibration_error"] == pytest.approx(1 / 4)


def test_a_bin_of_confidence_holds_its_upper_edge() -> None:
    # Right with confidence 3/15, wrong with 0.15: both in the third bin, |0.8 - 0.15| / 2.
    edge = [0.0] * 5 + [-200.0] * 3
    inside = np.log([0.15] + [0.85 / 7] * 7).tolist()

    found = tallied([edge, inside], [0, 1], [True] * 2)

    assert found["calibration_error"] == pytest.approx(0.325)


def test_a_model_that_gives_nan_has_the_loss_nan() -> None:
    found = tallied(np.full((2, 3), math.nan), [0, 1], [True] * 2)

    assert math.isnan(found["loss"])
    assert math.isnan(found["calibration_error"])


@pytest.mark.parametrize("examples", [[], [False, False]])
def test_nothing_to_evaluate_is_an_error(examples: list[bool]) -> None:
    mask = jnp.asarray(examples, bool)
    batch = Batch(jnp.zeros((len(mask), 2, 8, 3), jnp.uint8), jnp.zeros(len(mask), jnp.int32), mask)
    count = jax.jit(evaluate.count, donate_argnums=0)

    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate.evaluate(count, transform, [model()], [batch] * bool(examples), classes=8)


@pytest.mark.parametrize("agreement", [True, False])
def test_a_tally_and_its_logits_know_of_the_same_models(agreement: bool) -> None:
    tally = evaluate.init_tally(3, agreement=agreement, confusion=False)
    logits = jnp.zeros((1, 3))
    batch = Batch(jnp.zeros((1, 1, 1, 3), jnp.uint8), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))

    with pytest.raises(ValueError, match="teacher's logits"):
        evaluate.count(tally, logits, batch, None if agreement else logits)


def test_the_most_frequent_errors_come_first_and_equal_ones_by_class() -> None:
    confusion = [[50, 2, 0], [7, 50, 0], [2, 1, 0]]

    found = evaluate.most_confused(confusion, 3)

    assert found == [(1, 0, 7), (0, 1, 2), (2, 0, 2)]


def test_errors_that_are_never_made_are_not_listed() -> None:
    assert evaluate.most_confused([[3, 1], [0, 4]], 5) == [(0, 1, 1)]


def test_a_probe_of_features_that_tell_the_classes_apart_is_right(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 200)
    features = np.eye(3)[labels] + rng.normal(0, 0.05, (200, 3))

    assert (
        evaluate.linear_probe((features[:150], labels[:150]), (features[150:], labels[150:])) == 1.0
    )


def test_a_probe_of_noise_is_at_chance(rng: np.random.Generator) -> None:
    labels, features = rng.integers(0, 4, 2000), rng.normal(size=(2000, 3))

    actual = evaluate.linear_probe(
        (features[:1000], labels[:1000]), (features[1000:], labels[1000:])
    )

    assert actual == pytest.approx(0.25, abs=0.06)  # Four standard errors.
