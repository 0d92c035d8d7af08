"""The search for thumbnails that are alike, against NumPy's correlations."""

import numpy as np
import pytest

from remem_jax.data.inspection import thumbnails
from tests.data.inspection import photographs

LUMA = (0.299, 0.587, 0.114)


def _of(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([thumbnails.of_pixels(image) for image in images])


def _with_copies(rng: np.random.Generator) -> np.ndarray:
    """Returns 80 random thumbnails, of which the last 20 are the first ones with noise."""
    images = rng.integers(30, 220, (60, thumbnails.BYTES)).astype(float)
    noise = np.arange(20)[:, None] * rng.normal(0, 1, (20, 64)).repeat(3, axis=1)
    return np.clip(np.concatenate([images, images[:20] + noise]), 0, 255).astype(np.uint8)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the search use several blocks for few images."""
    monkeypatch.setattr(thumbnails, "_ROWS", 7)
    monkeypatch.setattr(thumbnails, "_COLUMNS", 11)


@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_those_that_numpy_correlates(rng: np.random.Generator) -> None:
    images = _with_copies(rng)
    correlations = np.corrcoef(images.reshape(80, 64, 3) @ LUMA)
    first, second = np.nonzero(np.tril(correlations >= thumbnails.LEAST_CORRELATION, k=-1))

    found = thumbnails.alike_within(images, most=8, threads=2)

    assert 3 < len(first) < 20
    assert found.first.tolist() == first.tolist()
    assert found.second.tolist() == second.tolist()


@pytest.mark.usefixtures("small_blocks")
def test_two_sets_are_compared_as_one(rng: np.random.Generator) -> None:
    images = _with_copies(rng)
    within = thumbnails.alike_within(images, most=8, threads=2)

    found = thumbnails.alike(images[60:], images[:60], most=8, threads=2)

    assert (found.first + 60).tolist() == within.first.tolist()
    assert found.second.tolist() == within.second.tolist()


@pytest.mark.usefixtures("small_blocks")
def test_of_many_the_most_alike_are_kept(rng: np.random.Generator) -> None:
    image = rng.integers(50, 200, 64)
    noise = rng.normal(0, 1, 64)
    others = np.stack([image + 0.02 * i * noise for i in rng.permutation(60)])
    both = np.rint(np.repeat(np.stack([image * 1.0, *others]), 3, axis=1)).astype(np.uint8)
    correlations = np.asarray(np.corrcoef(both[:, ::3]))[0, 1:]

    found = thumbnails.alike(both[:1], both[1:], most=4, threads=2)

    assert np.all(correlations > thumbnails.LEAST_CORRELATION)
    assert len(found.second) == 4
    assert correlations[found.second].min() >= np.sort(correlations)[-4]


@pytest.mark.usefixtures("small_blocks")
def test_each_of_many_copies_is_linked_to_an_earlier_one(rng: np.random.Generator) -> None:
    images = np.repeat(rng.integers(0, 256, (1, thumbnails.BYTES), dtype=np.uint8), 100, axis=0)

    found = thumbnails.alike_within(images, most=2, threads=2)

    assert np.unique(found.first).tolist() == [*range(1, 100)]
    assert np.all(found.second < found.first)
    assert np.bincount(found.first)[2:].tolist() == [2] * 98


def test_other_colours_of_the_same_luma_are_not_alike() -> None:
    shape = photographs.tiles(96)[12] // 4 + 60  # Grey levels from 60 to 123.
    red, blue = shape.copy(), shape.copy()
    red[:, :48, 0] += 120
    blue[:, :48, 0] += 46  # With the next line, about as much luma as the red.
    blue[:, :48, 2] = np.minimum(blue[:, :48, 2].astype(int) + 130, 255)
    images = _of([red, blue])
    correlation = np.asarray(np.corrcoef(images.reshape(2, 64, 3) @ LUMA))[0, 1]

    found = thumbnails.alike_within(images, most=8, threads=2)

    assert correlation > thumbnails.LEAST_CORRELATION
    assert found.first.size == 0


def test_plain_images_are_not_alike(rng: np.random.Generator) -> None:
    plain = [np.full((20, 30, 3), level, np.uint8) for level in (0, 128, 128)]
    noisy = np.clip(128 + rng.normal(0, 4, (64, 64, 3)), 0, 255).astype(np.uint8)

    assert thumbnails.alike_within(_of([*plain, noisy, noisy]), most=8, threads=2).first.size == 0


@pytest.mark.parametrize("images", [0, 1])
def test_few_images_have_no_pairs(images: int, rng: np.random.Generator) -> None:
    few = rng.integers(0, 256, (images, thumbnails.BYTES), dtype=np.uint8)

    assert thumbnails.alike_within(few, most=8, threads=2).first.size == 0
    assert thumbnails.alike(few, few[:0], most=8, threads=2).first.size == 0
