"""Loading data sets: the choice of input pipeline, the held-out split and the metadata."""

import logging as python_logging
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.images import decoding

STORAGE = data.Storage("resident", stored_size=8, resident_gib=1.0, cache="", threads=1)
GIB = 2**30


def _split(images: list[np.ndarray], labels: np.ndarray) -> sources.Split:
    def read(i: int) -> sources.Example:
        return sources.Example(images[i], int(labels[i]))

    return sources.Split(read, "image {}".format, len(images), None, key="")


def _noise(rng: np.random.Generator, *shapes: tuple[int, int]) -> list[np.ndarray]:
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def _source(train: sources.Split, test: sources.Split, **options: Any) -> sources.Source:
    splits = {"train": train, "test": test}
    return sources.Source("Noise", splits, ("a", "b"), registry.TOP1, flip=True)._replace(**options)


@pytest.fixture
def source(rng: np.random.Generator) -> sources.Source:
    """Fifty training and five test images of 4 x 6 pixels, in two classes."""
    labels = np.repeat([0, 1], [20, 30])
    train = _split(_noise(rng, *[(4, 6)] * 50), rng.permutation(labels))
    return _source(train, _split(_noise(rng, *[(4, 6)] * 5), np.asarray([0, 1, 0, 1, 1])))


def _load(
    source: sources.Source,
    *,
    validation: float = 0.2,
    seed: int = 0,
    corrupt_limit: int = 0,
    **storage: Any,
) -> data.Dataset:
    return data.load(
        source,
        STORAGE._replace(**storage),
        data.Rules(validation=validation, seed=seed, near_duplicates=False),
        corrupt_limit=corrupt_limit,
    )


def _pairs(dataset: data.Dataset, name: str) -> list[tuple[bytes, int]]:
    assert dataset.pixels is not None
    image, label = dataset.pixels[name]
    return [(np.asarray(x).tobytes(), int(y)) for x, y in zip(image, label, strict=True)]


def _pairs_in(split: sources.Split, rows: Any) -> list[tuple[bytes, int]]:
    examples = [split.read(i) for i in rows]
    return [(np.asarray(image).tobytes(), label) for image, label in examples]


# Input pipelines.


def test_resident_images_are_kept_as_uint8(source: sources.Source) -> None:
    dataset = _load(source)

    assert _pairs(dataset, "test") == _pairs_in(source.splits["test"], range(5))
    assert dataset.pixels is not None
    assert {split.image.dtype for split in dataset.pixels.values()} == {np.dtype(np.uint8)}
    assert dataset.source_size == (4, 6)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_data_set_is_resident_if_it_fits_and_streamed_otherwise(
    source: sources.Source, share: float
) -> None:
    dataset = _load(source, input="auto", resident_gib=share * 55 * 4 * 6 * 3 / GIB)

    assert (dataset.pixels is not None) == (share > 1)


def test_the_choice_is_logged(source: sources.Source, caplog: pytest.LogCaptureFixture) -> None:
    # Name the logger: once anything sets the verbosity, absl's logger has its own level.
    with caplog.at_level(python_logging.INFO, logger="absl"):
        _load(source, input="auto")
        _load(source, input="auto", resident_gib=1e-9)

    assert "Noise is resident on the device" in caplog.text
    assert "Noise is streamed" in caplog.text


def test_a_streamed_data_set_keeps_no_pixels(source: sources.Source) -> None:
    dataset = _load(source, input="streamed")

    assert dataset.pixels is None
    assert dataset.source_size is None


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_images_and_labels_are_the_same_for_both_inputs(source: sources.Source, kind: str) -> None:
    resident, other = _load(source), _load(source, input=kind)

    assert other.fingerprint == resident.fingerprint
    for name, subset in other.splits.items():
        read = [subset.split.read(int(row)) for row in subset.rows]
        pairs = [(np.asarray(image).tobytes(), label) for image, label in read]
        assert pairs == _pairs(resident, name)
        np.testing.assert_array_equal(subset.labels, [label for _, label in pairs])


def test_images_that_take_too_much_memory_are_refused(source: sources.Source) -> None:
    with pytest.raises(
        SettingError, match=r"55 images.*config\.data\.resident_gib.*stored_size.*data\.input"
    ):
        _load(source, resident_gib=55 * 4 * 6 * 3 / GIB * 0.99)


@pytest.mark.parametrize("kind", ["resident", "auto"])
def test_memory_is_estimated_from_all_image_sizes_not_just_the_first(
    rng: np.random.Generator, kind: str
) -> None:
    train = _split(_noise(rng, (1, 1), (4, 6), (4, 6), (4, 6)), np.asarray([0, 0, 1, 1]))
    source = _source(train, _split(_noise(rng, (4, 6)), np.asarray([1])))
    settings = {"stored_size": 8, "resident_gib": 5 * 8 * 8 * 3 / GIB * 0.99, "input": kind}

    if kind == "auto":
        assert _load(source, **settings).pixels is None
    else:
        with pytest.raises(SettingError, match=r"5 images of 8 x 8 .*config\.data\.resident_gib"):
            _load(source, **settings)


def test_too_many_images_are_refused_before_decoding(
    source: sources.Source,
) -> None:
    decoded = []

    def read(i: int) -> sources.Example:
        decoded.append(i)
        return sources.Example(np.zeros((4, 6, 3), np.uint8), 0)

    split = source.splits["train"]._replace(read=read)
    with pytest.raises(SettingError, match=r"config\.data\.resident_gib"):
        _load(source._replace(splits={"train": split, "test": split}), resident_gib=1e-9)

    assert len(decoded) <= 1


@pytest.mark.parametrize(("shape", "resized"), [((8, 8), False), ((9, 8), True)])
def test_the_data_set_records_whether_images_were_resized(
    rng: np.random.Generator, shape: tuple[int, int], resized: bool
) -> None:
    train = _split(_noise(rng, shape, shape, shape, shape), np.asarray([0, 0, 1, 1]))

    assert _load(_source(train, train)).resized is resized


# Corrupt images.


def _with_corrupt(source: sources.Source, *corrupt: int) -> sources.Source:
    train = source.splits["train"]

    def read(i: int) -> sources.Example:
        if i in corrupt:
            raise decoding.CorruptImageError("broken")
        return train.read(i)

    return source._replace(splits=source.splits | {"train": train._replace(read=read)})


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_corrupt_images_are_listed(source: sources.Source, kind: str) -> None:
    dataset = _load(_with_corrupt(source, 3, 7), corrupt_limit=2, input=kind)

    assert dataset.corrupt_images == ("image 3: broken", "image 7: broken")


def test_corrupt_images_are_skipped_with_their_labels(source: sources.Source) -> None:
    kept = [i for i in range(50) if i not in (3, 7)]

    dataset = _load(_with_corrupt(source, 3, 7), corrupt_limit=2)

    pairs = _pairs(dataset, "train") + _pairs(dataset, "validation")
    assert sorted(pairs) == sorted(_pairs_in(source.splits["train"], kept))


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_more_corrupt_images_than_allowed_are_refused_by_name(
    source: sources.Source, kind: str
) -> None:
    with pytest.raises(
        SettingError,
        match=r"than 1 .*image 3: broken; image 7: broken.*config\.data\.corrupt_limit",
    ):
        _load(_with_corrupt(source, 3, 7), corrupt_limit=1, input=kind)


def test_the_limit_of_corrupt_images_applies_to_all_splits_together(source: sources.Source) -> None:
    source = _with_corrupt(source, 3)
    splits = source.splits | {"test": _with_corrupt(source, 4).splits["train"]}

    with pytest.raises(SettingError, match=r"config\.data\.corrupt_limit"):
        _load(source._replace(splits=splits), corrupt_limit=1)


def test_a_split_with_only_corrupt_images_is_refused(source: sources.Source) -> None:
    with pytest.raises(SettingError, match="train split of Noise holds no readable image"):
        _load(_with_corrupt(source, *range(50)), corrupt_limit=50)


@pytest.mark.parametrize("corrupt", [(0,), (0, 1)])
def test_a_class_with_too_few_readable_images_is_refused(
    source: sources.Source, rng: np.random.Generator, corrupt: tuple[int, ...]
) -> None:
    train = _split(_noise(rng, *[(4, 6)] * 5), np.asarray([0, 0, 0, 1, 1]))
    few = _with_corrupt(source._replace(splits=source.splits | {"train": train}), *corrupt)

    if len(corrupt) == 1:
        assert len(_load(few, corrupt_limit=2).splits["train"].rows) == 2
    else:
        with pytest.raises(
            SettingError, match=r"class 'a' has 1 readable training image; 2 are needed, one each"
        ):
            _load(few, corrupt_limit=2)


def test_counts_of_skipped_files_are_kept(source: sources.Source) -> None:
    dataset = _load(
        source._replace(skipped_files={".txt": 3}, empty_classes=("c",), warnings=("odd",))
    )

    assert dataset.skipped_files == {".txt": 3}
    assert dataset.empty_classes == ("c",)
    assert dataset.warnings == ("odd",)


# Validation.


def test_validation_is_a_share_of_each_class(source: sources.Source) -> None:
    dataset = _load(source, validation=0.2)

    np.testing.assert_array_equal(np.bincount(dataset.splits["validation"].labels), [4, 6])


def test_validation_and_train_partition_the_train_split(source: sources.Source) -> None:
    dataset = _load(source)

    # All noise images differ, so this also checks that no image is in both.
    pairs = _pairs(dataset, "train") + _pairs(dataset, "validation")
    assert sorted(pairs) == sorted(_pairs_in(source.splits["train"], range(50)))


def test_another_seed_holds_out_other_images(source: sources.Source) -> None:
    first, second = (_load(source, seed=seed) for seed in (1, 2))

    assert set(_pairs(first, "validation")) != set(_pairs(second, "validation"))


def test_the_test_split_does_not_depend_on_the_seed(source: sources.Source) -> None:
    first, second = (_load(source, seed=seed) for seed in (1, 2))

    assert _pairs(first, "test") == _pairs(second, "test")


def test_a_validation_split_of_the_source_is_used_unchanged(source: sources.Source) -> None:
    source = source._replace(splits=source.splits | {"validation": source.splits["test"]})

    dataset = _load(source)

    assert _pairs(dataset, "validation") == _pairs(dataset, "test")
    assert len(dataset.splits["train"].rows) == 50


# Fingerprint.


def test_loading_twice_gives_the_same_fingerprint(source: sources.Source) -> None:
    assert _load(source).fingerprint == _load(source).fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pixel_changes_the_fingerprint(source: sources.Source, split: str) -> None:
    before = _load(source).fingerprint

    image = source.splits[split].read(2).image
    assert isinstance(image, np.ndarray)
    image[3, 5, 2] ^= 1

    assert _load(source).fingerprint != before


def test_a_label_changes_the_fingerprint(source: sources.Source) -> None:
    test = source.splits["test"]
    other = _split([np.asarray(test.read(i).image) for i in range(5)], np.asarray([0, 1, 0, 1, 0]))
    changed = source._replace(splits=source.splits | {"test": other})

    assert _load(changed).fingerprint != _load(source).fingerprint


def test_another_held_out_split_changes_the_fingerprint(source: sources.Source) -> None:
    assert _load(source, seed=1).fingerprint != _load(source, seed=2).fingerprint


# Metadata.


def test_digits_are_1797_images() -> None:
    dataset = _load(data.open_source("digits", path="", data_dir=""), validation=0.25)

    counts = {name: len(subset.rows) for name, subset in dataset.splits.items()}
    assert counts["test"] == 360
    assert sum(counts.values()) == 1797


def test_there_are_no_official_digits() -> None:
    dataset = _load(data.open_source("digits", path="", data_dir=""))

    assert dataset.official is None


# Sources that cannot be opened.


def test_a_single_class_is_refused(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    (tmp_path / "cat").mkdir()
    for i, image in enumerate(_noise(rng, *[(4, 6)] * 5)):
        Image.fromarray(image).save(tmp_path / "cat" / f"{i}.png")

    with pytest.raises(SettingError, match=r"one class only \(cat\).*config\.data\.path"):
        data.open_source("folder", path=str(tmp_path), data_dir="")


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    known = ", ".join(("eurosat_part", "digits", "folder", "list", "arrays", *registry.RECORDS))

    with pytest.raises(SettingError, match=rf"'imagenet'; config\.data\.name: {known}"):
        data.open_source("imagenet", path="", data_dir="")


@pytest.mark.parametrize(
    ("test", "metric", "warns"),
    [
        ([100, 100], registry.TOP1, True),
        ([100, 100], registry.MEAN_PER_CLASS, False),
        ([180, 20], registry.TOP1, False),
        ([2, 2], registry.TOP1, False),  # May be chance.
    ],
)
def test_other_proportions_of_classes_in_test_are_named(
    rng: np.random.Generator, test: list[int], metric: str, warns: bool
) -> None:
    train = _split(_noise(rng, *[(4, 6)] * 400), np.repeat([0, 1], [360, 40]))
    labels = np.repeat([0, 1], test)
    source = _source(train, _split(_noise(rng, *[(4, 6)] * sum(test)), labels))

    warnings = _load(source._replace(metric=metric)).warnings

    assert [text for text in warnings if "different proportions" in text] == list(warnings)
    assert bool(warnings) == warns
