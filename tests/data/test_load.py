"""Data sets in memory: sizes, corrupt images, the held-out split, the fingerprint."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources

# What the tests do not vary.
COMMON: dict[str, Any] = {
    "validation": 0.2,
    "seed": 0,
    "stored_size": 8,
    "corrupt_limit": 0,
    "resident_gib": 1.0,
}


def _split(images: list[np.ndarray], labels: np.ndarray) -> sources.Split:
    return sources.Split(images.__getitem__, lambda i: f"image {i}", np.asarray(labels, np.int32))


def _noise(rng: np.random.Generator, *shapes: tuple[int, int]) -> list[np.ndarray]:
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def _source(train: sources.Split, test: sources.Split, **options: Any) -> sources.Source:
    splits = {"train": train, "test": test}
    return sources.Source("Noise", splits, ("a", "b"), registry.TOP1, flip=True)._replace(**options)


@pytest.fixture
def source(rng: np.random.Generator) -> sources.Source:
    """Fifty images of 4 x 6 pixels to train on, of two classes; five to test."""
    labels = np.repeat([0, 1], [20, 30])
    train = _split(_noise(rng, *[(4, 6)] * 50), rng.permutation(labels))
    return _source(train, _split(_noise(rng, *[(4, 6)] * 5), np.asarray([0, 1, 0, 1, 1])))


def _load(source: sources.Source, **options: Any) -> data.Dataset:
    return data.load(source, **COMMON | options)


def _images(split: sources.Split) -> np.ndarray:
    return np.stack([split.image(i) for i in range(len(split.labels))])


# Sizes.


def test_images_of_one_size_keep_it(source: sources.Source) -> None:
    dataset = _load(source)

    np.testing.assert_array_equal(dataset.splits["test"].image, _images(source.splits["test"]))


def test_images_are_stored_as_uint8(source: sources.Source) -> None:
    assert {split.image.dtype for split in _load(source).splits.values()} == {np.dtype(np.uint8)}


@pytest.mark.parametrize(
    "shapes",
    [[(4, 6), (5, 5)], [(4, 6), (9, 5)], [(4, 9), (4, 9)], [(9, 4), (9, 4)]],
    ids=["two sizes", "one too high", "all too wide", "all too high"],
)
def test_other_images_become_squares_by_pillow(
    rng: np.random.Generator, shapes: list[tuple[int, int]]
) -> None:
    images = _noise(rng, *shapes)
    source = _source(_split(_noise(rng, *shapes), np.zeros(2)), _split(images, np.arange(2)))

    dataset = _load(source, stored_size=8)

    squares = [
        np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
        for image in images
    ]
    np.testing.assert_array_equal(dataset.splits["test"].image, squares)


def test_splits_of_two_sizes_end_up_in_one(rng: np.random.Generator) -> None:
    train = _split(_noise(rng, *[(4, 6)] * 4), np.asarray([0, 0, 1, 1]))
    test = _split(_noise(rng, (5, 5)), np.asarray([1]))

    dataset = _load(_source(train, test), stored_size=8)

    assert {split.image.shape[1:] for split in dataset.splits.values()} == {(8, 8, 3)}


def test_images_that_take_too_much_memory_are_refused(source: sources.Source) -> None:
    with pytest.raises(SettingError, match=r"55 images.*config\.data\.resident_gib.*stored_size"):
        _load(source, resident_gib=55 * 4 * 6 * 3 / 2**30 * 0.99)


def test_the_size_of_the_first_image_does_not_hide_that_of_the_others(
    rng: np.random.Generator,
) -> None:
    train = _split(_noise(rng, (1, 1), (4, 6), (4, 6)), np.asarray([0, 0, 1]))
    source = _source(train, _split(_noise(rng, (4, 6)), np.asarray([1])))

    with pytest.raises(SettingError, match=r"4 images of 8 x 8 .*config\.data\.resident_gib"):
        _load(source, stored_size=8, resident_gib=4 * 8 * 8 * 3 / 2**30 * 0.99)


def test_images_that_are_too_many_are_refused_before_they_are_decoded(
    source: sources.Source,
) -> None:
    decoded = []

    def image(i: int) -> np.ndarray:
        decoded.append(i)
        return np.zeros((4, 6, 3), np.uint8)

    split = source.splits["train"]._replace(image=image)
    with pytest.raises(SettingError, match=r"config\.data\.resident_gib"):
        _load(source._replace(splits={"train": split, "test": split}), resident_gib=1e-9)

    assert len(decoded) <= 1


def test_images_that_just_fit_are_loaded(source: sources.Source) -> None:
    dataset = _load(source, resident_gib=55 * 4 * 6 * 3 / 2**30 * 1.01)

    assert len(dataset.splits["test"].label) == 5


# Corrupt images.


def _with_corrupt(source: sources.Source, *corrupt: int) -> sources.Source:
    train = source.splits["train"]

    def image(i: int) -> np.ndarray:
        if i in corrupt:
            raise sources.CorruptImageError("broken")
        return train.image(i)

    return source._replace(splits=source.splits | {"train": train._replace(image=image)})


def test_corrupt_images_are_listed(source: sources.Source) -> None:
    dataset = _load(_with_corrupt(source, 3, 7), corrupt_limit=2)

    assert dataset.skipped == ("image 3: broken", "image 7: broken")


def test_corrupt_images_are_skipped_with_their_labels(source: sources.Source) -> None:
    train = source.splits["train"]
    kept = [i for i in range(50) if i not in (3, 7)]

    dataset = _load(_with_corrupt(source, 3, 7), corrupt_limit=2)

    expected = {(image.tobytes(), label) for image, label in _pairs(train, kept)}
    found = {
        (image.tobytes(), int(label))
        for name in ("train", "validation")
        for image, label in zip(*dataset.splits[name], strict=True)
    }
    assert found == expected


def _pairs(split: sources.Split, rows: Any) -> list[tuple[np.ndarray, int]]:
    return [(split.image(i), int(split.labels[i])) for i in rows]


def test_more_corrupt_images_than_allowed_are_refused_by_name(source: sources.Source) -> None:
    with pytest.raises(
        SettingError,
        match=r"than 1 .*image 3: broken; image 7: broken.*config\.data\.corrupt_limit",
    ):
        _load(_with_corrupt(source, 3, 7), corrupt_limit=1)


def test_a_split_of_corrupt_images_alone_is_refused(source: sources.Source) -> None:
    with pytest.raises(SettingError, match="train split of Noise holds no readable image"):
        _load(_with_corrupt(source, *range(50)), corrupt_limit=50)


# Validation.


def test_validation_is_a_share_of_each_class(source: sources.Source) -> None:
    dataset = _load(source, validation=0.2)

    np.testing.assert_array_equal(np.bincount(dataset.splits["validation"].label), [4, 6])


def test_validation_and_the_rest_are_all_of_train(source: sources.Source) -> None:
    dataset = _load(source)

    # No two images of noise are equal, so this also says that no image is in both.
    parts = [_pairs_of(dataset, name) for name in ("train", "validation")]
    whole = [(image.tobytes(), label) for image, label in _pairs(source.splits["train"], range(50))]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def _pairs_of(dataset: data.Dataset, name: str) -> list[tuple[bytes, int]]:
    image, label = dataset.splits[name]
    return [(np.asarray(one).tobytes(), int(of)) for one, of in zip(image, label, strict=True)]


def test_another_seed_holds_out_other_images(source: sources.Source) -> None:
    one, two = (_load(source, seed=seed) for seed in (1, 2))

    assert set(_pairs_of(one, "validation")) != set(_pairs_of(two, "validation"))


def test_the_test_split_does_not_depend_on_the_seed(source: sources.Source) -> None:
    one, two = (_load(source, seed=seed) for seed in (1, 2))

    assert _pairs_of(one, "test") == _pairs_of(two, "test")


def test_a_validation_split_of_the_source_is_taken_as_it_is(source: sources.Source) -> None:
    source = source._replace(splits=source.splits | {"validation": source.splits["test"]})

    dataset = _load(source)

    assert _pairs_of(dataset, "validation") == _pairs_of(dataset, "test")
    assert len(dataset.splits["train"].label) == 50


# Fingerprint.


def test_two_loads_have_one_fingerprint(source: sources.Source) -> None:
    assert _load(source).fingerprint == _load(source).fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pixel_changes_the_fingerprint(source: sources.Source, split: str) -> None:
    before = _load(source).fingerprint

    source.splits[split].image(2)[3, 5, 2] ^= 1

    assert _load(source).fingerprint != before


def test_a_label_changes_the_fingerprint(source: sources.Source) -> None:
    before = _load(source).fingerprint

    source.splits["test"].labels[4] ^= 1

    assert _load(source).fingerprint != before


def test_another_held_out_split_changes_the_fingerprint(source: sources.Source) -> None:
    assert _load(source, seed=1).fingerprint != _load(source, seed=2).fingerprint


# What is said about it.


@pytest.mark.parametrize(
    ("official", "expected"),
    [(None, None), ((50, 5), True), ((53, 2), True), ((54, 5), False), ((50, 9), False)],
)
def test_official_means_the_official_counts(
    source: sources.Source, official: tuple[int, int] | None, expected: bool | None
) -> None:
    assert _load(source._replace(official=official)).official is expected


def test_digits_are_1797_images() -> None:
    dataset = _load(data.open_source("digits", path="", data_dir=""), validation=0.25)

    counts = {name: len(split.label) for name, split in dataset.splits.items()}
    assert counts["test"] == 360
    assert sum(counts.values()) == 1797


def test_there_are_no_official_digits() -> None:
    dataset = _load(data.open_source("digits", path="", data_dir=""))

    assert dataset.official is None
