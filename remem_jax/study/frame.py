"""Opens the trials of a study as a frame of pandas, without JAX."""

import importlib
import json
import os
import pathlib
from typing import TYPE_CHECKING

from remem_jax import checks
from remem_jax.report.study import trial_rows

if TYPE_CHECKING:
    import pandas


def load(directory: str | os.PathLike[str]) -> "pandas.DataFrame":
    """Returns the trials of a study so far, one row for each trial and seed of its student.

        frame = remem_jax.study.load("studies/mine")
        done = frame[(frame.state == "done") & (frame.fraction == 1)]
        done.groupby(["row", "rho"])["student.test.top1"].mean()

    The same rows are in trials.csv; docs/extending/study.md describes the columns. A trial that is
    not done has NaN for its results. Values of settings that are tuples stay tuples.

    Args:
        directory: Folder of the study, which may be running.

    Raises:
        SettingError: If the folder has no study.json, or pandas is not installed.
    """
    path = pathlib.Path(directory) / "study.json"
    checks.require(
        path.exists(),
        f"{path} does not exist: there is no study, or it has not started.",
    )
    try:
        frames = importlib.import_module("pandas")
    except ImportError:
        raise checks.SettingError(
            "Frames need pandas, which is not installed: pip install '.[frame]'. Without it, read "
            "trials.csv of the study's folder."
        ) from None
    study = json.loads(path.read_text(encoding="utf-8"))
    rows = trial_rows.rows(study)
    return frames.DataFrame.from_records(rows, columns=trial_rows.columns(rows))
