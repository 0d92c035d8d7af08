"""Tables of a study's trials: data, missing cells, cost, selected settings, all trials, versions.

As in `tables`, all is plain text, not escaped yet.
"""

import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import results_table

_SELECTED = {
    "validation": "Selected settings",
    "test": "Settings selected on test (optimistic)",
}
_LEFT_OUT = "left out by config.only"
_KEY = re.compile(r"[0-9a-f]+")  # A hash, which is safe in an address.
_OFFICIAL = {True: "yes", False: "no", None: "not among the paper's data"}


def data(study: results_table.Study) -> tables.Table:
    """Builds the table of the data of each column."""
    rows = []
    for column in study["columns"]:
        record = column["data"]
        if record is None:
            rows.append((column["title"], "not run", *[tables.NOTHING] * 5))
            continue
        examples = (
            f"{record['examples'].get(split, 0):,}" for split in ("train", "validation", "test")
        )
        rows.append(
            (
                column["title"],
                record["title"],
                _OFFICIAL[record["official"]],
                f"{record['classes']:,}",
                " / ".join(examples),
                str(record["image_size"]),
                tables.METRIC_TITLES.get(record["metric"], record["metric"]),
            )
        )
    images = "Training / validation / test images"
    heads = ("Column", "Data set", "Official", "Classes", images, "Image size", "Metric")
    return tables.Table("Data", heads, tuple(rows), numeric=False, note=_varied_data(study))


def _varied_data(study: results_table.Study) -> str:
    """Returns a note if trials of one column differ in their data; else empty."""
    axes = names(row["grid"].get("others", {}) for row in study["search"].get("rows", ()))
    varied = [name for name in axes if name.startswith("data.")]
    if not varied:
        return ""
    return f"The grid varies {', '.join(varied)}; the table describes one trial of each column."


def missing(study: results_table.Study) -> tables.Table | None:
    """Builds the table of cells and seeds without a result; None if nothing is missing.

    Cells that `config.only` leaves out share one line.
    """
    titled = titles(study)
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for row, column, seed, why in [*_listed(study), *_unlisted(study)]:
        seeds.setdefault((*titled(row, column), why), []).append(str(seed))
    left_out = {place: seeds.pop(place) for place in list(seeds) if place[-1] == _LEFT_OUT}
    lines = tuple(
        (row, column, ", ".join(numbers), why) for (row, column, why), numbers in seeds.items()
    )
    if left_out:
        numbers = dict.fromkeys(seed for seeds in left_out.values() for seed in seeds)
        cells = f"{len(left_out)} cell{'s' if len(left_out) > 1 else ''}"
        lines += ((cells, "", ", ".join(numbers), _LEFT_OUT),)
    if not lines:
        return None
    return tables.Table(
        "Missing results", ("Row", "Column", "Seeds", "Reason"), lines, numeric=False
    )


def _listed(study: results_table.Study) -> list[tuple[str, str, int, str]]:
    return [(cell["row"], cell["column"], cell["seed"], cell["why"]) for cell in study["missing"]]


def _unlisted(study: results_table.Study) -> Iterable[tuple[str, str, int, str]]:
    """Yields seeds without a result that the record does not list as missing."""
    listed = {entry[:3] for entry in _listed(study)}
    cells = results_table.cells(study, results_table.main(study))
    for row in study["rows"]:
        for column in study["columns"]:
            cell = cells.get((row["name"], column["name"]))
            finished = {replicate["seed"] for replicate in cell["replicates"]} if cell else set()
            if study.get("only"):  # The record lists all seeds of the cells that it selects.
                reason = _LEFT_OUT
            else:
                reason = "not on record" if column["data"] else "not run"
            for seed in study["seeds"]:
                if seed not in finished and (row["name"], column["name"], seed) not in listed:
                    yield row["name"], column["name"], seed, reason


def cost(study: results_table.Study) -> tables.Table:
    """Builds the table of the planned cost and the cost so far."""
    planned = study["cost"]
    done = planned.get("spent_trials")
    if done is None:  # An older study has no trials besides the planned ones.
        done = sum(trial["state"] == "done" for trial in study["trials"])
    rows = (
        ("Trials", f"{planned['trials']:,}", f"{done:,}"),
        ("Teacher steps", f"{planned['teacher_steps']:,}", tables.NOTHING),
        ("Student steps", f"{planned['student_steps']:,}", tables.NOTHING),
        ("Floating-point operations", _formatted(planned["operations"], ".3g"), tables.NOTHING),
        ("Hours", *(_formatted(planned[name], ",.2f") for name in ("hours", "spent_hours"))),
    )
    return tables.Table("Cost", ("What", "Planned", "Spent"), rows)


def _formatted(value: float | None, form: str) -> str:
    return tables.NOTHING if value is None else format(value, form)


def selected(study: results_table.Study, choice: str) -> tables.Table | None:
    """Builds the table of settings selected for each cell and seed; None without any."""
    titled, named = titles(study), {trial["trial"]: name(trial) for trial in study["trials"]}
    chosen = [
        (cell, replicate)
        for cell in ordered(study, results_table.cells(study, choice).values())
        for replicate in cell["replicates"]
    ]
    if not chosen:
        return None
    setting_names = names(replicate["settings"] for _, replicate in chosen)
    lines = [
        (
            *titled(cell["row"], cell["column"]),
            str(replicate["seed"]),
            *_accuracies(replicate),
            f"{named.get(replicate['trial'], replicate['trial'])}, of {replicate['trials']:,}",
            f"{replicate['students']:,}",
            *(setting(replicate["settings"].get(name)) for name in setting_names),
        )
        for cell, replicate in chosen
    ]
    measured = ("Student, test", "By student seed", "Teacher, test", "Student, validation")
    heads = ("Row", "Column", "Seed", *measured, "Trial", "Students tried", *setting_names)
    return tables.Table(_SELECTED[choice], heads, tuple(lines), numeric=False)


def _accuracies(replicate: Mapping[str, Any]) -> list[str]:
    return [
        tables.percent(replicate["student"]),
        ", ".join(tables.percent(share) for share in replicate["students_of_seeds"]),
        tables.percent(replicate["teacher"]),
        tables.percent(replicate["validation"]),
    ]


def name(trial: Mapping[str, Any]) -> str:
    """Returns a trial's number, which logs and the dashboard show too, and its key."""
    number = trial.get("number")  # Older studies have none.
    return trial["trial"] if number is None else f"{number}: {trial['trial']}"


def links(study: results_table.Study, directory: pathlib.Path) -> dict[str, str]:
    """Returns the address of each trial's own report, relative to the study's folder, by key.

    Reports in the folders of other workers have none.
    """
    keys = [trial["trial"] for trial in study["trials"] if _KEY.fullmatch(trial["trial"])]
    places = {key: f"trials/{key}/report.html" for key in keys}
    return {key: place for key, place in places.items() if (directory / place).exists()}


def tried(study: results_table.Study, links: Mapping[str, str] | None = None) -> tables.Table:
    """Builds the table of all trials, sorted by row and column, steps, then accuracy.

    Args:
        study: Contents of study.json.
        links: Addresses of the trials' reports by key, from `links`.
    """
    links = links or {}
    titled = titles(study)
    setting_names = names(trial["settings"] for trial in study["trials"])
    shortened = any(trial["fraction"] != 1 for trial in study["trials"])
    # They differ if workers with other numbers of devices run trials with ascent_examples=-1.
    divided = len({_ascent(trial) for trial in study["trials"]} - {None}) > 1

    def rank(trial: Mapping[str, Any]) -> tuple[int, float, float]:
        share = trial["validation"]
        if share is None or not math.isfinite(share):
            return trial["seed"], -trial["fraction"], math.inf
        return trial["seed"], -trial["fraction"], -float(share)

    shown = ordered(study, sorted(study["trials"], key=rank))
    lines = [
        (
            name(trial),
            *titled(trial["row"], trial["column"]),
            str(trial["seed"]),
            *([tables.number(trial["fraction"])] if shortened else []),
            f"{trial['state']}: {trial['reason']}" if trial["reason"] else trial["state"],
            tables.percent(trial["validation"]),
            *(f"{trial[n]:,}" for n in ("students", "teacher_steps", "student_steps")),
            tables.NOTHING if trial["seconds"] is None else tables.duration(trial["seconds"]),
            trial["device"] or tables.NOTHING,
            _place(trial, has_link=trial["trial"] in links),
            *([tables.number(_ascent(trial))] if divided else []),
            *(setting(trial["settings"].get(name)) for name in setting_names),
        )
        for trial in shown
    ]
    where = ("Trial", "Row", "Column", "Seed", *(["Fraction of the steps"] if shortened else []))
    best = f"Best on {results_table.main(study)}"
    amount = ("State", best, "Students", "Teacher's steps", "Student's steps")
    ascent = ["Images per ascent step of SAM"] if divided else []
    heads = (*where, *amount, "Time", "Device", "Worker", *ascent, *setting_names)
    return tables.Table(
        "All trials",
        heads,
        tuple(lines),
        numeric=False,
        note=_states(study),
        links=tuple(links.get(trial["trial"], "") for trial in shown),
    )


def _place(trial: Mapping[str, Any], *, has_link: bool) -> str:
    """Returns the worker of a trial, and its copy or folder unless the report has a link to it."""
    parts = [trial.get("worker"), None if has_link else trial.get("copy") or trial.get("folder")]
    return ": ".join(part for part in parts if part) or tables.NOTHING


def _ascent(trial: Mapping[str, Any]) -> int | None:
    """Returns the images that share an ascent step of SAM; None without one, or if unknown."""
    return (trial.get("ascent") or {}).get("examples")


def _states(study: results_table.Study) -> str:
    states = Counter(trial["state"] for trial in study["trials"])
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    return f"Trials: {counts or 'none'}."


def versions(study: results_table.Study) -> tables.Table:
    """Builds the table of software versions."""
    rows = tuple((name, str(version)) for name, version in study["versions"].items())
    return tables.Table("Versions", ("Software", "Version"), rows, numeric=False)


def titles(study: results_table.Study) -> Callable[[str, str], tuple[str, str]]:
    """Returns a function from the names of a row and a column to titles; unknown names stay."""
    rows = {row["name"]: results_table.row_title(row) for row in study["rows"]}
    columns = {column["name"]: column["title"] for column in study["columns"]}

    def titled(row: str, column: str) -> tuple[str, str]:
        return rows.get(row, row), columns.get(column, column)

    return titled


def ordered(
    study: results_table.Study, records: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Sorts records that have a row and a column in the order of the table; the sort is stable."""
    orders = [
        {entry["name"]: index for index, entry in enumerate(study[kind])}
        for kind in ("rows", "columns")
    ]

    def rank(record: Mapping[str, Any]) -> list[int]:
        names = (record["row"], record["column"])
        return [order.get(name, len(order)) for order, name in zip(orders, names, strict=True)]

    return sorted(records, key=rank)


def names(settings: Iterable[Mapping[str, Any]]) -> Sequence[str]:
    """Returns all names in the order of their first occurrence."""
    return list(dict.fromkeys(name for point in settings for name in point))


def setting(value: Any) -> str:
    """Formats the value of a setting."""
    if value in ("", [], ()):
        return "empty"
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, float) or value is None:
        return tables.number(value)
    return str(value)
