"""User images in folders, lists and arrays: what is read and what is refused."""

import csv
import json
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.custom import folders, lists
from remem_jax.data.custom.arrays import open_arrays
from remem_jax.data.images import decoding


def _write(path: pathlib.Path, color: tuple[int, int, int] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), color).save(path)


def _counts(source: sources.Source) -> dict[str, list[int]]:
    """Returns the number of images of each class, by split."""
    return {
        name: np.bincount(np.asarray(split.labels), minlength=len(source.classes)).tolist()
        for name, split in source.splits.items()
    }


def _names(source: sources.Source, name: str) -> set[str]:
    split = source.splits[name]
    return {split.name(i) for i in range(split.examples)}


def _load(source: sources.Source) -> data.Dataset:
    """Returns the data set of a run without validation images, unless the source has them."""
    rules = data.Rules(validation=0.0, seed=0, near_duplicates=False)
    storage = data.Storage("streamed", 8, 1.0, "", 1)
    return data.load(source, storage, rules, corrupt_limit=0)


def _run_counts(source: sources.Source) -> dict[str, list[int]]:
    """Returns the number of images of each class in a run, by split."""
    splits = _load(source).splits
    return {
        name: np.bincount(subset.labels, minlength=len(source.classes)).tolist()
        for name, subset in splits.items()
    }


def _run_names(source: sources.Source, name: str) -> set[str]:
    subset = _load(source).splits[name]
    return {subset.name(i) for i in range(len(subset.rows))}


def _keys(source: sources.Source) -> dict[str, str]:
    return {name: split.key for name, split in source.splits.items()}


# Folders.


@pytest.fixture
def flat(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two classes: 10 dark and 20 light images."""
    for i in range(10):
        _write(tmp_path / "night" / f"{i}.png", (0, 0, i))
    for i in range(20):
        _write(tmp_path / "day" / f"{i}.png", (255, 255, i))
    return tmp_path


def test_class_folders_are_the_classes(flat: pathlib.Path) -> None:
    assert folders.folder(str(flat)).classes == ("day", "night")


def test_images_have_the_label_of_their_folder(flat: pathlib.Path) -> None:
    split = folders.folder(str(flat)).splits["train"]

    examples = [split.read(i) for i in range(split.examples)]

    red = [decoding.decode(bytes(example.image))[0, 0, 0] for example in examples]
    expected = np.where(np.asarray(red) == 255, 0, 1)
    np.testing.assert_array_equal([example.label for example in examples], expected)
    np.testing.assert_array_equal(np.asarray(split.labels), expected)


def test_a_fifth_of_each_class_of_a_flat_folder_is_its_test_split(flat: pathlib.Path) -> None:
    assert _run_counts(folders.folder(str(flat))) == {"train": [16, 8], "test": [4, 2]}


def test_the_test_images_of_a_flat_folder_are_those_of_earlier_versions(flat: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    names = [sorted(map(str, (flat / name).glob("*.png"))) for name in ("day", "night")]
    # A fifth of each class, in the order of the classes' names.
    expected = {of_class[i] for of_class in names for i in _first(rng, of_class)}

    assert _run_names(folders.folder(str(flat)), "test") == expected


def _first(rng: np.random.Generator, names: list[str]) -> list[int]:
    return rng.permutation(len(names))[: len(names) // 5].tolist()


def test_train_and_test_partition_a_flat_folder(
    flat: pathlib.Path,
) -> None:
    source = folders.folder(str(flat))

    train, test = _run_names(source, "train"), _run_names(source, "test")

    assert not train & test
    assert train | test == {str(file) for file in flat.glob("*/*.png")}


def test_a_flat_folder_is_split_the_same_way_each_time(flat: pathlib.Path) -> None:
    first, second = (folders.folder(str(flat)) for _ in range(2))

    assert _run_names(first, "test") == _run_names(second, "test")


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_split_folders_are_the_splits(tmp_path: pathlib.Path, name: str) -> None:
    for split, count in (("train", 3), ("test", 2), (name, 1)):
        for i in range(count):
            _write(tmp_path / split / "a" / f"{i}.png")
            _write(tmp_path / split / "b" / f"{i}.png")

    source = folders.folder(str(tmp_path))

    assert _counts(source) == {"train": [3, 3], "test": [2, 2], "validation": [1, 1]}


def test_split_folders_share_one_numbering_of_classes(tmp_path: pathlib.Path) -> None:
    for path in (
        "train/b/0.png",
        "train/b/1.png",
        "train/c/0.png",
        "train/c/1.png",
        "test/c/0.png",
    ):
        _write(tmp_path / path)

    source = folders.folder(str(tmp_path))

    assert [source.classes[i] for i in np.asarray(source.splits["test"].labels)] == ["c"]


@pytest.mark.parametrize("siblings", [(), ("val",), ("val", "papers")])
def test_a_fifth_of_the_train_folder_is_the_test_split_without_a_test_folder(
    tmp_path: pathlib.Path, siblings: tuple[str, ...]
) -> None:
    for i in range(10):
        _write(tmp_path / "train" / "a" / f"{i}.png")
        _write(tmp_path / "train" / "b" / f"{i}.png")
    for name in siblings:
        _write(tmp_path / name / "b" / "0.png")

    source = folders.folder(str(tmp_path))

    expected = {"train": [8, 8], "test": [2, 2]} | ({"validation": [0, 1]} if siblings else {})
    assert _run_counts(source) == expected


def test_images_may_lie_deep_in_a_class_folder(tmp_path: pathlib.Path) -> None:
    for path in ("cat/1.png", "cat/2019/2.png", "cat/2019/june/3.png"):
        _write(tmp_path / path)
    for name in "456":
        _write(tmp_path / "dog" / "dog" / f"{name}.png")

    source = folders.folder(str(tmp_path))

    assert source.classes == ("cat", "dog")
    assert np.sum(list(_counts(source).values()), axis=0).tolist() == [3, 3]


def test_only_images_are_read_from_a_folder(tmp_path: pathlib.Path) -> None:
    expected = [
        "a/1.JPG",
        "a/2.jpeg",
        "a/3.png",
        "b/4.webp",
        "b/5.bmp",
        "b/6.png",
        "ß ü/ö 7.PNG",
    ]
    expected += ["ß ü/8.png", "ß ü/9.png"]
    hidden = ["stray.png", "a/.hidden.png", "a/.thumbs/1.png", ".trash/1.png"]
    for name in expected + hidden:
        _write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("none")

    source = folders.folder(str(tmp_path))

    assert _names(source, "train") == {str(tmp_path / name) for name in expected}
    assert source.classes == ("a", "b", "ß ü")


def test_links_are_followed_without_endless_loops(tmp_path: pathlib.Path) -> None:
    for name in ("store/x/1.png", "store/x/2.png", "store/x/3.png", "store/y.png"):
        _write(tmp_path / name)
    root = tmp_path / "mine"
    _write(root / "b" / "1.png")
    _write(root / "b" / "2.png")
    (root / "a").symlink_to(tmp_path / "store" / "x")
    (root / "b" / "3.png").symlink_to(tmp_path / "store" / "y.png")
    (root / "b" / "all").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")

    source = folders.folder(str(root))

    assert source.classes == ("a", "b")
    assert np.sum(list(_counts(source).values()), axis=0).tolist() == [3, 3]
    assert source.skipped_files == {"link to a folder that was seen": 2}


_LINKS = [os.symlink, os.link]


@pytest.mark.parametrize("link", _LINKS)
def test_a_linked_file_counts_once(flat: pathlib.Path, link: Callable[..., None]) -> None:
    link(flat / "day" / "3.png", flat / "day" / "again.png")

    source = folders.folder(str(flat))

    assert sum(split.examples for split in source.splits.values()) == 30
    assert source.skipped_files == {"repeated": 1}


@pytest.mark.parametrize("link", _LINKS)
@pytest.mark.parametrize("name", ["train/night/0.png", "test/day/0.png", "val/day/0.png"])
def test_a_file_in_two_classes_or_splits_is_refused(
    tmp_path: pathlib.Path, link: Callable[..., None], name: str
) -> None:
    for i in range(3):
        _write(tmp_path / "train" / "day" / f"{i}.png")
    (tmp_path / name).parent.mkdir(parents=True)
    link(tmp_path / "train" / "day" / "0.png", tmp_path / name)

    with pytest.raises(SettingError, match=rf"one file in two .*'train/day/0.*'{name}'|'{name}'"):
        folders.folder(str(tmp_path))


def test_a_tilde_in_a_folder_path_is_expanded(
    flat: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(flat.parent))

    assert folders.folder(f"~/{flat.name}").classes == ("day", "night")


def test_a_deleted_file_is_corrupt(flat: pathlib.Path) -> None:
    split = folders.folder(str(flat)).splits["train"]
    pathlib.Path(split.name(0)).unlink()

    with pytest.raises(decoding.CorruptImageError, match=r"^No such file"):
        split.read(0)


def test_a_split_of_files_survives_pickling(flat: pathlib.Path) -> None:
    split = folders.folder(str(flat)).splits["train"]

    read, name = pickle.loads(pickle.dumps((split.read, split.name)))

    for i in range(split.examples):
        assert read(i) == split.read(i)
        assert name(i) == split.name(i)


def test_the_key_of_a_folder_is_stable_and_independent_of_its_location(flat: pathlib.Path) -> None:
    before = _keys(folders.folder(str(flat)))

    moved = flat.rename(flat.parent / "moved")

    assert _keys(folders.folder(str(moved))) == before


def _rewrite(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def _touch(file: pathlib.Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def _rename(file: pathlib.Path) -> None:
    file.rename(file.with_name("new.png"))


def _relabel(file: pathlib.Path) -> None:
    file.rename(file.parents[1] / "night" / "of day.png")


@pytest.mark.parametrize("change", [pathlib.Path.unlink, _rewrite, _touch, _rename, _relabel])
def test_the_key_changes_with_the_files(
    flat: pathlib.Path, change: Callable[[pathlib.Path], None]
) -> None:
    before = folders.folder(str(flat))
    file = pathlib.Path(before.splits["train"].name(0))

    change(file)

    assert folders.folder(str(flat)).splits["train"].key != before.splits["train"].key


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_missing_folder_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match=rf"'{path}'.*config\.data\.path"):
        folders.folder(path)


def test_a_folder_without_images_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()

    with pytest.raises(SettingError, match=r"holds no images.*config\.data\.path"):
        folders.folder(str(tmp_path))


@pytest.mark.parametrize("names", [("train", "test"), ("test",), ("val",), ("train", "val")])
def test_a_split_without_images_is_refused(flat: pathlib.Path, names: tuple[str, ...]) -> None:
    root = flat / "parts"
    for name in names:
        (root / name).mkdir(parents=True)

    with pytest.raises(SettingError, match=r"holds no images.*config\.data\.path"):
        folders.folder(str(root))


def test_two_folders_for_one_split_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("train", "val", "valid"):
        _write(tmp_path / name / "a" / "0.png")

    with pytest.raises(SettingError, match=r"val and valid.*config\.data\.path"):
        folders.folder(str(tmp_path))


# Lists.

_Rows = list[dict[str, Any]]


def _write_csv(path: pathlib.Path, rows: _Rows, encoding: str = "utf-8") -> str:
    place = path.with_suffix(".csv")
    with place.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(place)


def _write_json_lines(path: pathlib.Path, rows: _Rows) -> str:
    place = path.with_suffix(".jsonl")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    place.write_text(lines, encoding="utf-8")
    return str(place)


_WRITERS = [_write_csv, _write_json_lines]
_Writer = Callable[[pathlib.Path, _Rows], str]
_FILES = ["a.png", "b c.PNG", 'deep/d, "e".png', "ünï/名.jpg", "x.png", "y.png", "z.png"]
_LABELS = ["cat", "dog", 'a "great", dog', "猫", "cat", "dog", "猫"]
_SPLITS = ["train", "val", "test", "train", "train", "test", "valid"]
_TWO = ["cat", "cat", "cat", "dog", "dog", "dog", "dog"]


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of images; the red value of each is its index in `_FILES`."""
    for i, name in enumerate(_FILES):
        _write(tmp_path / name, (i, i, i))
    return tmp_path


def _rows(labels: list[Any], splits: list[Any] | None = None) -> _Rows:
    rows: _Rows = [
        {"path": file, "label": label} for file, label in zip(_FILES, labels, strict=True)
    ]
    for row, split in zip(rows, splits or [], strict=bool(splits)):
        row["split"] = split
    return rows


def _read_images(source: sources.Source, root: pathlib.Path) -> list[tuple[str, str, str]]:
    """Returns path, class and split of each image, from the pixels that are read."""
    return sorted(
        (
            str(pathlib.Path(split.name(i)).relative_to(root)),
            source.classes[split.read(i).label],
            name,
        )
        for name, split in source.splits.items()
        for i in range(split.examples)
    )


@pytest.mark.parametrize("write", _WRITERS)
def test_a_list_is_read_as_written(images: pathlib.Path, write: _Writer) -> None:
    source = lists.listing(write(images / "list", _rows(_LABELS, _SPLITS)))

    full = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
    expected = zip(_FILES, _LABELS, [full[split] for split in _SPLITS], strict=True)
    assert _read_images(source, images) == sorted(expected)


@pytest.mark.parametrize("write", _WRITERS)
def test_images_of_a_list_are_the_files_that_it_names(images: pathlib.Path, write: _Writer) -> None:
    split = lists.listing(write(images / "list", _rows(_LABELS, _SPLITS))).splits["train"]

    for i in range(split.examples):
        assert split.read(i).image == pathlib.Path(split.name(i)).read_bytes()


def test_a_list_may_have_a_byte_order_mark_other_columns_and_empty_lines(
    images: pathlib.Path,
) -> None:
    rows = [
        {"PATH": file, "note": "", " Label ": label}
        for file, label in zip(_FILES, _TWO, strict=True)
    ]
    path = _write_csv(images / "list", rows, encoding="utf-8-sig")
    with pathlib.Path(path).open("a") as file:
        file.write("\r\n\r\n")

    source = lists.listing(path)

    images_read = {(file, label) for file, label, _ in _read_images(source, images)}
    assert images_read == set(zip(_FILES, _TWO, strict=True))


@pytest.mark.parametrize("name", ["list.ndjson", "list.JSONL"])
def test_json_lines_are_recognised_by_their_suffix(images: pathlib.Path, name: str) -> None:
    path = images / name
    path.write_text("\n".join(json.dumps(row) for row in _rows(_LABELS, _SPLITS)))

    assert lists.listing(str(path)).splits["train"].examples == 3


def test_paths_of_a_list_may_begin_at_another_folder(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "lists").mkdir()
    path = _write_csv(tmp_path / "lists" / "mine", _rows(_LABELS, _SPLITS))

    source = lists.listing(path, str(images))

    assert [file for file, _, _ in _read_images(source, images)] == sorted(_FILES)
    with pytest.raises(SettingError, match=r"no folder 'nowhere' .*config\.data\.root"):
        lists.listing(path, "nowhere")


def test_paths_in_a_list_may_be_absolute(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [row | {"path": str(images / row["path"])} for row in _rows(_LABELS, _SPLITS)]
    (tmp_path / "elsewhere").mkdir()

    source = lists.listing(_write_csv(tmp_path / "elsewhere" / "list", rows))

    assert [file for file, _, _ in _read_images(source, images)] == sorted(_FILES)


@pytest.mark.parametrize("write", _WRITERS)
@pytest.mark.parametrize("splits", [None, ["train"] * 7, ["TRAIN"] * 5 + ["Val"] * 2])
def test_a_fifth_is_the_test_split_if_a_list_has_none(
    images: pathlib.Path, write: _Writer, splits: list[str] | None
) -> None:
    labels = ["cat", "cat", "cat", "dog", "dog", "cat", "dog"]

    source = lists.listing(write(images / "list", _rows(labels, splits)))

    held = {"validation": [1, 1]} if splits and splits[-1] == "Val" else {}
    train = [2, 1] if held else [3, 2]
    assert _run_counts(source) == {"train": train, "test": [1, 1]} | held


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "2", "2", "9", "10", "2"], ("2", "9", "10")),
        (["10", "9", "two", "two", "9", "10", "two"], ("10", "9", "two")),
        (["b", "B", "ä", "a", "b", "a", "a"], ("B", "a", "b", "ä")),
        (["-1", "1", "0", "00", "01", "1", "0"], ("-1", "0", "00", "01", "1")),
        (["01", "1", "1a", "01", "1", "1a", "1"], ("01", "1", "1a")),
        (["0423B", "0017", "0423", "0017", "0423", "0017", "0423"], ("0017", "0423", "0423B")),
        (["9" * 5000, "1", "8" * 5000, "1", "1", "1", "1"], ("1", "8" * 5000, "9" * 5000)),
    ],
)
@pytest.mark.parametrize("write", _WRITERS)
def test_classes_are_sorted_numerically_if_all_are_numbers(
    images: pathlib.Path, write: _Writer, labels: list[str], classes: tuple[str, ...]
) -> None:
    assert lists.listing(write(images / "list", _rows(labels, _SPLITS))).classes == classes


def test_labels_of_json_lines_may_be_numbers(images: pathlib.Path) -> None:
    rows = _rows([10, 9, 2, 2, 9, 10, "2"], _SPLITS)

    assert lists.listing(_write_json_lines(images / "list", rows)).classes == ("2", "9", "10")


def test_a_number_in_json_may_have_any_length(images: pathlib.Path) -> None:
    path = images / "list.jsonl"
    names = ["9" * 5000, "-0", "7", "7", "7", "7", "7"]
    lines = zip(_FILES, names, _SPLITS, strict=True)
    rows = [
        f'{{"path": {json.dumps(file)}, "label": {name}, "split": "{split}"}}\n'
        for file, name, split in lines
    ]
    path.write_text("".join(rows), encoding="utf-8")

    assert lists.listing(str(path)).classes == ("0", "7", "9" * 5000)


_PATHS = ["a.png", "./a.png", "deep/../a.png", "{}/a.png", "again.png", "twin.png"]


@pytest.mark.parametrize("path", _PATHS)
def test_a_repeated_line_counts_once(images: pathlib.Path, path: str) -> None:
    rows = _rows(_LABELS, _SPLITS)
    rows.append(rows[0] | {"path": path.format(images)})
    (images / "again.png").symlink_to(images / "a.png")
    (images / "twin.png").hardlink_to(images / "a.png")

    source = lists.listing(_write_csv(images / "list", rows))

    assert sum(split.examples for split in source.splits.values()) == 7
    assert source.skipped_files == {"repeated": 1}


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize(
    ("change", "what"), [({"label": "dog"}, "labels"), ({"split": "test"}, "splits")]
)
def test_contradictory_lines_for_one_file_are_refused(
    images: pathlib.Path, path: str, change: dict[str, str], what: str
) -> None:
    rows = _rows(_LABELS, _SPLITS)
    rows.append(rows[0] | {"path": path.format(images)} | change)
    (images / "again.png").symlink_to(images / "a.png")
    (images / "twin.png").hardlink_to(images / "a.png")

    with pytest.raises(SettingError, match=rf"line 9: .* has two {what}, .* line 2.*data\.path"):
        lists.listing(_write_csv(images / "list", rows))


def test_a_tilde_in_a_path_of_a_list_is_expanded(
    images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(images))
    rows = [row | {"path": f"~/{row['path']}"} for row in _rows(_LABELS, _SPLITS)]
    (images / "lists").mkdir()

    source = lists.listing(_write_csv(images / "lists" / "list", rows))

    assert [file for file, _, _ in _read_images(source, images)] == sorted(_FILES)


def test_the_key_of_a_list_depends_only_on_files_and_labels(images: pathlib.Path) -> None:
    rows = _rows(_LABELS, _SPLITS)
    before = _keys(lists.listing(_write_csv(images / "list", rows)))

    same = _keys(lists.listing(_write_json_lines(images / "other", rows)))
    rows[0]["label"] = "dog"
    relabeled = _keys(lists.listing(_write_csv(images / "list", rows)))
    _touch(images / "x.png")
    touched = _keys(lists.listing(_write_csv(images / "list", rows)))

    assert same == before
    assert relabeled["train"] != before["train"]
    assert touched["train"] != relabeled["train"]
    assert touched["test"] == before["test"]


@pytest.mark.parametrize("write", _WRITERS)
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"path": "gone.png"}, r"there is no file 'gone\.png'"),
        ({"path": "deep"}, "'deep' is not a file"),
        ({"path": ""}, "path must be text"),
        ({"label": " "}, "label must be a class name"),
        ({"split": "eval"}, "split must be one of train .*'eval'"),
        ({"split": "cat"}, "split must be one of train .*'cat'"),
        ({"split": ""}, "split must be one of train .*''"),
        ({"path": "a.png"}, r"'a\.png' has two labels, 'dog' and, on line \d, 'cat'"),
        ({"path": "a.png", "label": "cat"}, r"'a\.png' has two splits, 'test' and, on .*'train'"),
    ],
)
def test_errors_in_a_list_name_the_line(
    images: pathlib.Path, write: _Writer, change: dict[str, str], what: str
) -> None:
    rows = _rows(_LABELS, _SPLITS)
    rows[5] |= change
    path = write(images / "list", rows)

    line = 7 if write is _write_csv else 6
    with pytest.raises(SettingError, match=rf"list\.\w+, line {line}: {what}.*config\.data\.path"):
        lists.listing(path)


def test_a_first_line_without_a_split_is_named_if_others_have_one(
    images: pathlib.Path,
) -> None:
    rows = _rows(_LABELS, _SPLITS)
    del rows[0]["split"]

    with pytest.raises(SettingError, match=r"line 1: no split.*config\.data\.path"):
        lists.listing(_write_json_lines(images / "list", rows))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("l.csv", b"", r"line 1: .*lacks path and label"),
        ("l.csv", b"path,classes\na.png,cat\n", r"line 1: .*lacks label"),
        ("l.csv", b"path;label\na.png;cat\n", r"line 1: .*parted by commas; lacks path and label"),
        ("l.csv", b"path,label,label\n", r"line 1: two columns have the name label"),
        ("l.csv", b"path,label\n", r"lists no images"),
        ("l.csv", b"path,label\na.png,cat\nb c.PNG\n", r"line 3: expected 2 fields, got 1"),
        ("l.csv", b"path,label\na.png,cat, dog\n", r"line 2: expected 2 fields, got 3"),
        ("l.csv", b'path,label\n"a.png,cat\n', r"line \d: no CSV"),
        ("l.csv", b"path,label\n\xff.png,cat\n", r"UTF-8"),
        ("l.csv", b"path,label,split\na.png,cat,test\n", r"no images of the train split"),
        ("l.jsonl", b"", r"lists no images"),
        ("l.jsonl", b'\n{"path": "a.png"}', r"line 2: label must be .*, got none"),
        ("l.jsonl", b'{"label": 3}', r"line 1: path must be text, got none"),
        ("l.jsonl", b'{"path": "a.png", "label": 0.5}', r"line 1: label must be .*, got 0\.5"),
        ("l.jsonl", b'{"path": "a.png", "label": true}', r"line 1: label must be .*, got True"),
        ("l.jsonl", b'["a.png", "cat"]', r"line 1: expected an object"),
        ("l.jsonl", b"a.png,cat", r"line 1: no JSON"),
        ("l.jsonl", b"[" * 10**5, r"line 1: no JSON"),
        ("l.jsonl", b'{"path": 3, "label": 1}', r"line 1: path must be text, got '3'"),
        ("l.jsonl", b'{"path": "a\\u0000", "label": 1}', r"line 1: there is no file"),
        ("l.xlsx", b"", r"\.csv, \.jsonl, \.ndjson"),
    ],
)
def test_a_malformed_list_is_refused_in_one_line(
    images: pathlib.Path, name: str, content: bytes, what: str
) -> None:
    (images / name).write_bytes(content)

    # Without re.DOTALL, the match requires a message of one line.
    with pytest.raises(SettingError, match=rf"^.*l\.\w+.*{what}.*config\.data\.path.*\Z"):
        lists.listing(str(images / name))


@pytest.mark.parametrize("path", ["", "nowhere.csv"])
def test_a_missing_list_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match=rf"'{path}'.*config\.data\.path"):
        lists.listing(path)


# Arrays.


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of an .npz file: four training images, two test images, two classes."""
    return {
        "train_image": rng.integers(0, 256, (4, 4, 5, 3), dtype=np.uint8),
        "train_label": np.asarray([0, 1, 1, 0]),
        "test_image": rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8),
        "test_label": np.asarray([1, 0]),
        "classes": np.asarray(["cat", "dog"]),
    }


def _stored(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> sources.Source:
    np.savez(path / "mine.npz", allow_pickle=False, **arrays)
    return open_arrays(str(path / "mine.npz"))


@pytest.mark.parametrize("name", ["train", "test"])
def test_arrays_are_read_as_stored(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], name: str
) -> None:
    split = _stored(tmp_path, arrays).splits[name]

    examples = [split.read(i) for i in range(split.examples)]
    np.testing.assert_array_equal(
        [np.asarray(example.image) for example in examples], arrays[f"{name}_image"]
    )
    np.testing.assert_array_equal([example.label for example in examples], arrays[f"{name}_label"])
    np.testing.assert_array_equal(np.asarray(split.labels), arrays[f"{name}_label"])


def test_arrays_need_no_cache(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    assert _keys(_stored(tmp_path, arrays)) == {"train": "", "test": ""}


def test_arrays_name_their_classes(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    assert _stored(tmp_path, arrays).classes == ("cat", "dog")


def test_arrays_may_have_a_validation_split(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]
) -> None:
    arrays |= {"validation_image": arrays["test_image"], "validation_label": np.asarray([1, 1])}

    source = _stored(tmp_path, arrays)

    np.testing.assert_array_equal(np.asarray(source.splits["validation"].labels), [1, 1])


@pytest.mark.parametrize("name", ["train_image", "train_label", "test_label", "classes"])
def test_the_error_names_a_missing_array(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], name: str
) -> None:
    del arrays[name]

    with pytest.raises(SettingError, match=rf"mine\.npz lacks the arrays {name};"):
        _stored(tmp_path, arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_image", np.zeros((4, 4, 5, 3))),  # Values of 0 to 1 would all become black.
        ("train_image", np.zeros((4, 4, 5), np.uint8)),
        ("train_image", np.zeros((4, 4, 5, 1), np.uint8)),
        ("train_label", np.asarray([0, 1])),
        ("train_label", np.asarray([0.0, 1.0, 1.0, 0.0])),
        ("train_label", np.asarray([[0], [1], [1], [0]])),
        ("train_label", np.asarray([0, 1, 2, 1])),
        ("train_label", np.asarray([0, -1, 1, 1])),
        ("classes", np.asarray("cat")),
        ("classes", np.asarray([0.5, 1.5])),
    ],
)
def test_the_error_names_an_array_of_another_shape_or_type(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], name: str, value: np.ndarray
) -> None:
    arrays[name] = value

    with pytest.raises(SettingError, match=rf"{name} must be .*config\.data\.path"):
        _stored(tmp_path, arrays)


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 cut"])
def test_a_file_without_arrays_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)

    with pytest.raises(SettingError, match=r"mine\.npz.*config\.data\.path"):
        open_arrays(str(path))


def test_a_single_array_is_refused(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros(3))

    with pytest.raises(SettingError, match=r"mine\.npy.*config\.data\.path"):
        open_arrays(str(tmp_path / "mine.npy"))


@pytest.mark.parametrize("path", ["", "nowhere.npz"])
def test_a_missing_file_of_arrays_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match=r"config\.data\.path"):
        open_arrays(path)
