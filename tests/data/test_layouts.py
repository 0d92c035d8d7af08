"""Telling folders of splits from folders of classes, and what is refused."""

import pathlib
import unicodedata

import pytest
from PIL import Image

from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.custom import folders


def _fill(root: pathlib.Path, *folders: str, images: int = 3) -> str:
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            Image.new("RGB", (2, 2)).save(root / name / f"{i}.png")
    return str(root)


def _counts(source: sources.Source) -> dict[str, int]:
    return {name: split.examples for name, split in source.splits.items()}


@pytest.mark.parametrize("train", ["Train", "TRAIN", "training", "training_set", "TrainImages"])
@pytest.mark.parametrize(
    ("other", "split"),
    [
        ("TEST", "test"),
        ("testing", "test"),
        ("test_set", "test"),
        ("Test-Data 2", "test"),
        ("Validation", "validation"),
        ("dev", "validation"),
        ("val2017", "validation"),
    ],
)
def test_split_names_are_recognised(
    tmp_path: pathlib.Path, train: str, other: str, split: str
) -> None:
    path = _fill(tmp_path, *(f"{part}/{name}" for part in (train, other) for name in ("a", "b")))

    source = folders.folder(path)

    assert source.classes == ("a", "b")
    assert _counts(source)[split] == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a", "eval/a"), "'eval', which may be one split or another"),
        (("train/a", "Hold-Out/a"), "'Hold-Out', which may be one split or another"),
        (("trainval/a", "test/a"), "'trainval', which may be one split or another"),
        (("cat", "dog", "test"), r"mean splits \(test\) beside others with images \(cat, dog\)"),
        (("cat", "dog", "Dev/cat"), r"mean splits \(Dev\) beside others with images"),
        (("cat", "dog", "train/cat"), r"mean splits \(train\) beside others with images"),
        (("cars_train/a", "cars_test/a"), "'cars_train' and 'cars_test', which seem to be splits"),
        (("Train/a", "train/a", "test/a"), "two folders of one split, Train and train"),
        (("cat/train", "cat/test", "dog/train"), r"a class folder \(\w+, \w+ in cat\)"),
        (("inner/train/cat", "inner/test/cat"), r"a class folder \(\w+, \w+ in inner\)"),
    ],
)
def test_ambiguous_split_names_are_refused(
    tmp_path: pathlib.Path, names: tuple[str, ...], message: str
) -> None:
    path = _fill(tmp_path, *names)

    with pytest.raises(SettingError, match=rf"^.*{message}.*config\.data\.path.*\Z"):
        folders.folder(path)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_an_ambiguous_word_among_classes_is_a_class_with_a_warning(
    tmp_path: pathlib.Path, name: str
) -> None:
    source = folders.folder(_fill(tmp_path, "bus", "car", name))

    assert source.classes == tuple(sorted(("bus", "car", name)))
    assert f"{name} counts as a class" in source.warnings[0]


def test_classes_within_a_split_may_be_named_like_splits(tmp_path: pathlib.Path) -> None:
    names = [f"{split}/{classes}" for split in ("train", "test") for classes in ("test", "eval")]

    assert folders.folder(_fill(tmp_path, *names)).classes == ("eval", "test")


def test_folders_beside_splits_are_skipped_with_a_warning(tmp_path: pathlib.Path) -> None:
    source = folders.folder(_fill(tmp_path, "train/a", "train/b", "test/a", "raw"))

    assert source.classes == ("a", "b")
    assert source.skipped_files == {"folder beside the splits": 1}
    assert "skipped: raw" in source.warnings[0]


LEFTOVERS = [
    "@eaDir",
    "__MACOSX",
    ".ipynb_checkpoints",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "#recycle",
    "@Recycle",
    ".Trash-1000",
]


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_of_other_programs_are_neither_classes_nor_images(
    tmp_path: pathlib.Path, name: str
) -> None:
    path = _fill(tmp_path, "cat", "dog", name, f"cat/{name}")
    for file in ("Thumbs.db", ".DS_Store", "._0.png", "desktop.ini"):
        (tmp_path / "cat" / file).touch()

    source = folders.folder(path)

    assert source.classes == ("cat", "dog")
    assert sum(_counts(source).values()) == 6
    assert sum(source.skipped_files.values()) == 6


def test_a_leftover_beside_train_is_not_a_class(tmp_path: pathlib.Path) -> None:
    assert folders.folder(_fill(tmp_path, "train/a", "train/b", "__MACOSX/a")).classes == ("a", "b")


def test_two_unicode_forms_of_a_name_in_two_splits_are_one_class(tmp_path: pathlib.Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    path = _fill(tmp_path, f"train/{forms[1]}", "train/tea", f"test/{forms[0]}", "test/tea")

    source = folders.folder(path)

    assert source.classes == (forms[1], "tea")
    assert source.splits["test"].labels is not None
    assert source.splits["test"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not source.warnings


def test_two_unicode_forms_of_a_name_in_one_split_are_refused(tmp_path: pathlib.Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]

    with pytest.raises(SettingError, match=r"'caf\\xe9'.*one name in Unicode.*data\.path"):
        folders.folder(_fill(tmp_path, *forms, "tea"))


@pytest.mark.parametrize("marker", ["inputs.json", "metrics.jsonl", "study.json"])
def test_run_folders_are_skipped(tmp_path: pathlib.Path, marker: str) -> None:
    path = _fill(tmp_path, "cat", "dog", "run/figures", "cat/run/figures")
    for place in ("run", "cat/run"):
        for name in ("config.json", marker):
            (tmp_path / place / name).touch()

    source = folders.folder(path)

    assert source.classes == ("cat", "dog")
    assert source.skipped_files == {"folder of a run": 2}
    with pytest.raises(SettingError, match="is the folder of a run"):
        folders.folder(str(tmp_path / "run"))


@pytest.mark.parametrize("place", ["", "run", "cat/run", "linked/run", "../mine/x"])
def test_a_run_folder_among_the_images_is_refused(tmp_path: pathlib.Path, place: str) -> None:
    root = tmp_path / "mine"
    path = _fill(root, "cat", "dog")
    (tmp_path / "linked").symlink_to(root)
    directory = tmp_path / place if place.startswith("linked") else root / place

    with pytest.raises(SettingError, match=r"--workdir .* lies in config\.data\.path"):
        folders.require_outside("folder", path, directory, unlabelled="")


@pytest.mark.parametrize(
    ("name", "place"), [("folder", "runs/a"), ("folder", "mine_too"), ("list", "mine/run")]
)
def test_a_run_folder_elsewhere_is_accepted(tmp_path: pathlib.Path, name: str, place: str) -> None:
    path = _fill(tmp_path / "mine", "cat")
    folders.require_outside(name, path, tmp_path / place, unlabelled="")
