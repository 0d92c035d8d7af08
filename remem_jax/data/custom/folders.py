"""Opens users' images in class folders; has the functions shared with `lists` and `arrays`."""

import hashlib
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError, printable
from remem_jax.data import registry
from remem_jax.data.custom import class_names, group_names, layouts, walk
from remem_jax.data.images import formats
from remem_jax.data.images.decoding import CorruptImageError
from remem_jax.data.sources import TRAIN, Example, Source, Split


class File(NamedTuple):
    """An image on disk.

    Attributes:
        name: Path relative to the folder of all images, or absolute.
        class_name: Name of its class.
        status: Its `os.stat`; None if it cannot be read.
        group: Name of the group that it belongs to; "" is none.
    """

    name: str
    class_name: str
    status: os.stat_result | None
    group: str = ""


class _Files(NamedTuple):
    """Reads a split whose images are files; see `Split.read`."""

    root: str
    names: list[str]
    labels: np.ndarray

    def __call__(self, i: int) -> Example:
        try:
            encoded = formats.read(os.path.join(self.root, self.names[i]))  # noqa: PTH118
        except OSError as error:
            raise CorruptImageError(error.strerror or str(error)) from error
        return Example(encoded, int(self.labels[i]))


class _Paths(NamedTuple):
    """Names examples by their files; see `Split.name`."""

    root: str
    names: list[str]

    def __call__(self, i: int) -> str:
        return str(pathlib.Path(self.root, self.names[i]))


def folder(
    path: str, *, enough: bool = True, find_groups: group_names.Finder | None = None
) -> Source:
    """Opens a folder of class folders of images, which may have subfolders.

    Either PATH/class/**/image.jpg, or PATH/train/class/**/image.jpg with PATH/test,
    PATH/validation or both. `split_names` has the names of splits. Hidden files, files that are
    not images, and files left by other programs are skipped and counted. Each file counts once.

    Args:
        path: The folder.
        enough: Whether each class must have enough images to train on.
        find_groups: Finds groups in the paths relative to the folder; None if there are no groups.

    Raises:
        SettingError: If there is no such folder, it has no images, its layout is ambiguous, or
            classes are ambiguous, cannot be stored or have too few images.
    """
    root = pathlib.Path(os.path.expanduser(path))  # noqa: PTH111  expanduser() of pathlib raises for unknown users.
    if not path or not root.is_dir():
        raise SettingError(f"There is no folder {path!r}; set config.data.path to your images.")
    skipped_files: Counter[str] = Counter()
    layout = layouts.read(path, root, skipped_files)
    candidates = {
        split: [*_files(root, places, skipped_files)] for split, places in layout.splits.items()
    }
    distinct = _distinct(path, candidates, skipped_files)
    for split in (TRAIN, *distinct):
        checks.require(
            len(distinct.get(split, ())) > 0,
            f"{path} holds no images in class folders for the {split} split (looked for "
            f"{formats.suffix_list()}): expected PATH/class/image.jpg, at least three to a class, "
            "or PATH/train/class/... and PATH/test/class/...; set config.data.path.",
        )
    if not layout.of_splits:
        layouts.require_flat(path, [(file.class_name, file.name) for file in distinct[TRAIN]])
    if enough:
        require_enough(distinct)
    distinct, unmatched = grouped(distinct, find_groups)
    classes = sorted({file.class_name for files in distinct.values() for file in files})
    folders = {place.name for places in layout.splits.values() for place in places}
    return of_files(
        root.resolve().name,
        root,
        distinct,
        classes,
        where=path,
        skipped_files=skipped_files,
        empty_classes=tuple(sorted(folders - set(classes))),
        warnings=layout.warnings + unmatched,
    )


def require_outside(name: str, path: str, directory: pathlib.Path, *, unlabelled: str) -> None:
    """Checks that a run's folder is not inside a folder of images, to which it would add some.

    Args:
        name: Name of the data set; lists and arrays may be anywhere.
        path: Path of the data set.
        directory: Folder of the run, which need not exist yet.
        unlabelled: Folder of the unlabelled images; "" is none.

    Raises:
        SettingError: If the run's folder is inside the class folders or the unlabelled images.
    """
    folders = {"path": path if name == "folder" else "", "unlabelled": unlabelled}
    place = pathlib.Path(os.path.realpath(os.path.expanduser(directory)))  # noqa: PTH111
    for setting, images in folders.items():
        root = pathlib.Path(os.path.expanduser(images))  # noqa: PTH111
        if not images or not root.is_dir():
            continue
        if any(each.exists() and each.samefile(root) for each in (place, *place.parents)):
            raise SettingError(
                f"--workdir {directory} lies in config.data.{setting} ({images}), where its "
                "figures would become images: set --workdir to a folder outside of it."
            )


# Shared by folders and lists.


def require_enough(files_by_split: Mapping[str, Sequence[File]]) -> None:
    """Checks that each class has enough images to train on.

    Raises:
        class_names.TooFewImagesError: If a class has too few.
    """
    counts = Counter(file.class_name for file in files_by_split[TRAIN])
    noun = "images" if len(files_by_split) == 1 else "training images"
    class_names.require_enough(counts, files_by_split, noun)


def grouped(
    files_by_split: Mapping[str, list[File]], find: group_names.Finder | None
) -> tuple[dict[str, list[File]], tuple[str, ...]]:
    """Returns files with their groups, found in their names, and warnings.

    Args:
        files_by_split: Images of each split.
        find: Finds the groups; None leaves the files as they are.

    Raises:
        SettingError: If no group is found.
    """
    if find is None:
        return {**files_by_split}, ()
    groups = find([file.name for files in files_by_split.values() for file in files])
    numbers = itertools.count()
    with_groups = {
        split: [file._replace(group=groups[next(numbers)]) for file in files]
        for split, files in files_by_split.items()
    }
    return with_groups, group_names.unmatched(groups)


def of_files(
    title: str,
    root: pathlib.Path,
    files_by_split: dict[str, list[File]],
    classes: Sequence[str],
    *,
    where: str,
    skipped_files: Mapping[str, int],
    empty_classes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Source:
    """Builds a source of files.

    Args:
        title: Name for reports and messages.
        root: Folder of the relative names.
        files_by_split: Images of each split.
        classes: All classes, in the order of the labels.
        where: Value of `config.data.path`, for messages.
        skipped_files: See `Source`.
        empty_classes: See `Source`.
        warnings: Warnings so far; those about classes are added.

    Raises:
        SettingError: If classes cannot be stored.
    """
    class_names.require_storable(classes, where)
    counts = {
        split: Counter(file.class_name for file in files) for split, files in files_by_split.items()
    }
    index = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, files in files_by_split.items():
        splits[split] = split_of(root, files, [index[file.class_name] for file in files])
    source = Source(
        printable(title),
        splits,
        tuple(classes),
        registry.TOP1,
        flip=True,
        skipped_files=dict(skipped_files),
        empty_classes=empty_classes,
        warnings=warnings,
    )
    return with_warnings(source, counts)


def split_of(root: pathlib.Path, files: list[File], labels: Sequence[int]) -> Split:
    """Builds a split of files.

    Args:
        root: Folder of the relative names.
        files: The images.
        labels: Class index of each image, or `sources.NO_LABEL`.
    """
    classes = np.asarray(labels, np.int32)
    names = [file.name for file in files]
    return Split(
        _Files(str(root), names, classes),
        _Paths(str(root), names),
        len(files),
        classes,
        _key(files, classes),
        np.asarray([file.group for file in files], object) if any(f.group for f in files) else None,
    )


def with_warnings(source: Source, counts: Mapping[str, Mapping[str, int]]) -> Source:
    """Adds warnings about classes to a source; logs them, and the skipped files."""
    skipped = walk.describe_skipped(source.skipped_files, source.empty_classes)
    if skipped:
        remarkable = bool(source.empty_classes) or walk.is_remarkable(source.skipped_files)
        logging.log(
            logging.WARNING if remarkable else logging.INFO, "%s: %s", source.title, skipped
        )
    warnings = source.warnings + class_names.warnings(counts)
    for warning in warnings:
        logging.warning("%s: %s.", source.title, warning)
    return source._replace(warnings=warnings)


def identity(status: os.stat_result | None, path: str) -> Hashable:
    """Returns a key that is equal for all names of one file: hard and symbolic links, any paths."""
    if status is None or not status.st_ino:
        return os.path.realpath(path)
    # On some file systems several files have the same inode.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _key(files: list[File], labels: np.ndarray) -> str:
    digest = hashlib.sha256(labels.tobytes())
    for file in files:
        status = file.status
        # Tools that copy or edit may preserve a file's size and mtime; none can set its ctime.
        stamp = status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(os.fsencode(f"{file.name}\0{stamp}\0"))
    return digest.hexdigest()[:16]


# Folders.


class _Candidate(NamedTuple):
    """A file of a class folder, with the result of `identity`."""

    file: File
    identity: Hashable


def _files(
    root: pathlib.Path, places: Iterable[walk.Entry], skipped_files: Counter[str]
) -> Iterable[_Candidate]:
    """Yields the images in class folders, sorted by name."""
    above = os.path.join(root, "")  # noqa: PTH118
    for place in places:
        parents = (root, pathlib.Path(place.path).parent)
        visited = {walk.identity_of(walk.entry_of(parent)) for parent in parents}
        for image in walk.images(
            place, skipped_files, unlisted=layouts.refuse_unlisted, visited=visited
        ):
            file = File(image.path.removeprefix(above), place.name, image.status)
            yield _Candidate(file, identity(image.status, image.path))


def _distinct(
    path: str, candidates: Mapping[str, list[_Candidate]], skipped_files: Counter[str]
) -> dict[str, list[File]]:
    """Returns each file once; raises if one file is in two classes or splits."""
    first: dict[Hashable, tuple[str, File]] = {}
    kept: dict[str, list[File]] = {}
    for split, files in candidates.items():
        kept[split] = []
        for file, key in files:
            first_split, other = first.setdefault(key, (split, file))
            if other is file:
                kept[split].append(file)
                continue
            skipped_files[walk.REPEATED] += 1
            checks.require(
                (first_split, other.class_name) == (split, file.class_name),
                f"{path} has one file in two classes or splits, {other.name!r} and {file.name!r} "
                "(a link): remove one of them, or set config.data.path.",
            )
    return kept
