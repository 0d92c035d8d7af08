"""Data sets of TFDS, read from what TFDS's own builders have written."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from tests.data import tiny_tfds

# TFDS's name, size of the images, and how many each split of TFDS's holds.
WRITTEN = {
    "caltech101": ((6, 5), {"train": 6, "test": 4}),
    "flowers102": ((6, 5), {"train": 3, "validation": 5, "test": 4}),
    "eurosat": ((64, 64), {"train": 10}),
    "pets": ((6, 5), {"train": 5, "test": 3}),
}
SETTINGS: dict[str, Any] = {
    "validation": 0.25,
    "seed": 0,
    "stored_size": 64,
    "corrupt_limit": 0,
    "resident_gib": 1.0,
}


def _examples(
    rng: np.random.Generator, name: str, size: tuple[int, int], count: int
) -> tiny_tfds.Examples:
    """Noise; the first pixel holds the label, which takes the first and the last classes."""
    classes = registry.RECORDS[name].classes
    labels = np.arange(count) % 4 * (classes - 1) // 3
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    images[:, 0, 0] = labels[:, None]
    return images, labels


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of TFDS with a few tiny data sets."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tfds")
    for name, (size, counts) in WRITTEN.items():
        splits = {split: _examples(rng, name, size, count) for split, count in counts.items()}
        tiny_tfds.write(registry.RECORDS[name].tfds, folder, splits)
    return folder


def _open(name: str, data_dir: pathlib.Path) -> sources.Source:
    return data.open_source(name, path="", data_dir=str(data_dir))


def _images(split: sources.Split) -> np.ndarray:
    return np.stack([split.image(i) for i in range(len(split.labels))])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("caltech101", {"train": 6, "test": 4}),
        ("flowers102", {"train": 3 + 5, "test": 4}),
        ("eurosat", {"train": 8, "test": 2}),
        ("pets", {"train": 5, "test": 3}),
    ],
)
def test_splits_are_those_of_the_registry(
    data_dir: pathlib.Path, name: str, counts: dict[str, int]
) -> None:
    splits = _open(name, data_dir).splits

    assert {split: len(found.labels) for split, found in splits.items()} == counts


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_keep_their_labels(data_dir: pathlib.Path, name: str, split: str) -> None:
    found = _open(name, data_dir).splits[split]

    np.testing.assert_array_equal(_images(found)[:, 0, 0, 0], found.labels)


@pytest.mark.parametrize("name", WRITTEN)
def test_images_and_their_order_are_those_that_tfds_reads(
    data_dir: pathlib.Path, name: str
) -> None:
    record = registry.RECORDS[name]
    builder = tensorflow_datasets.builder(record.tfds, data_dir=str(data_dir), try_gcs=False)
    stored: Any = builder.as_data_source(record.train)

    images = _images(_open(name, data_dir).splits["train"])

    np.testing.assert_array_equal(images, [example["image"] for example in stored])


def test_two_cuts_of_one_split_share_nothing(data_dir: pathlib.Path) -> None:
    train, test = (_open("eurosat", data_dir).splits[name] for name in ("train", "test"))

    images = np.concatenate([_images(train), _images(test)])

    assert len(np.unique(images, axis=0)) == 10


@pytest.mark.parametrize("name", WRITTEN)
def test_classes_are_those_of_tfds(data_dir: pathlib.Path, name: str) -> None:
    builder: Any = tensorflow_datasets.builder(
        registry.RECORDS[name].tfds, data_dir=str(data_dir), try_gcs=False
    )

    source = _open(name, data_dir)

    assert list(source.classes) == builder.info.features["label"].names


@pytest.mark.parametrize("name", WRITTEN)
def test_metric_is_that_of_the_registry(data_dir: pathlib.Path, name: str) -> None:
    assert _open(name, data_dir).metric == registry.RECORDS[name].metric


@pytest.mark.parametrize("name", WRITTEN)
def test_a_tiny_data_set_is_not_the_official_one(data_dir: pathlib.Path, name: str) -> None:
    dataset = data.load(_open(name, data_dir), **SETTINGS)

    assert dataset.official is False


def test_validation_is_held_out_of_the_train_split(data_dir: pathlib.Path) -> None:
    dataset = data.load(_open("flowers102", data_dir), **SETTINGS)

    # Of classes of 3, 2, 2 and 1 images; the last keeps its only one.
    counts = {name: len(split.label) for name, split in dataset.splits.items()}
    assert counts == {"train": 5, "validation": 3, "test": 4}


def test_a_data_set_that_is_not_prepared_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"dtd.* is not prepared.*config\.data\.dir"):
        _open("dtd", tmp_path)


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_a_data_set_in_another_format_is_refused(
    tmp_path: pathlib.Path, rng: np.random.Generator, file_format: str
) -> None:
    examples = _examples(rng, "caltech101", (6, 5), 2)
    folder = tiny_tfds.write("caltech101:3.*.*", tmp_path, {"train": examples, "test": examples})
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps(info | {"fileFormat": file_format}))

    with pytest.raises(SettingError, match=r"not prepared as array_record.*config\.data\.dir"):
        _open("caltech101", tmp_path)


def test_the_tilde_in_the_folder_of_tfds_is_the_home(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data_dir.parent))

    source = _open("caltech101", pathlib.Path("~") / data_dir.name)

    assert len(source.splits["train"].labels) == 6


def _loaded_after(code: str) -> set[str]:
    """Which of the large libraries a fresh interpreter has loaded after `code`."""
    names = "tensorflow", "tensorflow_datasets", "grain"
    code += f"; import sys; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=200,
    )
    return set(done.stdout.split())


def test_digits_need_neither_tensorflow_nor_tfds_nor_grain() -> None:
    loaded = _loaded_after(
        "import remem_jax.workflow; from remem_jax import data; "
        "data.open_source('digits', path='', data_dir='')"
    )

    assert loaded == set()


def test_tfds_is_read_without_tensorflow_and_grain(data_dir: pathlib.Path) -> None:
    loaded = _loaded_after(
        "from remem_jax import data; "
        f"source = data.open_source('caltech101', path='', data_dir={str(data_dir)!r}); "
        "source.splits['test'].image(0)"
    )

    assert loaded == {"tensorflow_datasets"}
