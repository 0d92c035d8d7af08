"""A user's own images: class folders, and arrays; lists of files are in `lists`."""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.decoding import CorruptImageError
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Example, Source, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "test": TEST,
}
_TEST_SHARE = 0.2


class File(NamedTuple):
    """An image on disk.

    Attributes:
        name: Path below the folder of all images, or absolute.
        klass: Name of its class.
        size: In bytes; -1 if it is not there.
        changed: When, in nanoseconds.
    """

    name: str
    klass: str
    size: int
    changed: int


class _Files(NamedTuple):
    """Reads a split whose images are files; see `Split.read`."""

    root: str
    names: list[str]
    labels: np.ndarray

    def __call__(self, i: int) -> Example:
        try:
            with open(os.path.join(self.root, self.names[i]), "rb") as file:  # noqa: PTH118, PTH123
                encoded = file.read()
        except OSError as error:
            raise CorruptImageError(error.strerror or str(error)) from error
        return Example(encoded, int(self.labels[i]))


class _Paths(NamedTuple):
    """Names examples by their files; see `Split.name`."""

    root: str
    names: list[str]

    def __call__(self, i: int) -> str:
        return str(pathlib.Path(self.root, self.names[i]))


def folder(path: str) -> Source:
    """A folder of class folders of images, which may lie in folders of their own.

    Either PATH/class/**/image.jpg, of which a stratified fifth becomes the test split, or
    PATH/train/class/**/image.jpg with PATH/test, PATH/validation (or val, valid) or both; without
    a test folder, a fifth of train becomes it. What is hidden is passed over.

    Raises:
        SettingError: If there is no such folder, or it holds no images.
    """
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise SettingError(f"There is no folder {path!r}; set config.data.path to your images.")
    parts = _parts(root)
    if parts:
        found = {split: _scan(root / part, f"{part}/") for split, part in parts.items()}
    else:
        found = {TRAIN: _scan(root, "")}
    found = with_test(found)
    for split in (TRAIN, *found):
        checks.require(
            len(found.get(split, ())) > 0,
            f"{path} holds no images in class folders for the {split} split (looked for "
            f"{', '.join(SUFFIXES)}): expected PATH/class/image.jpg, at least two to a class, or "
            "PATH/train/class/... and PATH/test/class/...; set config.data.path.",
        )
    classes = sorted({file.klass for files in found.values() for file in files})
    return of_files(root.resolve().name, root, found, classes)


def arrays(path: str) -> Source:
    """Arrays of an .npz: `train_image`, `train_label`, `test_image`, `test_label`, `classes`.

    Images are uint8 (example, height, width, 3), labels whole numbers from 0, classes their
    names; `validation_image` and `validation_label` may be there too.

    Raises:
        SettingError: If there is no such file, or it has another form.
    """
    data = _read_npz(path)
    names = [TRAIN, TEST]
    if f"{VALIDATION}_image" in data:
        names.append(VALIDATION)
    wanted = ["classes", *(f"{name}_{part}" for name in names for part in ("image", "label"))]
    missing = [name for name in wanted if name not in data]
    checks.require(
        not missing,
        f"{path} lacks the arrays {', '.join(missing)}; docs/own_data.md has its form; or set "
        "config.data.path.",
    )
    classes = tuple(str(name) for name in data["classes"])
    splits = {}
    for name in names:
        images, labels = data[f"{name}_image"], data[f"{name}_label"]
        _require_form(f"{path}: {name}", images, labels, len(classes))
        splits[name] = sources.in_memory(images, labels, f"{name} image")
    return Source(pathlib.Path(path).stem, splits, classes, registry.TOP1, flip=True)


# What folders and lists share.


def of_files(
    title: str, root: pathlib.Path, found: dict[str, list[File]], classes: Sequence[str]
) -> Source:
    """A source of files.

    Args:
        title: What to call it.
        root: Folder that relative names are below.
        found: Images of each split.
        classes: All that occur, in the order of the labels.
    """
    index = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, files in found.items():
        labels = np.asarray([index[file.klass] for file in files], np.int32)
        names = [file.name for file in files]
        splits[split] = Split(
            _Files(str(root), names, labels),
            _Paths(str(root), names),
            len(files),
            labels,
            _key(files, labels),
        )
    return Source(title, splits, tuple(classes), registry.TOP1, flip=True)


def _key(files: list[File], labels: np.ndarray) -> str:
    digest = hashlib.sha256(labels.tobytes())
    for file in files:
        digest.update(os.fsencode(f"{file.name}\0{file.size}\0{file.changed}\0"))
    return digest.hexdigest()[:16]


def with_test(found: dict[str, list[File]]) -> dict[str, list[File]]:
    """The same with a stratified share of train as test, where there is no test split."""
    if TEST in found or TRAIN not in found:
        return found
    files = found[TRAIN]
    labels = np.unique([file.klass for file in files], return_inverse=True)[1]
    held = sources.stratified(labels, _TEST_SHARE, seed=0)
    chosen = set(held.tolist())
    kept = [file for i, file in enumerate(files) if i not in chosen]
    return found | {TRAIN: kept, TEST: [files[i] for i in held]}


# Folders.


def _parts(root: pathlib.Path) -> dict[str, str]:
    """Split -> name of its folder; empty where the folders are classes."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if _is_open(entry) and entry.is_dir())
    parts: dict[str, str] = {}
    for name in names:
        split = SPLITS.get(name)
        if split is not None:
            checks.require(
                split not in parts,
                f"{root} has two folders of one split, {parts.get(split)} and {name}; remove one, "
                "or set config.data.path.",
            )
            parts[split] = name
    of_splits = len(parts) > 1 and TRAIN in parts
    return parts if of_splits or set(names) <= set(SPLITS) else {}


def _is_open(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")


def _scan(root: pathlib.Path, prefix: str) -> list[File]:
    """Images in the class folders of a folder, in an order that no file system changes."""
    return [
        file
        for entry in _sorted(root)
        if entry.is_dir()
        for file in _images(entry, f"{prefix}{entry.name}/", entry.name, {_identity(root)})
    ]


def _images(
    place: os.DirEntry[str], prefix: str, klass: str, above: set[tuple[int, int]]
) -> Iterator[File]:
    identity = _identity(place)
    if identity in above:  # A link to a folder that it lies in.
        return
    for entry in _sorted(place):
        if entry.is_dir():
            yield from _images(entry, f"{prefix}{entry.name}/", klass, above | {identity})
        elif entry.name.lower().endswith(SUFFIXES):
            yield File(f"{prefix}{entry.name}", klass, *_stamp(entry))


def _sorted(place: os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted(filter(_is_open, entries), key=lambda entry: entry.name)


def _identity(place: os.PathLike[str]) -> tuple[int, int]:
    found = os.stat(place)  # noqa: PTH116  Of a DirEntry too.
    return found.st_dev, found.st_ino


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:  # A link to nothing: said when it is read.
        return -1, 0
    return found.st_size, found.st_mtime_ns


# Arrays.


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        place = pathlib.Path(path).expanduser()
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise SettingError(f"There is no file {path}; set config.data.path.") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise SettingError(
            f"{path!r} is no .npz of arrays ({error}); set config.data.path."
        ) from None


def _require_form(name: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    checks.require(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3,
        f"{name}_image must be uint8 of shape (example, height, width, 3), got {images.dtype} of "
        f"{images.shape}; mend the file that config.data.path names.",
    )
    checks.require(
        labels.dtype.kind in "iu" and labels.shape == images.shape[:1],
        f"{name}_label must be one whole number per image, got {labels.dtype} of {labels.shape} "
        f"for {len(images)} images; mend the file that config.data.path names.",
    )
    checks.require(
        set(np.unique(labels).tolist()) <= set(range(classes)),
        f"{name}_label must be from 0 to {classes - 1}, one below the number of classes; mend "
        "the file that config.data.path names.",
    )
