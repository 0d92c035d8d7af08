"""A run's selected student, and the images that its exports are checked on."""

import os
import pathlib
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
from ml_collections import ConfigDict

from remem_jax import mesh, models
from remem_jax.checks import SettingError, at_least, one_of, require
from remem_jax.data import Dataset
from remem_jax.data.custom import walk
from remem_jax.data.images import decoding, formats, preprocessing
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import description
from remem_jax.export.description import Description
from remem_jax.records import DataLoader, Variables
from remem_jax.storage import results
from remem_jax.weights import students

SPLITS = ("validation", "test", "train")
_READ = 64  # Images of a batch that is looked at.


class Student(NamedTuple):
    """A trained student.

    Attributes:
        model: The network.
        variables: Its own, float32.
        described: Everything else; its form is that of the file.
        source: The file.
    """

    model: Any
    variables: Variables
    described: Description
    source: str


class Images(NamedTuple):
    """Images that a model is looked at with.

    Attributes:
        pixels: uint8, (example, side, side, 3), of the student's size.
        labels: Index of each one's class; None where nobody said.
        title: What they are.
        skipped: Those that could not be read: name and reason.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    title: str
    skipped: tuple[str, ...] = ()


def open_student(run: pathlib.Path, *, method: str = "", seed: int | None = None) -> Student:
    """The selected student of a finished run.

    Args:
        run: The run's folder.
        method: One of the run's; empty is the one whose student is best on validation.
        seed: Of `config.student.seeds`; None is the one that is best on validation.

    Raises:
        SettingError: If there is no such run, method or seed, or the run is not finished.
    """
    found = read_results(run)
    row = chosen(found, run, method)
    seeds = [one["seed"] for one in row.get("seeds", ())]  # Runs of old have none.
    if seed is not None:
        one_of(f"--seed of {row['method']}", seed, seeds)
    others = "" if seed in (None, *seeds[:1]) else f"_seed_{seed}"
    path = run / "selected" / f"{row['method']}{others}_student.safetensors"
    student = open_file(path)
    which = [seed] if seed is not None else seeds[:1]
    described = student.described._replace(
        method=row["method"],
        seed="".join(map(str, which)),
        run=key_of(found),
    )
    # Of runs before results had a record, the student's own file is the surer witness.
    if "preprocessing" in found["data"] or "stored_size" not in _metadata(path):
        described = described._replace(stored_size=preprocessing.stored_size(found))
    return student._replace(described=described)


def read_results(run: pathlib.Path) -> dict[str, Any]:
    """The `results.json` of a finished run.

    Raises:
        SettingError: If there is no such run, or it is not finished.
    """
    require(run.is_dir(), f"There is no run {run}: give the --workdir of one.")
    found = results.read(run / "results.json")
    if found is None:
        begun = (run / "config.json").exists()
        raise SettingError(
            f"The run {run} is not finished: the command that began it goes on."
            if begun
            else f"{run} is no run's folder: it has no results.json; give the --workdir of one."
        )
    return found


def key_of(found: dict[str, Any]) -> str:
    """Key of a run's identity, by its results.json; empty of older runs."""
    return found.get("identity", {}).get("key", "")


def chosen(found: dict[str, Any], run: pathlib.Path, method: str) -> dict[str, Any]:
    """The row of a method in a run's results; the best one's on validation, if it has no name."""
    rows, metric = {row["method"]: row for row in found["methods"]}, found["data"]["metric"]
    if not method:
        method = max(rows, key=lambda name: rows[name]["student"]["validation"][metric])
    one_of(f"--method of {run}", method, rows)
    return rows[method]


def open_file(path: pathlib.Path) -> Student:
    """A student from a .safetensors file that says what it is.

    Raises:
        SettingError: If the file is missing or broken, or does not say what it is of.
    """
    require(path.is_file(), f"There is no student {path}: was the run's folder selected/ moved?")
    mesh.require_devices()
    described = description.read(_metadata(path), os.fspath(path))
    if not described.identity:  # Not an export.
        described = described._replace(identity=results.digest(path))
    model = make_model(described)
    return Student(model, students.load(path, model), described, os.fspath(path))


def _metadata(path: pathlib.Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise SettingError(f"{path} is not a whole .safetensors file: {error}.") from error


def make_model(described: Description, *, dtype: str = "float32") -> Any:
    """The network of a student.

    Raises:
        SettingError: If there is no such network.
    """
    one_of("The model of the student", described.model, models.STUDENTS)
    try:
        return models.make(
            described.model, classes=len(described.classes), stem=described.stem, dtype=dtype
        )
    except ValueError as error:
        raise SettingError(f"The student cannot be made: {error}") from error


def open_images(run: pathlib.Path, split: str, most: int) -> Images:
    """Images of the data of a run, as its students see them in evaluation.

    Args:
        run: The run's folder.
        split: One of `SPLITS`.
        most: How many, evenly spread over the split; 0 is all.

    Raises:
        SettingError: If the run's data are not there any more, or others are in their place.
    """
    one_of("--split", split, SPLITS)
    at_least("--check-images", most, 0)
    dataset, loader = _load(run)
    transform = jax.jit(loader.evaluation_transform)
    pixels, labels = [], []
    wanted = _spread(len(dataset.splits[split].rows), most)
    for i, batch in enumerate(loader.evaluation(split, _READ)):
        here = wanted[(wanted >= i * _READ) & (wanted < (i + 1) * _READ)] - i * _READ
        if len(here):
            seen = np.asarray(transform(jax.random.key(0), batch.image))
            pixels.append(_grey_levels(seen[here]))
            labels.append(np.asarray(batch.label)[here])
    title = f"{dataset.title}, {split}"
    return Images(np.concatenate(pixels), np.concatenate(labels), title)


def _load(run: pathlib.Path) -> tuple[Dataset, DataLoader]:
    """The data set of a run, which must be the one that it was trained on."""
    from remem_jax.workflow import context

    known = read_results(run)["data"]
    plain = results.read(run / "config.json")
    require(plain is not None, f"{run} has no config.json: give the --workdir of a run.")
    config = ConfigDict(plain)
    with config.unlocked():
        config.data.threads, config.data.workers = 0, 0
        config.data.cache = config.data.get("cache", "")  # Older runs have none.
    try:
        found = context.load_data(config, config.data, mesh.make_mesh(jax.local_devices()[:1]))
    except SettingError as error:
        raise SettingError(
            f"The images of {run} are not where the run read them: {_reason(error)}. Put "
            "them back, or give --images=FOLDER."
        ) from error
    place, now = config.data.get("path") or config.data.name, found[0]
    names = known.get("class_names", list(now.classes))
    before = known.get("fingerprint", now.fingerprint)
    require(
        (now.fingerprint, list(now.classes)) == (before, names),
        f"The images at {place} are not those that the run {run} read (their hash is "
        f"{now.fingerprint}, and was {before}): put those back, or give --images=FOLDER.",
    )
    return found


def _reason(error: SettingError) -> str:
    """What is wrong, without the setting to change: `export` has not those of a run."""
    return str(error).partition(";")[0].rstrip(".")


def _spread(examples: int, most: int) -> np.ndarray:
    """Which of all examples are taken."""
    taken = min(most or examples, examples)
    return np.arange(taken) * examples // taken


def _grey_levels(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as the nearest that are stored; undoes `augment.to_model_range`."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def read_folder(folder: pathlib.Path, steps: Preprocessing, most: int) -> Images:
    """Images of a folder and of those in it, as a student sees them, without labels.

    Args:
        folder: The folder.
        steps: Those of the student.
        most: How many, evenly spread over all; 0 is all. What cannot be read is skipped.

    Raises:
        SettingError: If there is no such folder, or it holds no images that can be read.
    """
    require(folder.is_dir(), f"There is no folder {folder}; set --images.")
    paths = image_paths(folder)
    require(len(paths) > 0, f"{folder} holds no images ({formats.suffix_list()}); set --images.")
    pixels, skipped = [], []
    for i in _spread(len(paths), most):
        try:
            pixels.append(read_image(paths[i], steps))
        except SettingError as error:
            skipped.append(str(error))
    require(
        len(pixels) > 0,
        f"{folder} holds no image that can be read ({'; '.join(skipped[:3])}); set --images.",
    )
    return Images(np.stack(pixels), None, str(folder), tuple(skipped))


def image_paths(
    folder: pathlib.Path, skipped_files: Counter[str] | None = None
) -> list[pathlib.Path]:
    """Images of a folder and of those in it, sorted.

    A folder that cannot be listed is among them, for who reads them to say why.

    Args:
        folder: Where to look.
        skipped_files: Counts what is not taken, by kind.
    """
    found: list[pathlib.Path] = []
    images = walk.images(
        walk.entry_of(folder),
        Counter() if skipped_files is None else skipped_files,
        unlisted=lambda error: found.append(pathlib.Path(error.filename)),
        once=True,
    )
    found.extend([pathlib.Path(image.path) for image in images])
    return sorted(found)


def read_image(path: pathlib.Path, steps: Preprocessing) -> np.ndarray:
    """An image file as a student sees it in evaluation: uint8, (side, side, 3).

    Args:
        path: The file.
        steps: Those of the student.

    Raises:
        SettingError: If it is missing, is no regular file, or cannot be decoded.
    """
    try:
        return steps(formats.read(path))
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror or error}.") from error
    except decoding.CorruptImageError as error:
        raise SettingError(f"{path} cannot be decoded: {error}.") from error
