"""Images that are held out of train, by class and by group."""

import numpy as np
import pytest
from sklearn import model_selection

from remem_jax.data import held_out


def test_a_stratified_subset_takes_a_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 50, 100])

    chosen = held_out.draw(labels, None, 0.2, seed=0)

    np.testing.assert_array_equal(np.bincount(labels[chosen]), [2, 10, 20])


def test_a_stratified_subset_has_no_duplicates() -> None:
    chosen = held_out.draw(np.repeat([0, 1, 2], [10, 50, 100]), None, 0.2, seed=0)

    assert len(set(chosen.tolist())) == len(chosen)


def test_a_stratified_subset_takes_one_and_leaves_one_of_each_class_of_two() -> None:
    labels = np.repeat([0, 1, 2], [1, 2, 3])

    chosen = held_out.draw(labels, None, 0.01, seed=0)

    np.testing.assert_array_equal(labels[chosen], [1, 2])


def test_seeds_give_different_subsets() -> None:
    labels = np.zeros(1000, np.int32)

    first, second = (held_out.draw(labels, None, 0.5, seed=seed) for seed in (1, 2))

    assert not np.array_equal(first, second)


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """Labels of 600 images of five classes, of which the largest has half."""
    return rng.choice(5, 600, p=[0.5, 0.2, 0.15, 0.1, 0.05])


@pytest.fixture
def groups(rng: np.random.Generator) -> np.ndarray:
    """Groups of one to six of these images, of any classes."""
    return np.repeat(np.arange(600), rng.integers(1, 7, 600))[rng.permutation(600)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_on_both_sides(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int
) -> None:
    chosen = held_out.draw(labels, groups, share, seed=seed)

    rest = np.delete(groups, chosen)
    assert not set(groups[chosen].tolist()) & set(rest.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_as_balanced_as_in_a_fold_of_scikit_learn(
    labels: np.ndarray, groups: np.ndarray, seed: int
) -> None:
    folds = model_selection.StratifiedGroupKFold(10, shuffle=True, random_state=seed)
    _, theirs = next(folds.split(labels, labels, groups))
    ours = held_out.draw(labels, groups, 0.1, seed=seed)

    def error(chosen: np.ndarray) -> float:
        return np.abs(np.bincount(labels[chosen], minlength=5) - np.bincount(labels) / 10).sum()

    # At most one group, of up to six images, is missing, besides the rounding of five classes.
    assert error(ours) <= max(error(theirs), 6 + 5 / 2)


def test_images_without_a_group_of_several_are_drawn_as_without_groups(
    labels: np.ndarray, rng: np.random.Generator
) -> None:
    alone = held_out.draw(labels, rng.permutation(len(labels)), 0.1, seed=0)

    np.testing.assert_array_equal(alone, held_out.draw(labels, None, 0.1, seed=0))


def test_large_and_small_groups_are_drawn_alike(rng: np.random.Generator) -> None:
    # Of 500 images, 100 are pairs; a tenth of the held-out images should be.
    groups = np.concatenate([np.repeat(np.arange(50), 2), np.arange(50, 450)])
    labels = rng.integers(0, 3, 500)

    chosen = [held_out.draw(labels, groups, 0.2, seed=seed) for seed in range(20)]

    in_pairs = np.mean([np.mean(each < 100) for each in chosen])
    assert 0.14 < in_pairs < 0.26


def test_a_class_whose_groups_are_larger_than_its_share_gives_its_smallest_group() -> None:
    labels = np.repeat([0, 1], [100, 90])
    groups = np.concatenate([np.arange(100), np.repeat([100, 101, 102], [40, 20, 30])])

    chosen = held_out.draw(labels, groups, 0.05, seed=0)

    np.testing.assert_array_equal(np.bincount(labels[chosen]), [5, 20])


def test_a_class_in_one_group_stays_in_train() -> None:
    labels = np.repeat([0, 1], [50, 50])
    groups = np.concatenate([np.arange(50), np.full(50, 50)])

    chosen = held_out.draw(labels, groups, 0.2, seed=0)

    np.testing.assert_array_equal(np.bincount(labels[chosen], minlength=2), [10, 0])


def test_no_class_loses_all_its_images_to_a_group_of_several_classes() -> None:
    # The only two images of class 1 are in one group with most of class 0.
    labels = np.asarray([0] * 10 + [1, 1])
    groups = np.asarray([0] * 8 + [1, 2] + [0, 0])

    for seed in range(10):
        chosen = held_out.draw(labels, groups, 0.5, seed=seed)
        assert set(labels.tolist()) == set(np.delete(labels, chosen).tolist())
