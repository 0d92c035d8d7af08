"""A study's trials as rows of a table: one for each trial and seed of its student."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import results_table
from remem_jax.storage import spreadsheets

Row = dict[str, Any]

# Fields that all rows have, in their order; results follow.
_PLACE = ("number", "trial", "row", "column", "seed", "student_seed", "fraction", "state", "reason")
_COST = ("seconds", "device", "worker", "folder", "teacher_steps", "student_steps", "students")
_OF_TEACHER = (
    *("excess", "temperature", "calibrated_error"),
    *("radius", "sharpness"),
)


def rows(study: results_table.Study) -> list[Row]:
    """Returns the trials of a study, each once for every seed of its student.

    Args:
        study: Contents of study.json.

    Returns:
        Place, state and cost of each trial; its settings by name; and, if it is done, the metrics
        of the selected student and its teacher as "student.SPLIT.METRIC" and
        "teacher.SPLIT.METRIC", and what else was measured of the teacher as
        "teacher.information" (minus the excess), "teacher.temperature" and so on. Absent fields
        were not measured.
    """
    return [row for trial in study["trials"] for row in _of_trial(trial)]


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns all fields of the rows: place, settings, results, then cost."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = [name for name in names if name not in (*_PLACE, *_COST)]
    results = [name for name in found if name.startswith(("student.validation.", "student.test."))]
    results += [name for name in found if name.startswith("teacher.") and _is_result(name)]
    settings = [name for name in found if name not in results]
    return [*_PLACE, *settings, *results, *_COST]


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the rows as CSV, in full precision; absent fields are empty."""
    names = columns(rows)
    lines = ([_cell(row.get(name)) for name in names] for row in rows)
    return spreadsheets.text([[tables.printable(name) for name in names], *lines])


def _of_trial(trial: Mapping[str, Any]) -> Iterator[Row]:
    place = {name: trial.get(name) for name in _PLACE if name != "student_seed"}
    cost = {name: trial.get(name) for name in _COST}
    selected = trial.get("selected") or {}
    settings = {**trial["settings"], **selected.get("settings", {})}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    teacher = _of_model("teacher", selected.get("teacher")) | _measured(trial, settings)
    for student in selected.get("students") or [{}]:
        yield {
            **place,
            "student_seed": student.get("seed"),
            **values,
            **_of_model("student", student),
            **teacher,
            **cost,
        }


def _of_model(role: str, model: Mapping[str, Any] | None) -> Row:
    return {
        f"{role}.{split}.{name}": value
        for split in ("validation", "test")
        for name, value in ((model or {}).get(split) or {}).items()
    }


def _measured(trial: Mapping[str, Any], settings: Mapping[str, Any]) -> Row:
    """Returns what was measured of the selected teacher, besides its metrics."""
    step = settings.get("teacher_step")
    teacher = next((t for t in trial.get("checkpoints", ()) if t["step"] == step), {})
    values = {name: teacher.get(name) for name in _OF_TEACHER}
    excess = values.pop("excess")
    values = {"information": None if excess is None else -excess, **values}
    return {f"teacher.{name}": value for name, value in values.items() if value is not None}


def _is_result(name: str) -> bool:
    measured = ("information", *_OF_TEACHER)
    return name.split(".")[1] in ("validation", "test", *measured)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return tables.printable(value) if isinstance(value, str) else value
