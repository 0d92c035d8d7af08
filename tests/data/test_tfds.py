"""TFDS data sets, read from files that TFDS's own builders wrote."""

import concurrent.futures
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.images import decoding
from remem_jax.data.tfds import prepared
from tests.data import tiny_tfds

# Image size and examples per TFDS split; the splits of a data set differ in size.
WRITTEN = {
    "food101": ((6, 5), {"train": 7, "validation": 2}),
    "cifar100": ((32, 32), {"train": 7, "test": 2}),
    "sun397": ((6, 5), {"train": 7, "test": 2}),
    "cars196": ((6, 5), {"train": 7, "test": 2}),
    "caltech101": ((6, 5), {"train": 6, "test": 4}),
    "flowers102": ((6, 5), {"train": 3, "validation": 5, "test": 4}),
    "pets": ((6, 5), {"train": 5, "test": 3}),
    "dtd": ((6, 5), {"train": 7, "validation": 3, "test": 2}),
    "svhn": ((32, 32), {"train": 7, "test": 2, "extra": 4}),
    "sun397_tfds": ((6, 5), {"train": 7, "validation": 4, "test": 2}),
    "imagenet_lt": ((6, 5), {"train": 7, "validation": 4, "test": 2}),
    "inat2017": ((6, 5), {"train": 7, "validation": 4, "test": 2}),
    "pcam": ((96, 96), {"train": 3, "validation": 4, "test": 2}),
    "retinopathy": ((6, 5), {"sample": 1, "train": 7, "validation": 4, "test": 2}),
    "eurosat": ((64, 64), {"train": 10}),
    "resisc45": ((256, 256), {"train": 10}),
}
# Numbers of training and test images in the paper's splits.
READ = {
    "food101": (7, 2),
    "cifar100": (7, 2),
    "sun397": (7, 2),
    "cars196": (7, 2),
    "caltech101": (6, 4),
    "flowers102": (3 + 5, 4),
    "pets": (5, 3),
    "dtd": (7, 2),
    "svhn": (7, 2),
    "sun397_tfds": (7, 4),
    "imagenet_lt": (7, 4),
    "inat2017": (7, 4),
    "pcam": (3, 2),
    "retinopathy": (7, 4),
    "eurosat": (8, 2),
    "resisc45": (8, 2),
}
# Numbers of images of the validation splits that the paper neither trains nor tests on.
VALIDATION = {"dtd": 3, "pcam": 4}


def _examples(
    rng: np.random.Generator, name: str, size: tuple[int, int], count: int
) -> tiny_tfds.Examples:
    """Returns noise whose first pixel holds the label; labels are the first and last classes."""
    classes = registry.RECORDS[name].classes
    labels = np.arange(count) % 4 * (classes - 1) // 3
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    images[:, 0, 0] = np.stack([labels % 256, labels // 256, labels * 0], axis=-1)
    return images, labels


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A TFDS folder with tiny versions of all data sets."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tfds")
    for name, (size, counts) in WRITTEN.items():
        splits = {split: _examples(rng, name, size, count) for split, count in counts.items()}
        tiny_tfds.write(registry.RECORDS[name].tfds, folder, splits)
    return folder


@pytest.fixture
def caltech101(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a copy of one data set in the data folder `tmp_path`, to be damaged."""
    folder = tmp_path / "caltech101"
    shutil.copytree(data_dir / "caltech101", folder)
    return next(file.parent for file in folder.rglob("dataset_info.json"))


def _open(name: str, data_dir: pathlib.Path) -> sources.Source:
    return prepared.tfds(name, str(data_dir))


def _load_run(source: sources.Source, validation: float = 0.34) -> data.Dataset:
    rules = data.Rules(validation=validation, seed=0, near_duplicates=True)
    return data.load(source, data.Storage("streamed", 8, 1.0, "", 1), rules, corrupt_limit=0)


def _images(split: sources.Split) -> np.ndarray:
    files = [split.read(i).image for i in range(split.examples)]
    return np.stack([np.asarray(Image.open(io.BytesIO(bytes(file)))) for file in files])


def _labels(split: sources.Split) -> list[int]:
    return [split.read(i).label for i in range(split.examples)]


@pytest.mark.parametrize("name", registry.RECORDS)
def test_splits_match_the_paper(data_dir: pathlib.Path, name: str) -> None:
    splits = _open(name, data_dir).splits

    assert (splits["train"].examples, splits["test"].examples) == READ[name]
    assert set(splits) == {"train", "test"} | ({"validation"} if name in VALIDATION else set())


@pytest.mark.parametrize("name", VALIDATION)
def test_the_official_validation_split_selects(data_dir: pathlib.Path, name: str) -> None:
    dataset = _load_run(_open(name, data_dir))

    validation = dataset.splits["validation"]
    assert len(validation.rows) == VALIDATION[name]
    assert dataset.held_out == ()
    # The other splits are as they are without it.
    assert (len(dataset.splits["train"].rows), len(dataset.splits["test"].rows)) == READ[name]
    builder: Any = tensorflow_datasets.builder(
        registry.RECORDS[name].tfds, data_dir=str(data_dir), try_gcs=False
    )
    stored = builder.as_data_source("validation")
    for i, example in enumerate(stored):
        pixels = np.asarray(Image.open(io.BytesIO(bytes(validation.image(i)))))
        np.testing.assert_array_equal(pixels, example["image"])


@pytest.mark.parametrize("name", VALIDATION)
def test_an_official_validation_split_can_be_left_out(data_dir: pathlib.Path, name: str) -> None:
    source = _open(name, data_dir)
    kept = data.with_rules(source, flip="auto", metric="auto", validation=False)

    dataset = _load_run(kept)

    assert dataset.held_out == ("validation",)
    held = [len(dataset.splits[split].rows) for split in ("train", "validation")]
    assert sum(held) == READ[name][0]


@pytest.mark.parametrize("name", sorted(registry.RECORDS.keys() - VALIDATION.keys()))
def test_other_validation_images_are_held_out_of_train(data_dir: pathlib.Path, name: str) -> None:
    dataset = _load_run(_open(name, data_dir))

    assert dataset.held_out == ("validation",)
    held = [len(dataset.splits[split].rows) for split in ("train", "validation")]
    assert sum(held) == READ[name][0]
    assert len(dataset.splits["test"].rows) == READ[name][1]


def test_the_eyes_of_a_patient_stay_together(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 2)
    labels = rng.integers(0, 5, 80)  # The two eyes of a patient may have different grades.
    images = rng.integers(0, 256, (80, 6, 5, 3), dtype=np.uint8)
    names = [f"{patient}_{side}" for patient in range(40) for side in ("left", "right")]
    record = registry.RECORDS["retinopathy"]
    tiny_tfds.write(
        record.tfds,
        tmp_path,
        {"train": (images, labels), "validation": (images[:4], labels[:4])},
        texts={"name": names},
    )

    dataset = _load_run(_open("retinopathy", tmp_path), validation=0.2)

    patient_of = {image.tobytes(): patient for image, patient in zip(images, patients, strict=True)}
    of_split = {
        name: {
            patient_of[np.asarray(Image.open(io.BytesIO(bytes(subset.image(i))))).tobytes()]
            for i in range(len(subset.rows))
        }
        for name, subset in dataset.splits.items()
    }
    assert not of_split["train"] & of_split["validation"]
    assert 6 <= len(of_split["validation"]) <= 10
    assert dataset.groups is not None
    assert (dataset.groups.named, dataset.groups.named_images) == (40, 80)


@pytest.mark.parametrize("name", registry.RECORDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_keep_their_labels(data_dir: pathlib.Path, name: str, split: str) -> None:
    subset = _open(name, data_dir).splits[split]

    pixels = _images(subset)[:, 0, 0].astype(int)
    np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], _labels(subset))


@pytest.mark.parametrize("name", registry.RECORDS)
def test_images_and_their_order_match_tfds(data_dir: pathlib.Path, name: str) -> None:
    record = registry.RECORDS[name]
    builder = tensorflow_datasets.builder(record.tfds, data_dir=str(data_dir), try_gcs=False)
    stored: Any = builder.as_data_source(record.train)

    images = _images(_open(name, data_dir).splits["train"])

    np.testing.assert_array_equal(images, [example["image"] for example in stored])


@pytest.mark.parametrize("name", ["eurosat", "resisc45"])
def test_two_slices_of_one_split_are_disjoint(data_dir: pathlib.Path, name: str) -> None:
    train, test = (_open(name, data_dir).splits[split] for split in ("train", "test"))

    images = np.concatenate([_images(train), _images(test)])

    assert len({image.tobytes() for image in images}) == 10


@pytest.mark.parametrize("name", registry.RECORDS)
def test_classes_match_tfds(data_dir: pathlib.Path, name: str) -> None:
    builder: Any = tensorflow_datasets.builder(
        registry.RECORDS[name].tfds, data_dir=str(data_dir), try_gcs=False
    )

    source = _open(name, data_dir)

    assert list(source.classes) == builder.info.features["label"].names
    assert len(source.classes) == registry.RECORDS[name].classes


@pytest.mark.parametrize("name", registry.RECORDS)
def test_the_metric_matches_the_paper(data_dir: pathlib.Path, name: str) -> None:
    # The paper's top-1 on ImageNet-LT's test images, 20 of each class, is the mean per class.
    per_class = name in ("caltech101", "flowers102", "sun397_tfds", "inat2017", "imagenet_lt")

    assert _open(name, data_dir).metric == ("mean_per_class" if per_class else "top1")


def test_a_data_set_is_official_if_its_counts_match(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = _open("sun397_tfds", data_dir)
    # Pretend that the paper has these sizes; one training image may be missing.
    for train, test in ((7, 4), (8, 4), (5, 4), (3, 5)):
        record = registry.RECORDS["sun397_tfds"]._replace(examples=(train, test))
        monkeypatch.setitem(registry.RECORDS, "sun397_tfds", record)
        assert _open("sun397_tfds", data_dir).official is ((train, test) in ((7, 4), (8, 4)))

    assert tiny.official is False


def test_examples_can_be_read_by_another_process(data_dir: pathlib.Path) -> None:
    split = _open("pets", data_dir).splits["train"]

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        read = pool.map(split.read, range(split.examples))

    assert read == [split.read(i) for i in range(split.examples)]


def test_examples_can_be_read_by_many_threads(data_dir: pathlib.Path) -> None:
    first, second = (_open("caltech101", data_dir).splits["train"] for _ in range(2))
    order = [i % first.examples for i in range(200)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(first.read, order))

    assert read == [second.read(i) for i in order]


def test_a_name_contains_data_set_split_and_index(data_dir: pathlib.Path) -> None:
    split = pickle.loads(pickle.dumps(_open("eurosat", data_dir).splits["test"]))

    assert split.name(1) == "eurosat train[80%:] 1"


def test_a_key_is_the_same_until_a_file_changes(
    caltech101: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    before, again = (_open("caltech101", tmp_path).splits for _ in range(2))
    (file,) = caltech101.glob("*-test.array_record*")
    os.utime(file, ns=(1, 1))

    after = _open("caltech101", tmp_path).splits

    assert before["test"].key == again["test"].key
    assert before["test"].key != after["test"].key
    assert before["train"].key == after["train"].key


def test_two_slices_of_one_split_have_different_keys(data_dir: pathlib.Path) -> None:
    splits = _open("eurosat", data_dir).splits

    assert splits["train"].key != splits["test"].key


def test_a_data_set_that_is_not_prepared_is_refused(tmp_path: pathlib.Path) -> None:
    message = r"dtd.* is not prepared in .*tools/prepare_data\.py dtd.*config\.data\.dir"
    with pytest.raises(SettingError, match=message):
        _open("dtd", tmp_path)


def test_a_data_set_in_another_format_is_refused(
    caltech101: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _edit(caltech101, fileFormat="parquet")

    message = r"is parquet, not prepared as array_record or tfrecord.*config\.data\.dir"
    with pytest.raises(SettingError, match=message):
        _open("caltech101", tmp_path)


def test_array_record_is_preferred_to_other_formats(
    caltech101: pathlib.Path, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    _edit(caltech101, fileFormat="tfrecord", alternativeFileFormats=["array_record"])

    images = _images(_open("caltech101", tmp_path).splits["test"])

    np.testing.assert_array_equal(images, _images(_open("caltech101", data_dir).splits["test"]))


def test_a_missing_file_is_named(caltech101: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (file,) = caltech101.glob("*-test.array_record*")
    file.unlink()

    with pytest.raises(SettingError, match=f"lacks files, such as {file}"):
        _open("caltech101", tmp_path)


def test_a_missing_split_is_named(caltech101: pathlib.Path, tmp_path: pathlib.Path) -> None:
    splits = json.loads((caltech101 / "dataset_info.json").read_text())["splits"]
    _edit(caltech101, splits=[split for split in splits if split["name"] == "train"])

    with pytest.raises(SettingError, match="has no split 'test'"):
        _open("caltech101", tmp_path)


def test_a_truncated_file_is_named(caltech101: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (file,) = caltech101.glob("*-test.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(SettingError, match=f"{file} cannot be read: 0 of its 4 records"):
        _open("caltech101", tmp_path)


_DAMAGES = {"cut": -10, "empty": 0, "lost": None}


@pytest.mark.parametrize("damage", _DAMAGES)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_damaged_metadata_files_are_named(
    name: str, damage: str, caltech101: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = (caltech101 / name).read_bytes()
    (caltech101 / name).unlink()
    if damage != "lost":
        (caltech101 / name).write_bytes(whole[: _DAMAGES[damage]])

    if (name, damage) == ("features.json", "lost"):  # TFDS also has the features in its code.
        assert _labels(_open("caltech101", tmp_path).splits["test"])
        return
    message = f"{caltech101 / name} cannot be read: .*; copy it again, or remove the folder"
    with pytest.raises(SettingError, match=message):
        _open("caltech101", tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff\x00", b'{"splits": 3}'])
def test_metadata_with_unexpected_content_are_named(
    content: bytes, caltech101: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (caltech101 / "dataset_info.json").write_bytes(content)

    with pytest.raises(SettingError, match=f"{tmp_path}/caltech101.* cannot be read: .*; copy"):
        _open("caltech101", tmp_path)


def test_damaged_bytes_are_a_corrupt_image(
    caltech101: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (file,) = caltech101.glob("*-test.array_record*")
    whole = file.read_bytes()
    place = whole.index(b"PNG")
    file.write_bytes(whole[:place] + bytes(20) + whole[place + 20 :])

    split = _open("caltech101", tmp_path).splits["test"]
    messages = [_error(split, i) for i in range(4)]

    assert sum("its record cannot be read" in text for text in messages) == 1


def _error(split: sources.Split, i: int) -> str:
    try:
        split.read(i)
    except decoding.CorruptImageError as error:
        return str(error)
    return ""


def test_an_interrupted_preparation_does_not_count(tmp_path: pathlib.Path) -> None:
    """Kills the process, so that it cannot clean up."""
    code = f"""
import os, pathlib
import tensorflow_datasets
from tests.data import tiny_tfds
builder = tensorflow_datasets.builder("caltech101:3.*.*", data_dir={str(tmp_path)!r})
def examples():
    yield "0", {{"image": tiny_tfds.png(tiny_tfds.np.zeros((1, 1, 3), "uint8")), "label": 0,
                "image/file_name": "0"}}
    print(*[path.name for path in pathlib.Path({str(tmp_path)!r}, "caltech101").iterdir()])
    os.kill(os.getpid(), 9)
builder._split_generators = lambda *_, **__: {{"train": examples(), "test": examples()}}
builder.download_and_prepare(file_format="array_record")
"""
    process = _run(code, check=False)
    assert process.returncode == -9, process.stderr
    assert "incomplete" in process.stdout

    with pytest.raises(SettingError, match="is not prepared"):
        _open("caltech101", tmp_path)


def test_a_tilde_in_the_tfds_folder_is_expanded(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data_dir.parent))

    source = _open("caltech101", pathlib.Path("~") / data_dir.name)

    assert source.splits["train"].examples == 6


def _edit(folder: pathlib.Path, **changed: Any) -> None:
    """Changes fields of the metadata that TFDS wrote."""
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps(info | changed))


def _run(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=check,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=200,
    )


def _loaded_after(code: str) -> set[str]:
    """Returns the large libraries that a fresh interpreter has loaded after running `code`."""
    names = "tensorflow", "tensorflow_datasets", "grain"
    code += f"; import sys; print(*[name for name in {names} if name in sys.modules])"
    return set(_run(code).stdout.split())


def test_tfds_is_read_without_tensorflow_and_grain(data_dir: pathlib.Path) -> None:
    loaded = _loaded_after(
        "from remem_jax.data.tfds import prepared; "
        "splits = [split "
        f"for name in {[*registry.RECORDS]} "
        f"for split in prepared.tfds(name, {str(data_dir)!r}).splits.values()]; "
        "[split.read(0) for split in splits]"
    )

    assert loaded == {"tensorflow_datasets"}


def _load(name: str, data_dir: pathlib.Path) -> data.Dataset:
    storage = data.Storage(
        "auto", stored_size=64, resident_gib=1.0, cache=str(data_dir / "cache"), threads=1
    )
    source = data.open_source(name, path="", data_dir=str(data_dir))
    return data.load(
        source, storage, data.Rules(validation=0.25, seed=0, near_duplicates=False), corrupt_limit=0
    )


@pytest.mark.parametrize("name", ["caltech101", "flowers102", "eurosat", "pets"])
def test_a_tiny_data_set_is_not_official(data_dir: pathlib.Path, name: str) -> None:
    dataset = _load(name, data_dir)

    assert dataset.official is False


def test_validation_is_held_out_of_the_train_split(data_dir: pathlib.Path) -> None:
    dataset = _load("flowers102", data_dir)

    # The classes have 3, 2, 2 and 1 images; the last keeps its only image.
    counts = {name: len(part.rows) for name, part in dataset.splits.items()}
    assert counts == {"train": 5, "validation": 3, "test": 4}


def test_digits_need_neither_tensorflow_nor_tfds_nor_grain() -> None:
    loaded = _loaded_after(
        "import remem_jax.workflow; from remem_jax import data; "
        "data.open_source('digits', path='', data_dir='')"
    )

    assert loaded == set()
