"""Reads the images that exports are checked on, and those that a user wants to classify."""

import glob
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax import mesh
from remem_jax.checks import SettingError, at_least, one_of, require
from remem_jax.data import Dataset, Source
from remem_jax.data.custom import walk
from remem_jax.data.images import decoding, formats
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import options, runs
from remem_jax.records import DataLoader
from remem_jax.storage import identity, results

_READ = 64  # Batch size for reading a split.


class Images(NamedTuple):
    """Preprocessed images.

    Attributes:
        pixels: uint8 array (example, side, side, 3) of the student's image size.
        labels: Class indices; None if unknown.
        title: Title in reports.
        skipped: Files that cannot be read, with the reason.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    title: str
    skipped: tuple[str, ...] = ()


def open_images(run: pathlib.Path, split: str, most: int) -> Images:
    """Reads images of the data of a run, preprocessed as for evaluation.

    Args:
        run: Folder of the run.
        split: One of `options.SPLITS`.
        most: Largest number of images, evenly spaced over the split; 0 is all.

    Raises:
        SettingError: If the data of the run are missing or have changed.
    """
    one_of("--split", split, options.SPLITS)
    at_least("--check-images", most, 0)
    dataset, loader = load(run)
    one_of("--split of this run", split, dataset.splits)
    transform = jax.jit(loader.evaluation_transform)
    pixels, labels = [], []
    selected = _evenly_spaced(len(dataset.splits[split].rows), most)
    for i, batch in enumerate(loader.evaluation(split, _READ)):
        in_batch = selected[(selected >= i * _READ) & (selected < (i + 1) * _READ)] - i * _READ
        if len(in_batch):
            transformed = np.asarray(transform(jax.random.key(0), batch.image))
            pixels.append(_to_uint8(transformed[in_batch]))
            labels.append(np.asarray(batch.label)[in_batch])
    title = f"{dataset.title}, {split}"
    return Images(np.concatenate(pixels), np.concatenate(labels), title)


def load(
    run: pathlib.Path, *, path: str = "", otherwise: str = "give --images=FOLDER"
) -> tuple[Dataset, DataLoader]:
    """Loads the data set of a run.

    Args:
        run: Folder of the run.
        path: Where its images are now; empty if they are where the run read them.
        otherwise: What else the user can do if they are not there, for messages.

    Raises:
        SettingError: If the images are missing or have changed.
    """
    from remem_jax.workflow import context

    recorded = runs.read_results(run)["data"]
    config = _settings(run, path)
    try:
        loaded = context.load_data(config, config.data, mesh.make_mesh(jax.local_devices()[:1]))
    except SettingError as error:
        raise SettingError(
            f"The images of {run} are not where the run read them: {_reason(error)}. Put "
            f"them back, or {otherwise}."
        ) from error
    place, dataset = config.data.get("path") or config.data.name, loaded[0]
    names = recorded.get("class_names", list(dataset.classes))
    fingerprint = recorded.get("fingerprint", dataset.fingerprint)
    require(
        (dataset.fingerprint, list(dataset.classes)) == (fingerprint, names),
        f"The images at {place} are not those that the run {run} read (their hash is "
        f"{dataset.fingerprint}, but was {fingerprint}): put those back, or {otherwise}.",
    )
    return loaded


def open_source(run: pathlib.Path, *, path: str = "") -> Source:
    """Opens the data set of a run, without decoding images; for the arguments see `load`.

    Raises:
        SettingError: If there is no such run, it is not finished, or its images are missing.
    """
    from remem_jax.workflow import context

    return context.open_source(_settings(run, path).data)


def _settings(run: pathlib.Path, path: str) -> ConfigDict:
    """Returns the settings of a run, to read its images on this machine."""
    recorded = runs.read_results(run)["data"]
    settings = results.read(run / "config.json")
    require(settings is not None, f"{run} has no config.json: give the --workdir of a run.")
    config = ConfigDict(settings)
    with config.unlocked():
        config.data.threads, config.data.workers = 0, 0
        config.data.cache = config.data.get("cache", "")  # Older runs have none.
        config.data.refit = False  # Nothing is trained.
        config.data.update({**identity.ADDED["data"], **identity.EARLIER["data"], **config.data})
        if config.data.unlabelled:  # Not needed, but it may have decided where images are kept.
            config.data.unlabelled, config.data.input = "", recorded["input"]
        config.data.path = path or config.data.path
    return config


def _reason(error: SettingError) -> str:
    """Returns an error's text without its advice on settings, which `export` does not have."""
    return str(error).partition(";")[0].rstrip(".")


def _evenly_spaced(examples: int, most: int) -> np.ndarray:
    """Returns the indices of at most `most` examples (0: all), evenly spaced."""
    count = min(most or examples, examples)
    return np.arange(count) * examples // count


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds images in [-1, 1] to uint8; the inverse of `augment.to_model_range`."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def read_folder(folder: pathlib.Path, preprocessing: Preprocessing, most: int) -> Images:
    """Reads and preprocesses the images of a folder and its subfolders, without labels.

    Args:
        folder: The folder.
        preprocessing: Preprocessing of the student.
        most: Largest number of images, evenly spaced over all; 0 is all. Files that cannot be read
            are skipped.

    Raises:
        SettingError: If there is no such folder, or none of its images can be read.
    """
    require(folder.is_dir(), f"There is no folder {folder}; set --images.")
    paths = image_paths(folder)
    require(len(paths) > 0, f"{folder} contains no images ({formats.suffix_list()}); set --images.")
    pixels, skipped = [], []
    for i in _evenly_spaced(len(paths), most):
        try:
            pixels.append(read_image(paths[i], preprocessing))
        except SettingError as error:
            skipped.append(str(error))
    require(
        len(pixels) > 0,
        f"{folder} contains no image that can be read ({'; '.join(skipped[:3])}); set --images.",
    )
    return Images(np.stack(pixels), None, str(folder), tuple(skipped))


def image_paths(folder: pathlib.Path, skipped: Counter[str] | None = None) -> list[pathlib.Path]:
    """Lists the image files of a folder and its subfolders, sorted.

    A folder that cannot be listed is included, so that reading it gives the reason.

    Args:
        folder: The folder.
        skipped: Counts the files that are no images, by kind.
    """
    paths: list[pathlib.Path] = []
    images = walk.images(
        walk.entry_of(folder),
        Counter() if skipped is None else skipped,
        unlisted=lambda error: paths.append(pathlib.Path(error.filename)),
        once=True,
    )
    paths.extend([pathlib.Path(image.path) for image in images])
    return sorted(paths)


def read_image(path: pathlib.Path, preprocessing: Preprocessing) -> np.ndarray:
    """Reads and preprocesses an image file; returns uint8 of shape (side, side, 3).

    Args:
        path: Path of the file.
        preprocessing: Preprocessing of the student.

    Raises:
        SettingError: If it is missing, is not a regular file, or cannot be decoded.
    """
    try:
        return preprocessing(formats.read(path))
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror or error}.") from error
    except decoding.CorruptImageError as error:
        raise SettingError(f"{path} cannot be decoded: {error}.") from error


def find(
    given: Sequence[str], skipped: Counter[str] | None = None
) -> tuple[list[pathlib.Path], dict[str, str]]:
    """Lists image files, each once.

    Args:
        given: Files; folders, which are searched recursively; and patterns of either, with "**" for
            any number of folders.
        skipped: Counts the files in folders that are no images, by kind.

    Returns:
        The files in the given order, those of a folder or a pattern sorted; and the reason for each
        folder or pattern without images.
    """
    paths: dict[str, pathlib.Path] = {}
    empty: dict[str, str] = {}
    for name in given:
        path = pathlib.Path(name).expanduser()
        places = [path]
        if not path.exists() and glob.has_magic(name):
            # `Path.glob` takes no absolute patterns.
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            places = list(map(pathlib.Path, matches))
        files = [file for place in places for file in _files(place, skipped)]
        if not files:
            empty[name] = f"contains no images ({formats.suffix_list()})."
        for file in files:
            # `Path.resolve` raises for circular links.
            paths.setdefault(os.path.realpath(file), file)
    return list(paths.values()), empty


def _files(path: pathlib.Path, skipped: Counter[str] | None) -> list[pathlib.Path]:
    return image_paths(path, skipped) if path.is_dir() else [path]
