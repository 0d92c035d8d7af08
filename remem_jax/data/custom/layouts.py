"""How a user's folder is laid out: class folders, or folders of splits with these in them."""

import pathlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data.custom import split_names, walk
from remem_jax.data.sources import TRAIN

# Names of splits that are words for things too: classes, where they hold images as classes do.
_ALSO_CLASSES = ("train", "valid")


class Layout(NamedTuple):
    """Where the classes are.

    Attributes:
        splits: Class folders of each split; all are of train where there are no splits.
        of_splits: Whether there are folders of splits.
        warnings: What was decided that may be wrong.
    """

    splits: dict[str, list[walk.Entry]]
    of_splits: bool
    warnings: tuple[str, ...] = ()


def read(path: str, root: pathlib.Path, skipped_files: Counter[str]) -> Layout:
    """Decides whether folders are splits or classes; docs/own_data.md has the rule.

    Args:
        path: Setting of `config.data.path`, for messages.
        root: The folder.
        skipped_files: Counts what is not taken, by kind.

    Raises:
        SettingError: If names may mean splits and may mean classes, or two mean one split.
    """
    checks.require(
        not walk.is_run(root),
        f"{path} is the folder of a run or study, no images; set config.data.path.",
    )
    inside = _folders(root, skipped_files)
    parts = _parts(path, inside)
    others = [place for place in inside if place not in parts.values()]
    if not parts:
        return Layout({TRAIN: inside}, of_splits=False)
    beside = ", ".join(walk.printable(place.name) for place in others[:5])
    if not (TRAIN in parts and len(parts) > 1) and any(map(_holds_images, others)):
        mistaken = [place for place in parts.values() if not _is_class(place)]
        names = ", ".join(walk.printable(place.name) for place in mistaken)
        checks.require(
            not mistaken,
            f"{path} holds folders that mean splits ({names}) beside others with images "
            f"({beside}): move the others into PATH/train, or rename a class of that name; or set "
            "config.data.path.",
        )
        names = ", ".join(walk.printable(place.name) for place in parts.values())
        warning = f"{names} counts as a class, since it holds images itself, as the others do"
        return Layout({TRAIN: inside}, of_splits=False, warnings=(warning,))
    splits = {
        split: _folders(pathlib.Path(part.path), skipped_files) for split, part in parts.items()
    }
    splits = _in_one_form(splits)
    if not others:
        return Layout(splits, of_splits=True)
    skipped_files[walk.BESIDE] += len(others)
    warning = f"folders beside those of the splits are passed over: {beside}"
    return Layout(splits, of_splits=True, warnings=(warning,))


def require_flat(path: str, files: Sequence[tuple[str, str]]) -> None:
    """Raises where folders that were taken for classes hold splits.

    Args:
        path: Setting of `config.data.path`, for messages.
        files: Class, and path below the folder, of each image.

    Raises:
        SettingError: If one holds folders of train and of another split.
    """
    splits: dict[str, dict[str, str]] = {}
    for klass, name in files:
        _, *below = name.split("/")
        split = split_names.split_of(below[0]) if len(below) > 1 else None
        if split:
            splits.setdefault(klass, {})[split] = below[0]
    for name, found in splits.items():
        checks.require(
            TRAIN not in found or len(found) == 1,
            f"{path} holds splits in a class folder ({', '.join(found.values())} in "
            f"{walk.printable(name)}): put classes into splits, as PATH/train/class; or set "
            "config.data.path to the folder that holds the splits.",
        )


def refuse_unlisted(error: OSError) -> None:
    """Raises `SettingError` for a folder that cannot be listed."""
    raise SettingError(
        f"{error.filename} cannot be listed ({error.strerror or error}): make it readable, or set "
        "config.data.path."
    ) from error


def _parts(path: str, inside: Sequence[walk.Entry]) -> dict[str, walk.Entry]:
    """Folders that mean splits, by split."""
    parts: dict[str, walk.Entry] = {}
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
            split not in parts,
            f"{path} has two folders of one split, "
            f"{parts[split].name if split in parts else ''} and {place.name}; remove one, or set "
            "config.data.path.",
        )
        parts[split] = place
    pair = split_names.prefixed(place.name for place in inside)
    if not parts and pair:
        raise SettingError(
            f"{path} holds {pair[0]!r} and {pair[1]!r}, which seem to be splits: rename them to "
            "train and test; or set config.data.path."
        )
    return parts


def _folders(place: pathlib.Path, skipped_files: Counter[str]) -> list[walk.Entry]:
    """Folders in a folder; images that lie beside them are of no class."""
    try:
        found = walk.entries(place, skipped_files)
    except OSError as error:
        refuse_unlisted(error)
        raise
    folders = [entry for entry in found if entry.is_folder and not walk.is_run(entry.path)]
    loose = sum(not entry.is_folder for entry in found)
    skipped_files.update({walk.OUTSIDE: loose} if loose else {})
    runs = len(found) - loose - len(folders)
    skipped_files.update({walk.RUN: runs} if runs else {})
    return folders


def _in_one_form(splits: dict[str, list[walk.Entry]]) -> dict[str, list[walk.Entry]]:
    """The same, where splits that write a class in two forms of Unicode take that of train.

    Two forms in one split are two folders, which `class_names` refuses.
    """
    first: dict[str, str] = {}
    found = {}
    for split in sorted(splits, key=lambda name: name != TRAIN):
        forms = [unicodedata.normalize("NFC", place.name) for place in splits[split]]
        counts = Counter(forms)
        names = [
            first.setdefault(form, place.name) if counts[form] == 1 else place.name
            for form, place in zip(forms, splits[split], strict=True)
        ]
        found[split] = [
            place._replace(name=name) for name, place in zip(names, splits[split], strict=True)
        ]
    return {split: found[split] for split in splits}


def _holds_images(place: walk.Entry) -> bool:
    return any(True for _ in walk.images(place, Counter(), unlisted=refuse_unlisted))


def _is_class(place: walk.Entry) -> bool:
    """Whether a folder that may be a split is laid out as a class, and has the name of one."""
    return place.name.casefold() in _ALSO_CLASSES and any(
        not entry.is_folder for entry in walk.entries(place.path, Counter())
    )
