"""Opens the results and the selected students of a finished run."""

import os
import pathlib
from typing import Any, NamedTuple

import safetensors

from remem_jax import mesh, models
from remem_jax.checks import SettingError, one_of, require
from remem_jax.data.images import preprocessing
from remem_jax.export import description
from remem_jax.export.description import Description
from remem_jax.records import Variables
from remem_jax.report import tables
from remem_jax.report.run import refit
from remem_jax.storage import results, selected
from remem_jax.weights import student_normalisation, students


class Student(NamedTuple):
    """A trained student.

    Attributes:
        model: The network.
        variables: Its parameters and statistics, float32.
        described: Description of the student; its form is that of the file.
        source: Path of the file.
    """

    model: Any
    variables: Variables
    described: Description
    source: str


def open_student(run: pathlib.Path, *, method: str = "", seed: int | None = None) -> Student:
    """Opens the selected student of a finished run.

    Args:
        run: Folder of the run.
        method: Method of the run, or METHOD_refit for the student that was trained anew on train
            and validation; empty selects the method whose student is best on validation.
        seed: One of `config.student.seeds`; None selects the one that is best on validation.

    Raises:
        SettingError: If there is no such run, method or seed, or the run is not finished.
    """
    record = read_results(run)
    row, name = named_row(record, run, method)
    seeds = [trained["seed"] for trained in row.get("seeds", ())]  # Older runs have none.
    if seed is not None:
        one_of(f"--seed of {name}", seed, seeds)
    suffix = "" if seed in (None, *seeds[:1]) else f"_seed_{seed}"
    path = run / selected.FOLDER / f"{name}{suffix}_student.safetensors"
    student = open_file(path)
    of_seed = [seed] if seed is not None else seeds[:1]
    described = student.described._replace(
        method=name,
        seed="".join(map(str, of_seed)),
        run=key_of(record),
    )
    # The metadata of the file are more reliable than results without this record (older runs).
    if "preprocessing" in record["data"] or "stored_size" not in _metadata(path):
        described = described._replace(
            stored_size=preprocessing.stored_size(record), crop=preprocessing.crop(record)
        )
    return student._replace(described=described)


def read_results(run: pathlib.Path) -> dict[str, Any]:
    """Reads the `results.json` of a finished run.

    Raises:
        SettingError: If there is no such run, or it is not finished.
    """
    require(run.is_dir(), f"There is no run {run}: give the --workdir of one.")
    record = results.read(run / "results.json")
    if record is None:
        is_run = (run / "config.json").exists()
        raise SettingError(
            f"The run {run} is not finished: resume it with the command that started it."
            if is_run
            else f"{run} is not the folder of a run: it has no results.json; give a --workdir."
        )
    return record


def key_of(record: dict[str, Any]) -> str:
    """Returns the key of a run's identity from its results.json; empty for older runs."""
    return record.get("identity", {}).get("key", "")


def named_row(record: dict[str, Any], run: pathlib.Path, name: str) -> tuple[dict[str, Any], str]:
    """Returns the row of a method, and the name of its models in the names of their files.

    Args:
        record: Return value of `read_results`.
        run: Folder of the run.
        name: Name of a method, or METHOD_refit; empty is the method that is best on validation.

    Raises:
        SettingError: If there is no such method, or it has no models of a refit.
    """
    refitted = {selected.REFIT.format(row["method"]): row for row in record["methods"]}
    row = refitted.get(name)
    if row is None:
        row = method_row(record, run, name)
        return row, row["method"]
    require(
        refit.was_made(row),
        f"--method={name}: {row['method']} of {run} was not trained on train and validation: give "
        "--method without _refit, or run the command of the run again with "
        "--config.data.refit=True.",
    )
    return row, name


def method_row(record: dict[str, Any], run: pathlib.Path, method: str) -> dict[str, Any]:
    """Returns a method's row in the results of a run; by default, the best on validation."""
    rows = {row["method"]: row for row in record["methods"]}
    if not method:
        metric = record["data"]["metric"]
        method = tables.best_on_validation(record["methods"], metric)["method"]
    one_of(f"--method of {run}", method, rows)
    return rows[method]


def open_file(path: pathlib.Path) -> Student:
    """Opens a student from a .safetensors file with the metadata of `description`.

    Raises:
        SettingError: If the file is missing or damaged, or lacks the metadata.
    """
    require(path.is_file(), f"There is no student {path}: was the run's folder selected/ moved?")
    mesh.require_devices()
    described = description.read(_metadata(path), os.fspath(path))
    if not described.identity:  # The file of a run, not an export.
        described = described._replace(identity=results.digest(path))
    model = make_model(described)
    return Student(model, students.load(path, model), described, os.fspath(path))


def _metadata(path: pathlib.Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise SettingError(f"{path} is not a complete .safetensors file: {error}.") from error


def make_model(described: Description, *, dtype: str = "float32") -> Any:
    """Builds the network of a student.

    Raises:
        SettingError: If there is no such network.
    """
    one_of("The model of the student", described.model, models.STUDENTS)
    try:
        return models.make(
            described.model,
            classes=len(described.classes),
            stem=described.stem,
            dtype=dtype,
            **student_normalisation.options(described.normalisation),
            **described.architecture,
        )
    except (ValueError, TypeError) as error:
        raise SettingError(f"The student cannot be built: {error}") from error
