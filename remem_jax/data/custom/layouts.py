"""The layout of a user's folder: class folders, or folders of splits with class folders."""

import pathlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from remem_jax import checks
from remem_jax.checks import SettingError, printable
from remem_jax.data.custom import split_names, walk
from remem_jax.data.sources import TRAIN

# Names of splits that may also name classes; they do if the folder itself contains images.
_ALSO_CLASSES = ("train", "valid")


class Layout(NamedTuple):
    """The class folders of a data set.

    Attributes:
        splits: Class folders of each split; all belong to train if there are no splits.
        of_splits: Whether there are folders of splits.
        warnings: Decisions that may be wrong.
    """

    splits: dict[str, list[walk.Entry]]
    of_splits: bool
    warnings: tuple[str, ...] = ()


def read(path: str, root: pathlib.Path, skipped_files: Counter[str]) -> Layout:
    """Decides whether folders are splits or classes; docs/own_data.md has the rule.

    Args:
        path: Value of `config.data.path`, for messages.
        root: The folder.
        skipped_files: Counter of skipped files by kind; updated.

    Raises:
        SettingError: If names may mean splits or classes, or two mean one split.
    """
    checks.require(
        not walk.is_run(root),
        f"{path} is the folder of a run or study, no images; set config.data.path.",
    )
    inside = _folders(root, skipped_files)
    split_folders = _split_folders(path, inside)
    others = [place for place in inside if place not in split_folders.values()]
    if not split_folders:
        return Layout({TRAIN: inside}, of_splits=False)
    beside = ", ".join(printable(place.name) for place in others[:5])
    if not (TRAIN in split_folders and len(split_folders) > 1) and any(map(_has_images, others)):
        mistaken = [place for place in split_folders.values() if not _is_class(place)]
        names = ", ".join(printable(place.name) for place in mistaken)
        checks.require(
            not mistaken,
            f"{path} holds folders that mean splits ({names}) beside others with images "
            f"({beside}): move the others into PATH/train, or rename a class of that name; or set "
            "config.data.path.",
        )
        names = ", ".join(printable(place.name) for place in split_folders.values())
        warning = f"{names} counts as a class, since it holds images itself, as the others do"
        return Layout({TRAIN: inside}, of_splits=False, warnings=(warning,))
    splits = {
        split: _folders(pathlib.Path(folder.path), skipped_files)
        for split, folder in split_folders.items()
    }
    splits = _normalised(splits)
    if not others:
        return Layout(splits, of_splits=True)
    skipped_files[walk.BESIDE] += len(others)
    warning = f"folders beside those of the splits are skipped: {beside}"
    return Layout(splits, of_splits=True, warnings=(warning,))


def require_flat(path: str, files: Sequence[tuple[str, str]]) -> None:
    """Checks that class folders do not contain splits.

    Args:
        path: Value of `config.data.path`, for messages.
        files: Class of each image, and its path relative to the folder.

    Raises:
        SettingError: If a class folder contains a folder of train and one of another split.
    """
    splits: dict[str, dict[str, str]] = {}
    for class_name, name in files:
        _, *below = name.split("/")
        split = split_names.split_of(below[0]) if len(below) > 1 else None
        if split:
            splits.setdefault(class_name, {})[split] = below[0]
    for name, folders in splits.items():
        checks.require(
            TRAIN not in folders or len(folders) == 1,
            f"{path} holds splits in a class folder ({', '.join(folders.values())} in "
            f"{printable(name)}): put classes into splits, as PATH/train/class; or set "
            "config.data.path to the folder that holds the splits.",
        )


def refuse_unlisted(error: OSError) -> None:
    """Raises `SettingError` for a folder that cannot be listed."""
    raise SettingError(
        f"{error.filename} cannot be listed ({error.strerror or error}): make it readable, or set "
        "config.data.path."
    ) from error


def _split_folders(path: str, inside: Sequence[walk.Entry]) -> dict[str, walk.Entry]:
    """Returns the folders whose names mean splits, by split."""
    folders: dict[str, walk.Entry] = {}
    for place in inside:
        split = split_names.split_of(place.name)
        if split is None:
            continue
        checks.require(
            split != split_names.UNCLEAR,
            f"{path} holds the folder {place.name!r}, which may be one split or another: rename "
            "it to train, validation or test, or, if it is a class, to another name; or set "
            "config.data.path.",
        )
        checks.require(
            split not in folders,
            f"{path} has two folders of one split, "
            f"{folders[split].name if split in folders else ''} and {place.name}; remove one, or "
            "set config.data.path.",
        )
        folders[split] = place
    pair = split_names.prefixed(place.name for place in inside)
    if not folders and pair:
        raise SettingError(
            f"{path} holds {pair[0]!r} and {pair[1]!r}, which seem to be splits: rename them to "
            "train and test; or set config.data.path."
        )
    return folders


def _folders(place: pathlib.Path, skipped_files: Counter[str]) -> list[walk.Entry]:
    """Lists the folders in a folder; counts images beside them, which have no class, as skipped."""
    try:
        entries = walk.entries(place, skipped_files)
    except OSError as error:
        refuse_unlisted(error)
        raise
    folders = [entry for entry in entries if entry.is_folder and not walk.is_run(entry.path)]
    loose = sum(not entry.is_folder for entry in entries)
    skipped_files.update({walk.OUTSIDE: loose} if loose else {})
    runs = len(entries) - loose - len(folders)
    skipped_files.update({walk.RUN: runs} if runs else {})
    return folders


def _normalised(splits: dict[str, list[walk.Entry]]) -> dict[str, list[walk.Entry]]:
    """Gives a class whose name differs in Unicode form between splits its name in train.

    Two forms in one split are two folders, which `class_names` rejects.
    """
    first: dict[str, str] = {}
    renamed = {}
    for split in sorted(splits, key=lambda name: name != TRAIN):
        forms = [unicodedata.normalize("NFC", place.name) for place in splits[split]]
        counts = Counter(forms)
        names = [
            first.setdefault(form, place.name) if counts[form] == 1 else place.name
            for form, place in zip(forms, splits[split], strict=True)
        ]
        renamed[split] = [
            place._replace(name=name) for name, place in zip(names, splits[split], strict=True)
        ]
    return {split: renamed[split] for split in splits}


def _has_images(place: walk.Entry) -> bool:
    return any(True for _ in walk.images(place, Counter(), unlisted=refuse_unlisted))


def _is_class(place: walk.Entry) -> bool:
    """Returns whether a folder named like a split looks like a class, by its name and content."""
    return place.name.casefold() in _ALSO_CLASSES and any(
        not entry.is_folder for entry in walk.entries(place.path, Counter())
    )
