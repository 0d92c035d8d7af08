"""Class names that cannot be stored and classes that are too small, for every kind of source."""

import json
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import held_out, sources
from remem_jax.data.custom import class_names, folders, lists
from remem_jax.data.custom.arrays import open_arrays


def _folder(root: pathlib.Path, names: list[str], images: int = 3) -> sources.Source:
    for name in names:
        (root / name).mkdir()
        for i in range(images):
            Image.new("RGB", (2, 2)).save(root / name / f"{i}.png")
    return folders.folder(str(root))


def _list(root: pathlib.Path, names: list[str], images: int = 3) -> sources.Source:
    files = [f"{i}.png" for i in range(len(names) * images)]
    for file in files:
        (root / file).touch()
    labels = [name for name in names for _ in range(images)]
    rows = [{"path": file, "label": label} for file, label in zip(files, labels, strict=True)]
    (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lists.listing(str(root / "list.jsonl"))


def _arrays(root: pathlib.Path, names: list[str], images: int = 3) -> sources.Source:
    labels = np.repeat(np.arange(len(names)), images)
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    np.savez(
        root / "mine.npz",
        allow_pickle=False,
        train_image=pixels,
        train_label=labels,
        test_image=pixels,
        test_label=labels,
        classes=np.asarray([os.fsencode(name) for name in names]),
    )
    return open_arrays(str(root / "mine.npz"))


_Open = Callable[..., sources.Source]
_NAMES = ["cat\n(kitten)", "a\rb", "a\tb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb"]


@pytest.mark.parametrize("opened", [_folder, _list, _arrays])
@pytest.mark.parametrize("name", [*_NAMES, os.fsdecode(b"caf\xe9")], ids=ascii)
def test_a_name_that_cannot_be_stored_is_refused_in_one_line(
    tmp_path: pathlib.Path, opened: _Open, name: str
) -> None:
    with pytest.raises(SettingError, match=r"^.*has the class '.*rename it.*path\.\Z") as caught:
        opened(tmp_path, ["dog", name])

    assert str(caught.value).isprintable()


@pytest.mark.parametrize("opened", [_folder, _arrays])
def test_a_blank_name_is_refused(tmp_path: pathlib.Path, opened: _Open) -> None:
    with pytest.raises(SettingError, match=r"a class without a name, ' '.*config\.data\.path"):
        opened(tmp_path, ["dog", " "])


@pytest.mark.parametrize("opened", [_folder, _list, _arrays])
def test_names_equal_in_unicode_are_refused(tmp_path: pathlib.Path, opened: _Open) -> None:
    with pytest.raises(SettingError, match=r"'cafe\\u0301' and 'caf\\xe9', which are one name"):
        opened(tmp_path, ["caf\u00e9", "dog", "cafe\u0301"][::-1])


def test_a_duplicate_class_name_in_arrays_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="'cat' and 'cat', which are one name"):
        _arrays(tmp_path, ["cat", "cat"])


@pytest.mark.parametrize("opened", [_folder, _list, _arrays])
def test_names_in_any_script_are_kept(tmp_path: pathlib.Path, opened: _Open) -> None:
    names = ["=1+1", "a, \"b\" 'c'", "x|y", "ß ü", "猫", "👩\u200d🚀"]

    assert opened(tmp_path, names).classes == tuple(names)


@pytest.mark.parametrize("opened", [_folder, _list, _arrays])
def test_names_differing_only_in_case_cause_a_warning(
    tmp_path: pathlib.Path, opened: _Open
) -> None:
    source = opened(tmp_path, ["Dog", "cat", "dog"])

    assert source.warnings == ("the classes Dog and dog differ only in case or spaces",)


def test_classes_without_a_training_image_cause_a_warning() -> None:
    (warning,) = class_names.warnings({"train": {"a": 3}, "test": {"b": 1, "a": 1, "c": 2}})

    assert warning.startswith("the classes b and c have no training image")


@pytest.mark.parametrize(
    ("opened", "images", "message"),
    [
        (_folder, 2, "has 2 images; 3 are needed, one each to train, validate and test"),
        (_list, 1, "has 1 image; 3 are needed, one each to train, validate and test"),
        (_arrays, 1, "has 1 training image; 2 are needed, one each to train and validate"),
    ],
)
def test_the_error_for_a_small_class_gives_the_required_number_of_images(
    tmp_path: pathlib.Path, opened: _Open, images: int, message: str
) -> None:
    with pytest.raises(SettingError, match=rf"The class 'owl' {message}.*config\.data\.path"):
        opened(tmp_path, ["owl"], images)


@pytest.mark.parametrize("images", [3, 4, 5, 9])
def test_three_images_give_one_to_each_split(tmp_path: pathlib.Path, images: int) -> None:
    labels = _folder(tmp_path, ["a", "b"], images).splits["train"].labels
    assert labels is not None

    held = held_out.draw(labels, None, 0.1, seed=0)

    assert set(labels[held].tolist()) == {0, 1}
    assert len(labels) - len(held) >= 2


def test_the_error_names_a_class_without_images_in_arrays(tmp_path: pathlib.Path) -> None:
    pixels, labels = np.zeros((4, 2, 2, 3), np.uint8), np.asarray([0, 0, 1, 1])
    images = {"train_image": pixels, "train_label": labels}
    images |= {"test_image": pixels, "test_label": labels}
    np.savez(tmp_path / "a.npz", allow_pickle=False, classes=np.asarray(["a", "b", "c"]), **images)

    assert open_arrays(str(tmp_path / "a.npz")).empty_classes == ("c",)


def test_titles_and_file_names_that_are_not_utf8_can_be_stored(tmp_path: pathlib.Path) -> None:
    root = tmp_path / os.fsdecode(b"im\xff\ngs")
    root.mkdir()
    source = _folder(root, ["cat", "dog"], images=4)
    bad = pathlib.Path(source.splits["train"].name(0))
    bad.write_bytes(b"no image")
    storage = data.Storage("resident", 8, 1.0, str(tmp_path / "cache"), 1)

    dataset = data.load(
        source, storage, data.Rules(validation=0.2, seed=0, near_duplicates=False), corrupt_limit=2
    )

    texts = (source.title, *dataset.corrupt_images)
    assert all(text.isprintable() and text.encode() for text in texts)
    assert source.title == r"im\udcff\ngs"


def test_a_number_with_too_many_digits_for_python_is_a_name(tmp_path: pathlib.Path) -> None:
    name = "1" * (sys.get_int_max_str_digits() + 1)

    assert _list(tmp_path, ["7", name]).classes == ("7", name)
