"""The paired standard error of a difference agrees with SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from remem_jax import paired

IMAGES = 300


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """The labels of classes of different sizes."""
    return rng.choice(4, IMAGES, p=[0.55, 0.25, 0.15, 0.05])


@pytest.fixture
def correct(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of two models is correct; they mostly fail on the same images."""
    hard = rng.random(IMAGES)
    return hard < 0.8, hard + rng.normal(0, 0.1, IMAGES) < 0.7


def discordant(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Counts images that only the first, and only the second, model classifies correctly."""
    return int(np.sum(a & ~b)), int(np.sum(b & ~a))


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.balanced_accuracy_score(labels, np.where(correct, labels, 4)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_difference_equals_that_of_the_metrics(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct

    top1, per_class = (
        paired.difference(a, b, labels, metric) for metric in ("top1", "mean_per_class")
    )

    assert top1.difference == pytest.approx(a.mean() - b.mean())
    expected = mean_per_class(a, labels) - mean_per_class(b, labels)
    assert per_class.difference == pytest.approx(expected)


def test_the_p_value_of_top1_is_that_of_the_exact_mcnemar_test(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct
    better, worse = discordant(a, b)

    actual = paired.difference(a, b, labels, "top1")

    assert 0 < worse < better
    smaller_tail = stats.binom.cdf(worse, better + worse, 0.5)
    assert actual.p_value == pytest.approx(2 * smaller_tail)


def test_the_error_of_top1_matches_paired_proportions(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct
    better, worse = discordant(a, b)

    actual = paired.difference(a, b, labels, "top1")

    expected = np.sqrt(better + worse - (better - worse) ** 2 / IMAGES) / IMAGES
    assert actual.standard_error == pytest.approx(expected)


def test_the_error_of_top1_matches_the_bootstrap(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> None:
    gaps = correct[0].astype(float) - correct[1]
    drawn = stats.bootstrap((gaps,), np.mean, n_resamples=4000, method="basic", rng=rng)

    actual = paired.difference(*correct, labels, "top1")

    assert actual.standard_error == pytest.approx(drawn.standard_error, rel=0.05)


def test_the_error_of_mean_per_class_matches_a_bootstrap_within_classes(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> None:
    gaps = correct[0].astype(float) - correct[1]
    gaps_per_class = [gaps[labels == label] for label in range(4)]

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    drawn = stats.bootstrap(gaps_per_class, statistic, n_resamples=4000, method="basic", rng=rng)

    actual = paired.difference(*correct, labels, "mean_per_class")

    # The smallest class has about 15 images, for which the bootstrap variance is 14/15 of ours.
    assert actual.standard_error == pytest.approx(drawn.standard_error, rel=0.08)


def test_the_error_over_classes_matches_a_paired_t_test(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = ([model[labels == label].mean() for label in range(4)] for model in correct)
    expected = stats.ttest_rel(a, b)

    actual = paired.difference(*correct, labels, "mean_per_class", over_classes=True)

    assert actual.p_value == pytest.approx(expected.pvalue)
    assert actual.standard_error == pytest.approx(actual.difference / expected.statistic)


def test_the_p_value_of_mean_per_class_is_mcnemars_if_classes_are_balanced(
    correct: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = correct
    better, worse = discordant(a, b)
    labels = np.arange(IMAGES) % 3

    actual = paired.difference(a, b, labels, "mean_per_class")

    statistic = (better - worse) ** 2 / (better + worse)
    assert actual.p_value == pytest.approx(stats.chi2.sf(statistic, 1))


def test_models_with_the_same_predictions_do_not_differ(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, _ = correct
    for metric in ("top1", "mean_per_class"):
        for over_classes in (False, True):
            actual = paired.difference(a, a, labels, metric, over_classes=over_classes)
            assert actual == (0.0, 0.0, 1.0)


def test_swapping_the_models_changes_the_sign(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct
    for metric in ("top1", "mean_per_class"):
        actual = paired.difference(a, b, labels, metric)
        swapped = paired.difference(b, a, labels, metric)
        assert swapped == pytest.approx(actual._replace(difference=-actual.difference))


def test_the_mean_over_seeds_is_compared(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct
    gaps = (a.astype(float) + b) / 2 - b

    actual = paired.difference(np.stack([a, b]), b, labels, "top1")

    assert actual.difference == pytest.approx(gaps.mean())
    assert actual.standard_error == pytest.approx(gaps.std() / np.sqrt(IMAGES))
    # Halving every gap does not change the statistic.
    better, worse = discordant(a, b)
    assert actual.p_value == pytest.approx(
        stats.chi2.sf((better - worse) ** 2 / (better + worse), 1)
    )


def test_repeating_a_seed_does_not_change_the_error(
    correct: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = correct
    once = paired.difference(a, b, labels, "mean_per_class")

    twice = paired.difference(np.stack([a, a]), np.stack([b, b]), labels, "mean_per_class")

    assert twice == pytest.approx(once)


def test_p_values_of_equally_good_models_are_uniform(rng: np.random.Generator) -> None:
    labels = rng.choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    p_values = [
        paired.difference(a, b, labels, "mean_per_class").p_value
        for a, b in rng.random((400, 2, 400)) < 0.7
    ]

    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(
        0.1, abs=0.06
    )  # Four standard errors.


def test_a_class_with_one_image_takes_the_variance_of_the_others() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0], bool)
    variance = np.var([0, 1, 0, 0], ddof=1)

    actual = paired.difference(a, b, labels, "mean_per_class")

    assert actual.difference == pytest.approx((0.25 + 1) / 2)
    assert actual.standard_error == pytest.approx(np.sqrt(variance / 4 + variance) / 2)


def test_classes_with_one_image_each_give_the_error_of_top1() -> None:
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)

    actual = paired.difference(a, b, np.arange(5), "mean_per_class")

    expected = paired.difference(a, b, np.arange(5), "top1")
    assert actual.standard_error == pytest.approx(expected.standard_error)


def test_the_error_over_one_class_is_nan() -> None:
    actual = paired.difference(
        np.array([True, False]),
        np.array([False, False]),
        np.zeros(2, int),
        "mean_per_class",
        over_classes=True,
    )

    assert actual.difference == 0.5
    assert np.isnan([actual.standard_error, actual.p_value]).all()


@pytest.mark.parametrize(
    ("images", "metric", "message"),
    [(4, "top1", "4 and 3 images"), (3, "loss", "no paired error"), (0, "top1", "0 and 3")],
)
def test_invalid_comparisons_are_refused(images: int, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired.difference(np.ones(images, bool), np.ones(3, bool), np.zeros(3, int), metric)


@pytest.mark.parametrize(
    "values",
    [
        np.array([True] * 9 + [False]),
        np.zeros(0, bool),
        np.array([3, 0, 2]),
        np.arange(5089),
        np.array([70_000]),
        np.array([1, 2], np.int32),
    ],
)
def test_packed_values_are_read_back(values: np.ndarray) -> None:
    actual = paired.unpack(paired.pack(values))

    np.testing.assert_array_equal(actual, values)
    assert (actual.dtype == bool) == (values.dtype == bool)


def test_packed_values_are_short_ascii(correct: tuple[np.ndarray, np.ndarray]) -> None:
    text = paired.pack(correct[0])

    assert text.isascii()
    assert len(text) < IMAGES / 3


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "bit:10",
        "bit:20:eJxb0QAAAkMBIA==",
        "object:1:eJxb0QAAAkMBIA==",
        "bit:8:###",
        "uint8:9:eJw=",
    ],
)
def test_a_damaged_text_is_refused(damaged: str) -> None:
    with pytest.raises(ValueError, match="not a list of values of images"):
        paired.unpack(damaged)
