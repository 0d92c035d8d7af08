"""`remem distil` as a function."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax import shipped_configs
from remem_jax.budget import pipeline
from remem_jax.checks import SettingError, local_path
from remem_jax.report import tables
from remem_jax.settings import values


class Result(NamedTuple):
    """A finished run.

    Attributes:
        folder: Folder of the run.
        results: Contents of its results.json; docs/results.md describes the fields.
    """

    folder: pathlib.Path
    results: Mapping[str, Any]

    @property
    def report(self) -> pathlib.Path:
        """The report, for a browser."""
        return self.folder / "report.html"

    @property
    def best(self) -> Mapping[str, Any]:
        """Row of the method whose student is best on validation."""
        return tables.best_on_validation(self.results["methods"], self.results["data"]["metric"])

    @property
    def student(self) -> pathlib.Path:
        """File of the student that is best on validation."""
        return self.folder / "selected" / f"{self.best['method']}_student.safetensors"

    @property
    def accuracy(self) -> float:
        """Accuracy of this student on test, in the metric of the data set, from 0 to 1."""
        return self.best["student"]["test"][self.results["data"]["metric"]]


def distil(
    images: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    hours: float,
    settings: Mapping[str, Any],
) -> Result:
    """See `remem_jax.distil`."""
    with shipped_configs.imported("own") as own:
        config = own.get_config(os.fspath(images))
    known = dict(values.leaves(config))
    for name, value in {"budget.hours": float(hours), **settings}.items():
        if name not in known:
            raise SettingError(f"There is no setting {name}; docs/configuration.md lists all.")
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise SettingError(f"config.{name} cannot be {value!r}: {error}.") from None
    folder = local_path("out", out)
    pipeline.run(config, folder, given=tuple(settings))
    return Result(folder, json.loads((folder / "results.json").read_text(encoding="utf-8")))
