"""Opens users' images as arrays of an .npz file."""

import os
import pathlib
import zipfile
from collections import Counter

import numpy as np

from remem_jax import checks
from remem_jax.checks import SettingError, printable
from remem_jax.data import registry, sources
from remem_jax.data.custom import class_names, folders
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source


def open_arrays(path: str, *, enough: bool = True) -> Source:
    """Opens an .npz with `train_image`, `train_label`, `test_image`, `test_label` and `classes`.

    Images are uint8 (example, height, width, 3), labels whole numbers from 0, and `classes` has
    their names; `validation_image` and `validation_label` are optional, and so are `train_group`
    and the same of the other splits: texts or numbers, equal for images that belong together.

    Args:
        path: The file.
        enough: Whether each class must have enough images to train on.

    Raises:
        SettingError: If there is no such file, or its arrays have another form.
    """
    data = _read_npz(path)
    names = [TRAIN, TEST]
    if f"{VALIDATION}_image" in data:
        names.append(VALIDATION)
    required = ["classes", *(f"{name}_{kind}" for name in names for kind in ("image", "label"))]
    missing = [name for name in required if name not in data]
    checks.require(
        not missing,
        f"{path} lacks the arrays {', '.join(missing)}; docs/own_data.md has its form; or set "
        "config.data.path.",
    )
    classes = _class_names(path, data["classes"])
    class_names.require_storable(classes, path)
    splits = {}
    counts: dict[str, Counter[str]] = {}
    for name in names:
        images, labels = data[f"{name}_image"], data[f"{name}_label"]
        _require_form(f"{path}: {name}", images, labels, len(classes))
        groups = _groups(f"{path}: {name}", data.get(f"{name}_group"), len(images))
        splits[name] = sources.in_memory(images, labels, f"{name} image", groups)
        counts[name] = Counter(classes[label] for label in labels)
    if enough:
        class_names.require_enough(counts[TRAIN], names, "training images")
    nonempty = {name for count in counts.values() for name in count}
    source = Source(
        printable(pathlib.Path(path).stem),
        splits,
        classes,
        registry.TOP1,
        flip=True,
        empty_classes=tuple(name for name in classes if name not in nonempty),
    )
    return folders.with_warnings(source, counts)


def _groups(name: str, groups: np.ndarray | None, images: int) -> np.ndarray | None:
    """Returns the names of the groups of a split, as text."""
    if groups is None:
        return None
    checks.require(
        groups.dtype.kind in "USiu" and groups.shape == (images,),
        f"{name}_group must be one text or whole number per image, got {groups.dtype} of "
        f"{groups.shape} for {images} images; mend the file that config.data.path names.",
    )
    return groups.astype(str).astype(object)


def _class_names(path: str, names: np.ndarray) -> tuple[str, ...]:
    checks.require(
        names.ndim == 1 and names.dtype.kind in "USiu",
        f"{path}: classes must be a row of names, got {names.dtype} of {names.shape}; mend the "
        "file that config.data.path names.",
    )
    if names.dtype.kind == "S":
        return tuple(os.fsdecode(name) for name in names.tolist())
    return tuple(str(name) for name in names.tolist())


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        place = pathlib.Path(os.path.expanduser(path))  # noqa: PTH111
        if not place.is_file():  # Reading a pipe would wait for its writer.
            raise FileNotFoundError
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
