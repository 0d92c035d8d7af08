"""Data sets by their names in TFDS, read from files that TFDS's builders wrote."""

import pathlib
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from absl import app
from ml_collections import ConfigDict

from configs import own, quickstart
from remem_jax import data, settings
from remem_jax.checks import SettingError
from remem_jax.commands import distil
from remem_jax.data import scan, sources
from remem_jax.data.tfds import named
from remem_jax.settings import unused
from remem_jax.workflow import context
from tests.data import tiny_tfds

ROOT = pathlib.Path(__file__).parents[2]
# Number of images of each split that TFDS has; the sizes tell the splits apart.
WRITTEN = {
    "caltech101:3.*.*": {"train": 6, "test": 4},
    "oxford_flowers102:2.*.*": {"train": 3, "validation": 5, "test": 4},
    "food101:2.*.*": {"train": 6, "validation": 4},
    "eurosat/rgb:2.*.*": {"train": 40},
    "beans": {"train": 6, "validation": 3, "test": 3},
    "imagenet2012:5.*.*": {"train": 6, "validation": 3, "test": 2},  # TFDS has no labels of test.
    "svhn_cropped:3.*.*": {"train": 6, "test": 3, "extra": 4},
    "mnist:3.*.*": {"train": 4, "test": 2},
    "cifar10_corrupted/fog_1": {"test": 10},
}
SIDES = {"eurosat/rgb:2.*.*": 64, "beans": 500, "mnist:3.*.*": 28}
LABELLED = "imagenet2012:5.*.*"


def _write(folder: pathlib.Path, name: str, counts: dict[str, int]) -> None:
    side = SIDES.get(name, 32)
    shape = (side, side) if name.startswith("mnist") else (side, side, 3)
    rng = np.random.default_rng(0)
    examples = {}
    for split, count in counts.items():
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        is_labelled = (name, split) != (LABELLED, "test")
        examples[split] = images, np.arange(count) % 2 if is_labelled else np.full(count, -1)
    tiny_tfds.write(name, folder, examples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A TFDS folder with tiny versions of some of TFDS's data sets, and one that TFDS lacks."""
    place = tmp_path_factory.mktemp("tfds")
    for name, counts in WRITTEN.items():
        _write(place, name, counts)
    _builder(place).download_and_prepare(file_format="array_record")
    return place


SPECIES = ("wren", "robin", "finch", "robin", "wren", "robin")
PLACES = (30, 7, 30, 7, 7, 30)


def _builder(folder: pathlib.Path) -> Any:
    """Returns a builder with two images, and with labels of each kind, which TFDS does not have."""
    features = tensorflow_datasets.features
    with tensorflow_datasets.core.registered.skip_registration():

        class TinyBirds(tensorflow_datasets.core.GeneratorBasedBuilder):
            VERSION = tensorflow_datasets.core.Version("1.2.0")

            def _info(self) -> Any:
                return self.dataset_info_from_configs(
                    features=features.FeaturesDict(
                        {
                            "photo": features.Image(shape=(None, None, 3)),
                            "depth": features.Image(shape=(None, None, 1), dtype=np.uint8),
                            "mask": features.LabeledImage(labels=2, shape=(None, None, 1)),
                            "sex": features.ClassLabel(names=["female", "male"]),
                            "species": features.Text(),
                            "place": features.Scalar(dtype=np.int32),
                            "box": features.BBoxFeature(),
                            "file": features.Text(),
                        }
                    )
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                del dl_manager
                return {"training": self._generate_examples(), "val": self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
                grey = tiny_tfds.png(np.zeros((4, 4), np.uint8))
                for i, (species, place) in enumerate(zip(SPECIES, PLACES, strict=True)):
                    yield (
                        i,
                        {
                            "photo": tiny_tfds.png(np.full((4, 4, 3), i, np.uint8)),
                            "depth": grey,
                            "mask": grey,
                            "sex": i % 2,
                            "species": species,
                            "place": place,
                            "box": tensorflow_datasets.features.BBox(0.0, 0.0, 1.0, 1.0),
                            "file": f"{i}.png",
                        },
                    )

    return TinyBirds(data_dir=str(folder))


def _open(name: str, folder: pathlib.Path, **choices: str) -> sources.Source:
    return data.open_source(
        f"tfds:{name}", path="", data_dir=str(folder), choices=named.Choices(**choices)
    )


def _counts(source: sources.Source) -> dict[str, int]:
    return {name: split.examples for name, split in source.splits.items()}


def _labels(split: sources.Split) -> list[int]:
    return [split.read(i).label for i in range(split.examples)]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("caltech101", {"train": 6, "test": 4}),
        ("oxford_flowers102", {"train": 3, "validation": 5, "test": 4}),
        ("food101", {"train": 6, "test": 4}),
        ("eurosat/rgb:2.0.0", {"train": 40}),
        ("svhn_cropped", {"train": 6, "test": 3}),
        ("imagenet2012", {"train": 6, "test": 3}),
        ("tiny_birds", {"train": 6, "test": 6}),
    ],
)
def test_splits_are_found_by_their_names(
    folder: pathlib.Path, name: str, counts: dict[str, int]
) -> None:
    choices = {"image_feature": "photo"} if name == "tiny_birds" else {}

    assert _counts(_open(name, folder, **choices)) == counts


@pytest.mark.parametrize("name", ["eurosat", "eurosat/rgb", "eurosat:2.0.0", "eurosat/rgb:2.*.*"])
def test_config_and_version_may_be_left_out(folder: pathlib.Path, name: str) -> None:
    assert _open(name, folder).title == "tfds:eurosat/rgb:2.0.0"


def test_a_prepared_version_is_used_if_the_newest_is_not_prepared(tmp_path: pathlib.Path) -> None:
    builder: Any = tensorflow_datasets.builder("food101", data_dir=str(tmp_path))
    other = next(each for each in ("2.0.0", "2.1.0") if each != str(builder.version))
    _write(tmp_path, f"food101:{other}", {"train": 4, "validation": 2})

    assert _open("food101", tmp_path).title == f"tfds:food101:{other}"


def test_a_fifth_of_each_class_is_held_out_without_a_test_split(folder: pathlib.Path) -> None:
    source = _open("eurosat", folder)
    rules = data.Rules(validation=0.0, seed=0, near_duplicates=False)
    storage = data.Storage("streamed", 8, 1.0, "", 1)

    splits = data.load(source, storage, rules, corrupt_limit=0).splits

    images = {bytes(subset.image(i)) for subset in splits.values() for i in range(len(subset.rows))}
    assert len(images) == 40
    assert Counter(splits["train"].labels.tolist()) == {0: 16, 1: 16}
    assert Counter(splits["test"].labels.tolist()) == {0: 4, 1: 4}
    assert source.warnings == (
        "it has no split to test on: a fifth of each class of train was held out",
    )


def test_remarks_name_the_split_that_is_tested_on_instead(folder: pathlib.Path) -> None:
    assert _open("imagenet2012", folder).warnings == (
        "its split 'test' has no labels, and is not used",
        "its split 'validation' is the test split, since it has no other to test on",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"train_split": "train[:30]", "test_split": "train[30:]"},
            {"train": "train[:30]", "test": "train[30:]"},
        ),
        (
            {
                "train_split": "train[:50%]",
                "validation_split": "train[50%:75%]",
                "test_split": "train[75%:]",
            },
            {"train": "train[:50%]", "validation": "train[50%:75%]", "test": "train[75%:]"},
        ),
    ],
)
def test_given_splits_are_those_of_tfds(
    folder: pathlib.Path, given: dict[str, str], expected: dict[str, str]
) -> None:
    builder: Any = tensorflow_datasets.builder("eurosat", data_dir=str(folder))

    splits = _open("eurosat", folder, **given).splits

    assert list(splits) == list(expected)
    for name, expression in expected.items():
        stored: Any = builder.as_data_source(expression)
        assert _labels(splits[name]) == [int(example["label"]) for example in stored]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"train_split": "train+validation"}, {"train": 8, "test": 4}),
        ({"test_split": "validation"}, {"train": 3, "test": 5}),
        ({"train_split": "train+test"}, {"train": 7, "test": 5}),
    ],
)
def test_a_split_is_not_used_twice(
    folder: pathlib.Path, given: dict[str, str], counts: dict[str, int]
) -> None:
    assert _counts(_open("oxford_flowers102", folder, **given)) == counts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train_split": "train[:60%]", "test_split": "train[50%:]"},
            r"config\.data\.train_split is 'train\[:60%\]' and config\.data\.test_split is "
            r"'train\[50%:\]', which have images in common",
        ),
        ({"test_split": "tst"}, r"config\.data\.test_split is 'tst', .* has the splits train"),
        ({"test_split": "train[:5x]"}, r"config\.data\.test_split is 'train\[:5x\]'"),
        ({"test_split": "train[:0]"}, r"config\.data\.test_split is .*names no images"),
        ({"test_split": "train[80%:]"}, r"set config\.data\.train_split, such as train\[:80%\]"),
        ({"label_feature": "kind"}, r"config\.data\.label_feature is 'kind'.*one of .*label"),
        ({"image_feature": "label"}, r"config\.data\.image_feature is 'label'.*one of image"),
        ({"label_feature": "filename"}, r"'filename' .*set config\.data\.label_feature"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    folder: pathlib.Path, given: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        _open("eurosat", folder, **given)


def test_a_data_set_without_a_train_split_needs_a_setting(folder: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"the splits test, .* set config\.data\.train_split"):
        _open("cifar10_corrupted/fog_1", folder)

    given = {"train_split": "test[:60%]", "test_split": "test[60%:]"}
    assert _counts(_open("cifar10_corrupted/fog_1", folder, **given)) == {"train": 6, "test": 4}


@pytest.mark.parametrize("name", ["caltech101", "food101", "mnist", "beans"])
def test_images_labels_and_classes_are_those_of_tfds(folder: pathlib.Path, name: str) -> None:
    builder: Any = tensorflow_datasets.builder(name, data_dir=str(folder))
    stored: Any = builder.as_data_source("train")

    source = _open(name, folder)

    split = source.splits["train"]
    scanned = scan.in_memory(split, scan.ScanOptions(512, True, 2**30, 0), name, 1)
    expected = [np.broadcast_to(each["image"], (*each["image"].shape[:2], 3)) for each in stored]
    np.testing.assert_array_equal(scanned.pixels, expected)
    assert scanned.labels.tolist() == [int(example["label"]) for example in stored]
    assert list(source.classes) == builder.info.features["label"].names
    assert (source.metric, source.flip, source.official) == ("top1", True, None)


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        ("sex", ("female", "male"), ["female", "male"] * 3),
        ("", ("female", "male"), ["female", "male"] * 3),  # The only `ClassLabel`.
        ("species", ("finch", "robin", "wren"), [*SPECIES]),
        ("place", ("7", "30"), [*map(str, PLACES)]),
    ],
)
def test_labels_may_be_classes_numbers_or_texts(
    folder: pathlib.Path, label: str, classes: tuple[str, ...], expected: list[str]
) -> None:
    source = _open("tiny_birds", folder, image_feature="photo", label_feature=label)

    split = pickle.loads(pickle.dumps(source.splits["train"]))
    images = [bytes(split.read(i).image) for i in range(split.examples)]
    order = [images.index(tiny_tfds.png(np.full((4, 4, 3), i, np.uint8))) for i in range(6)]
    assert source.classes == classes
    assert [source.classes[_labels(split)[i]] for i in order] == expected


def test_an_image_is_asked_for_where_there_are_several(folder: pathlib.Path) -> None:
    message = r"image is not clear: set config\.data\.image_feature to one of depth, photo"
    with pytest.raises(SettingError, match=message):
        _open("tiny_birds", folder)


def test_images_without_a_label_are_skipped_and_named(tmp_path: pathlib.Path) -> None:
    images = np.zeros((6, 4, 4, 3), np.uint8)
    examples = images, np.asarray([0, 1, -1, 0, 1, 1])
    tiny_tfds.write("caltech101", tmp_path, {"train": examples, "test": examples})
    storage = data.Storage("auto", 8, 1.0, str(tmp_path / "cache"), threads=1)
    source = _open("caltech101", tmp_path)

    dataset = data.load(
        source, storage, data.Rules(validation=0.25, seed=0, near_duplicates=False), corrupt_limit=2
    )

    assert [line.partition(":")[2] for line in dataset.corrupt_images] == [
        " its label -1 is not that of a class"
    ] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cars196", r"tfds:cars196 is not prepared in .*tools/prepare_data\.py tfds:cars196"),
        ("eurosat/all", r"tfds:eurosat/all is not prepared in "),
        ("bean", r"config\.data\.name is 'tfds:bean', .*no such data set; it has beans"),
        (
            "eurosat/blue",
            r"config\.data\.name is 'tfds:eurosat/blue'.*BuilderConfig blue not found",
        ),
        ("eurosat:1.0.0", r"config\.data\.name is .* cannot be loaded at version 1\.0\.0"),
    ],
)
def test_names_that_cannot_be_opened_are_explained(
    folder: pathlib.Path, name: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        _open(name, folder)


def test_tfds_is_read_without_tensorflow(folder: pathlib.Path) -> None:
    code = (
        "import sys; from remem_jax import data\n"
        "for name in 'caltech101', 'food101', 'eurosat':\n"
        f"    source = data.open_source('tfds:' + name, path='', data_dir={str(folder)!r})\n"
        "    [split.read(0) for split in source.splits.values()]\n"
        "print('tensorflow' in sys.modules)"
    )

    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert outcome.stdout == "False\n"


# The settings.


@pytest.fixture
def config(folder: pathlib.Path, tmp_path: pathlib.Path) -> ConfigDict:
    config = quickstart.get_config()
    config.data.name = "tfds:eurosat/rgb:2.0.0"
    config.data.dir = str(folder)
    config.data.cache = str(tmp_path)
    config.teacher.batch_size = config.student.batch_size = 8
    return config


def test_the_settings_reach_the_data_set(config: ConfigDict) -> None:
    config.data.train_split, config.data.test_split = "train[:75%]", "train[75%:]"
    given = ["data.name", "data.dir", "data.train_split", "data.test_split"]

    settings.check_remem(config)
    unused.check(config, given)
    dataset = context.load_dataset(config, config.data)

    assert len(dataset.splits["test"].rows) == 10
    assert dataset.title == "tfds:eurosat/rgb:2.0.0"


@pytest.mark.parametrize(
    "name",
    ["tfds:", "tfds:a b", "tfds:a/", "tfds:a:1", "tfds:a:latest", "tfds:a/b=1", "tfds:a:b/c"],
)
def test_a_name_of_another_form_is_refused(config: ConfigDict, name: str) -> None:
    config.data.name = name

    with pytest.raises(SettingError, match=r"config\.data\.name must have the form tfds:NAME"):
        settings.check_remem(config)


@pytest.mark.parametrize("name", named.Choices._fields)
def test_the_settings_are_refused_for_other_data_sets(config: ConfigDict, name: str) -> None:
    config.data.name, config.data.dir = "flowers102", ""
    config.data[name] = "train"

    with pytest.raises(SettingError, match=rf"config\.data\.{name} has no effect: config\.data\."):
        unused.check(config, [f"data.{name}"])


def test_remem_distil_takes_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = own.get_config("tfds:eurosat/rgb:2.0.0")
    given: list[str] = []
    monkeypatch.setattr(app, "run", lambda *_, argv, **__: given.extend(argv))
    monkeypatch.setattr(sys, "argv", [])

    distil.main(["tfds:eurosat/rgb:2.0.0", "--hours=2"])

    assert (config.data.name, config.data.path) == ("tfds:eurosat/rgb:2.0.0", "")
    assert given[1:3] == [
        "--config=configs/own.py:tfds:eurosat/rgb:2.0.0",
        "--workdir=runs/eurosat_rgb_2.0.0",
    ]
