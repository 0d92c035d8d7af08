"""The paired error of a difference, against SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from remem_jax import paired

IMAGES = 300


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """Classes of unlike size."""
    return rng.choice(4, IMAGES, p=[0.55, 0.25, 0.15, 0.05])


@pytest.fixture
def two(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whether two models are correct, which err on the same images as a rule."""
    hard = rng.random(IMAGES)
    return hard < 0.8, hard + rng.normal(0, 0.1, IMAGES) < 0.7


def discordant(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Numbers of images that one model alone classifies correctly: the first, the second."""
    return int(np.sum(a & ~b)), int(np.sum(b & ~a))


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.balanced_accuracy_score(labels, np.where(correct, labels, 4)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_difference_is_that_of_the_metrics(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two

    top1, per_class = (
        paired.difference(a, b, labels, metric) for metric in ("top1", "mean_per_class")
    )

    assert top1.difference == pytest.approx(a.mean() - b.mean())
    expected = mean_per_class(a, labels) - mean_per_class(b, labels)
    assert per_class.difference == pytest.approx(expected)


def test_the_p_value_of_top1_is_mcnemars_exact_one(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two
    better, worse = discordant(a, b)

    found = paired.difference(a, b, labels, "top1")

    assert 0 < worse < better
    smaller_tail = stats.binom.cdf(worse, better + worse, 0.5)
    assert found.p_value == pytest.approx(2 * smaller_tail)


def test_the_error_of_top1_is_that_of_paired_proportions(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two
    better, worse = discordant(a, b)

    found = paired.difference(a, b, labels, "top1")

    expected = np.sqrt(better + worse - (better - worse) ** 2 / IMAGES) / IMAGES
    assert found.standard_error == pytest.approx(expected)


def test_the_error_of_top1_is_the_bootstraps(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> None:
    gaps = two[0].astype(float) - two[1]
    drawn = stats.bootstrap((gaps,), np.mean, n_resamples=4000, method="basic", rng=rng)

    found = paired.difference(*two, labels, "top1")

    assert found.standard_error == pytest.approx(drawn.standard_error, rel=0.05)


def test_the_error_of_a_mean_per_class_is_the_bootstraps_within_classes(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> None:
    gaps = two[0].astype(float) - two[1]
    of_classes = [gaps[labels == label] for label in range(4)]

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    drawn = stats.bootstrap(of_classes, statistic, n_resamples=4000, method="basic", rng=rng)

    found = paired.difference(*two, labels, "mean_per_class")

    # The smallest class has some 15 images: a bootstrap's variance is 15/14 too small there.
    assert found.standard_error == pytest.approx(drawn.standard_error, rel=0.08)


def test_the_error_over_classes_is_that_of_a_paired_t_test(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = ([model[labels == label].mean() for label in range(4)] for model in two)
    expected = stats.ttest_rel(a, b)

    found = paired.difference(*two, labels, "mean_per_class", over_classes=True)

    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.standard_error == pytest.approx(found.difference / expected.statistic)


def test_the_p_value_of_a_mean_per_class_is_mcnemars_where_classes_are_of_one_size(
    two: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = two
    better, worse = discordant(a, b)
    labels = np.arange(IMAGES) % 3

    found = paired.difference(a, b, labels, "mean_per_class")

    statistic = (better - worse) ** 2 / (better + worse)
    assert found.p_value == pytest.approx(stats.chi2.sf(statistic, 1))


def test_models_that_answer_alike_do_not_differ(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, _ = two
    for metric in ("top1", "mean_per_class"):
        for over_classes in (False, True):
            found = paired.difference(a, a, labels, metric, over_classes=over_classes)
            assert found == (0.0, 0.0, 1.0)


def test_the_models_change_places_with_the_sign(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two
    for metric in ("top1", "mean_per_class"):
        found = paired.difference(a, b, labels, metric)
        turned = paired.difference(b, a, labels, metric)
        assert turned == pytest.approx(found._replace(difference=-found.difference))


def test_of_several_seeds_the_mean_is_compared(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two
    gaps = (a.astype(float) + b) / 2 - b

    found = paired.difference(np.stack([a, b]), b, labels, "top1")

    assert found.difference == pytest.approx(gaps.mean())
    assert found.standard_error == pytest.approx(gaps.std() / np.sqrt(IMAGES))
    # Halving every gap leaves the statistic as it is.
    better, worse = discordant(a, b)
    assert found.p_value == pytest.approx(
        stats.chi2.sf((better - worse) ** 2 / (better + worse), 1)
    )


def test_a_seed_that_is_given_twice_changes_no_error(
    two: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> None:
    a, b = two
    once = paired.difference(a, b, labels, "mean_per_class")

    twice = paired.difference(np.stack([a, a]), np.stack([b, b]), labels, "mean_per_class")

    assert twice == pytest.approx(once)


def test_p_values_of_equally_good_models_are_spread_evenly(rng: np.random.Generator) -> None:
    labels = rng.choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    found = [
        paired.difference(a, b, labels, "mean_per_class").p_value
        for a, b in rng.random((400, 2, 400)) < 0.7
    ]

    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.06)  # Four errors.


def test_a_class_with_one_image_has_the_variance_of_the_others() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0], bool)
    variance = np.var([0, 1, 0, 0], ddof=1)

    found = paired.difference(a, b, labels, "mean_per_class")

    assert found.difference == pytest.approx((0.25 + 1) / 2)
    assert found.standard_error == pytest.approx(np.sqrt(variance / 4 + variance) / 2)


def test_classes_with_one_image_each_are_images() -> None:
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)

    found = paired.difference(a, b, np.arange(5), "mean_per_class")

    expected = paired.difference(a, b, np.arange(5), "top1")
    assert found.standard_error == pytest.approx(expected.standard_error)


def test_there_is_no_error_over_one_class() -> None:
    found = paired.difference(
        np.array([True, False]),
        np.array([False, False]),
        np.zeros(2, int),
        "mean_per_class",
        over_classes=True,
    )

    assert found.difference == 0.5
    assert np.isnan([found.standard_error, found.p_value]).all()


@pytest.mark.parametrize(
    ("images", "metric", "message"),
    [(4, "top1", "4 and 3 images"), (3, "loss", "no paired error"), (0, "top1", "0 and 3")],
)
def test_what_cannot_be_compared_is_refused(images: int, metric: str, message: str) -> None:
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
def test_what_is_packed_is_read_back(values: np.ndarray) -> None:
    found = paired.unpack(paired.pack(values))

    np.testing.assert_array_equal(found, values)
    assert (found.dtype == bool) == (values.dtype == bool)


def test_what_is_packed_is_short_ascii(two: tuple[np.ndarray, np.ndarray]) -> None:
    text = paired.pack(two[0])

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
