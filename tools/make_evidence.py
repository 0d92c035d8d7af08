"""Writes docs/evidence/ and the tables of docs/evidence.md from the study of configs/evidence.py.

    python -m tools.make_evidence studies/evidence_small

The text of the page is written by hand; each table stands between marks that name it. A test
computes the tables again from docs/evidence/trials.csv, with SciPy.
"""

import argparse
import pathlib
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax.report import tables
from remem_jax.report.study import claims, differences, gains, results_table, trial_rows
from remem_jax.statistics import correlation
from remem_jax.storage import results

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "evidence.md"
FOLDER = PAGE.parent / "evidence"
_MARKED = re.compile(
    r"(?<=<!-- Made by tools/make_evidence.py: )([\w ]+)( -->\n).*?(?=<!-- End. -->)", re.S
)
# Columns of trials.csv that only mean something on the machine of the study.
_PRIVATE = ("worker", "folder")
_INFORMATION = "teacher.information"

Row = Mapping[str, Any]
Study = Mapping[str, Any]


class Point(NamedTuple):
    """A teacher and its student, on test."""

    information: float
    accuracy: float
    student: float
    group: tuple[str, int]
    setting: tuple[Any, ...]


def main() -> None:
    """Reads the study and writes the page, the table of trials and the figures."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_evidence")
    parser.add_argument("study", type=pathlib.Path, help="folder of the study")
    folder = parser.parse_args().study
    study = results.read(folder / "study.json")
    if study is None:
        parser.error(f"{folder} has no study.json.")
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    (FOLDER / "trials.csv").write_text(_trials(study), encoding="utf-8")
    text = page(study)
    for name in re.findall(rf"\({FOLDER.name}/(\w+\.png)\)", text):
        shutil.copyfile(folder / "figures" / name, FOLDER / name)
    PAGE.write_text(text, encoding="utf-8")


def page(study: Study) -> str:
    """Returns docs/evidence.md with the tables of a study.

    Args:
        study: Contents of study.json.
    """

    def filled(match: re.Match[str]) -> str:
        kind, *names = match[1].split()
        return f"{match[1]}{match[2]}\n{_TABLES[kind](study, *names)}\n"

    return _MARKED.sub(filled, PAGE.read_text(encoding="utf-8"))


def _trials(study: Study) -> str:
    """Returns the finished trials as CSV, without columns that are about the machine."""
    trials = [
        {name: value for name, value in trial.items() if name not in _PRIVATE}
        for trial in study["trials"]
        if trial["state"] == "done"
    ]
    return trial_rows.comma_separated({**study, "trials": trials})


def _claims(study: Study) -> str:
    """Returns the sentence of each claim and column."""
    return "".join(f"- **{each.answer}** {each.details}\n" for each in claims.sentences(study))


def _results(study: Study, column: str) -> str:
    """Returns the rows of a column: the setting, the student, its gain, and the teacher."""
    return _table(
        (
            *("", "setting", "student, %", "minus fine-tuning, points", "p", "teacher, %"),
            *("information", "calibration error", "sharpness"),
        ),
        list(_rows(study, column)),
    )


def _rows(study: Study, column: str) -> Iterator[Sequence[str]]:
    cells = results_table.cells(study, results_table.VALIDATION)
    over = {
        gap["row"]: differences.mean_of(gap)
        for gap in differences.over_seeds(study)
        if gap["column"] == column and gap["choice"] == results_table.VALIDATION
    }
    trials = {row["trial"]: row for row in trial_rows.rows(study)}
    metric = _metric(study, column)
    for row in study["rows"]:
        cell = cells.get((row["name"], column))
        if cell is None:
            continue
        chosen = [trials[replicate["trial"]] for replicate in cell["replicates"]]
        gain = over.get(row["name"])
        of_p = "" if gain is None or gain.p_value is None else f"{gain.p_value:.2g}"
        yield (
            row["title"],
            ", ".join(
                f"{title} {chosen[0][name]:g}"
                for name, title in (("rho", "rho"), ("mlp_weight", "alpha"))
                if chosen[0].get(name) is not None
            ),
            _spread(chosen, f"student.test.{metric}", 100, 2),
            gains.interval(gain) if gain else "",
            of_p,
            _spread(chosen, f"teacher.test.{metric}", 100, 2),
            _spread(chosen, _INFORMATION, 1, 4),
            _spread(chosen, "teacher.test.calibration_error", 1, 3),
            _spread(chosen, "teacher.sharpness", 1, 3),
        )


def _spread(trials: Sequence[Row], name: str, factor: float, digits: int) -> str:
    """Returns the mean and the sample standard deviation of a measure over trials."""
    values = [factor * trial[name] for trial in trials if trial.get(name) is not None]
    if not values:
        return tables.NOTHING
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _grid(study: Study, column: str) -> str:
    """Returns the grid points that were searched, with their seeds."""
    metric = _metric(study, column)
    searched = study["search"]["seeds"]
    grids = {row["name"]: row["title"] for row in study["rows"]}
    lines = [
        (
            grids[trial["row"]],
            *(_setting(trial, name) for name in ("rho", "mlp_weight")),
            *(
                f"{100 * trial[f'{model}.{split}.{metric}']:.2f}"
                for model in ("student", "teacher")
                for split in ("validation", "test")
            ),
            f"{trial[_INFORMATION]:.4f}",
            f"{trial['teacher.sharpness']:.3f}",
        )
        for trial in sorted(trial_rows.rows(study), key=_order)
        if trial["column"] == column
        and trial["state"] == "done"
        and trial["seed"] in searched
        and (trial.get("rho") is not None or trial.get("mlp_weight") is not None)
    ]
    heads = ("", "rho", "alpha", "student, validation", "test", "teacher, validation", "test")
    return _table((*heads, "information", "sharpness"), lines)


def _order(trial: Row) -> tuple[str, float, float]:
    return trial["row"], trial.get("mlp_weight") or 0.0, trial.get("rho") or 0.0


def _setting(trial: Row, name: str) -> str:
    return tables.NOTHING if trial.get(name) is None else f"{trial[name]:g}"


def _eq1(study: Study) -> str:
    """Returns the rank correlations of a teacher's measures with its student, on test."""
    by_column = {
        column["title"]: _distilled(study, column["name"], _metric(study, column["name"]))
        for column in study["columns"]
    }
    by_column = {title: points for title, points in by_column.items() if points}
    if len(by_column) > 1:
        by_column["all"] = [point for points in by_column.values() for point in points]
    lines = [line for title, points in by_column.items() for line in _correlations(title, points)]
    heads = ("students", "measure of the teacher", "rank correlation", "95 % interval")
    return _table((*heads, "teachers", "settings", "groups"), lines)


def _correlations(title: str, points: Sequence[Point]) -> Iterator[Sequence[str]]:
    information, accuracy = ([getattr(p, name) for p in points] for name in Point._fields[:2])
    for measure, x, given in (
        ("information", information, None),
        ("information, at equal accuracy", information, accuracy),
        ("accuracy", accuracy, None),
    ):
        found = correlation.within_blocks(
            x,
            [point.student for point in points],
            [point.group for point in points],
            [point.setting for point in points],
            given=given,
        )
        if found.value is not None:
            limits = (
                tables.NOTHING if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
            )
            sizes = map(str, (found.points, found.clusters, found.blocks))
            yield (title, measure, f"{found.value:+.2f}", limits, *sizes)


def _distilled(study: Study, column: str, metric: str) -> list[Point]:
    """Returns the teachers of a column whose students were trained in the same way."""
    return [
        Point(
            information=trial[_INFORMATION],
            accuracy=trial[f"teacher.test.{metric}"],
            student=trial[f"student.test.{metric}"],
            group=(column, trial["seed"]),
            setting=(trial["row"], trial.get("rho"), trial.get("mlp_weight")),
        )
        for trial in trial_rows.rows(study)
        if trial["column"] == column
        and trial["state"] == "done"
        and trial.get(_INFORMATION) is not None
        and trial["row"] not in ("calibrated", "standardised")
    ]


def _cost(study: Study) -> str:
    """Returns the time of the trials of each column, in hours of one core."""
    lines = []
    for column in study["columns"]:
        seconds = [
            trial["seconds"]
            for trial in study["trials"]
            if trial["column"] == column["name"] and trial["state"] == "done"
        ]
        if seconds:
            hours = f"{sum(seconds) / 3600:.1f}"
            lines.append((column["title"], str(len(seconds)), hours))
    return _table(("students", "trials", "hours"), lines)


def _metric(study: Study, column: str) -> str:
    (data,) = (each["data"] for each in study["columns"] if each["name"] == column)
    return data["metric"] if data else ""


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table, in Markdown; all columns but the first are aligned right."""
    rule = ("---", *["---:"] * (len(heads) - 1))
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *lines))


_TABLES: dict[str, Callable[..., str]] = {
    "claims": _claims,
    "results": _results,
    "grid": _grid,
    "eq1": _eq1,
    "cost": _cost,
}

if __name__ == "__main__":
    main()
