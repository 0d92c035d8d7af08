"""Writes docs/evidence/ and the tables of docs/evidence.md from studies of configs/evidence.py.

    python -m tools.make_evidence studies/evidence_small

The finished trials of the studies are added to docs/evidence/trials.csv; tables and figures are
about all trials there. Without a study, they are written again. The text of the page is written by
hand; each table stands between marks that name it. A test computes the tables again from
docs/evidence/trials.csv, with SciPy.
"""

import argparse
import itertools
import pathlib
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax.report import tables
from remem_jax.report.figures import drawing
from remem_jax.report.study import (
    claims,
    differences,
    gains,
    overview,
    predictors,
    results_table,
    trial_rows,
)
from remem_jax.statistics import correlation
from remem_jax.statistics.seeds import Mean
from remem_jax.storage import results
from tools.evidence import record

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "evidence.md"
FOLDER = PAGE.parent / "evidence"
_MARKED = re.compile(
    r"(?<=<!-- Made by tools/make_evidence.py: )([\w ]+)( -->\n).*?(?=<!-- End. -->)", re.S
)
_FIGURES = (overview.of_rows, overview.against_settings, predictors.figures)
_INFORMATION = "teacher.information"

Row = Mapping[str, Any]
Rows = Sequence[Row]


class Point(NamedTuple):
    """A teacher and its student, on test."""

    information: float
    accuracy: float
    student: float
    group: tuple[str, int]
    setting: str


def main() -> None:
    """Reads the studies and writes the page, the table of trials and the figures."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_evidence")
    parser.add_argument("studies", type=pathlib.Path, nargs="*", help="folders of studies to add")
    studies = []
    for folder in parser.parse_args().studies:
        study = results.read(folder / "study.json")
        if study is None:
            parser.error(f"{folder} has no study.json.")
        studies.append(study)
    path = FOLDER / "trials.csv"
    rows = record.add(record.read(path) if path.exists() else (), studies)
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    path.write_text(trial_rows.comma_separated(rows), encoding="utf-8")
    text = page(rows)
    PAGE.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        for figure in _figures(record.study(rows)):
            if f"({FOLDER.name}/{figure.name}.png)" in text:
                drawing.save(pathlib.Path(temporary), figure)
                shutil.copy(pathlib.Path(temporary, f"{figure.name}.png"), FOLDER)


def _figures(study: Mapping[str, Any]) -> Iterator[drawing.Drawing]:
    """Draws the figures of each column, which end their names."""
    for column in study["columns"]:
        trials = [trial for trial in study["trials"] if trial["column"] == column["name"]]
        of_column = {**study, "columns": [column], "trials": trials}
        for figure in (figure for drawn in _FIGURES for figure in drawn(of_column)):
            yield figure._replace(name=f"{figure.name}_{column['name']}")


def page(rows: Rows) -> str:
    """Returns docs/evidence.md with its tables; `rows` are those of `record.add`."""

    def filled(match: re.Match[str]) -> str:
        kind, *names = match[1].split()
        return f"{match[1]}{match[2]}\n{_TABLES[kind](rows, *names)}\n"

    return _MARKED.sub(filled, PAGE.read_text(encoding="utf-8"))


def _claims(rows: Rows) -> str:
    """Returns each claim, and in each column its answer and the difference behind it."""
    study = record.study(rows)
    titles = _titles(study)
    verdicts = {
        (verdict["claim"], verdict["column"]): verdict
        for verdict in differences.verdicts(study)
        if verdict["answer"] != "missing"
    }
    lines = [
        (
            claim["title"],
            titles[column],
            gains.interval(differences.mean_of(verdict)),
            claims.answer(verdict),
        )
        for claim in study["claims"]
        for column in titles
        if (verdict := verdicts.get((claim["name"], column))) is not None
    ]
    heads = ("claim", "students", "difference, points", "answer")
    return _table(heads, lines, texts=(0, 1, 3))


def _results(rows: Rows, column: str) -> str:
    """Returns the rows of a column: the setting, the student, its gain, and the teacher."""
    study = record.study(rows)
    over = {
        gap["row"]: differences.mean_of(gap)
        for gap in differences.over_seeds(study)
        if gap["column"] == column
    }
    trials = {row["trial"]: row for row in rows}
    cells = results_table.cells(study, results_table.VALIDATION)
    lines = [
        _result(
            row["title"],
            [trials[each["trial"]] for each in cell["replicates"]],
            over.get(row["name"]),
        )
        for row in study["rows"]
        if (cell := cells.get((row["name"], column))) is not None
    ]
    heads = ("", "setting", "student, %", "minus fine-tuning, points", "p", "teacher, %")
    return _table((*heads, "information", "calibration error", "sharpness"), lines)


def _result(title: str, trials: Rows, gain: Mean | None) -> Sequence[str]:
    """Returns the line of a row with the chosen trial of each seed."""
    setting = ", ".join(
        f"{name} {trials[0][field]:g}"
        for field, name in (("rho", "rho"), ("mlp_weight", "alpha"))
        if trials[0].get(field) is not None
    )
    return (
        title,
        setting,
        _spread(trials, f"student.test.{record.METRIC}", 100, 2),
        gains.interval(gain) if gain else "",
        "" if gain is None or gain.p_value is None else tables.p_value(gain.p_value),
        _spread(trials, f"teacher.test.{record.METRIC}", 100, 2),
        _spread(trials, _INFORMATION, 1, 4),
        _spread(trials, "teacher.test.calibration_error", 1, 3),
        _spread(trials, "teacher.sharpness", 1, 3),
    )


def _spread(trials: Rows, name: str, factor: float, digits: int) -> str:
    """Returns the mean and the sample standard deviation of a measure over trials."""
    values = [factor * trial[name] for trial in trials if trial.get(name) is not None]
    if not values:
        return tables.NOTHING
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _grid(rows: Rows, column: str) -> str:
    """Returns the grid points of a column, with the seeds that searched them."""
    study = record.study(rows)
    titles = {row["name"]: row["title"] for row in study["rows"]}
    lines = [
        (
            titles[trial["row"]],
            *(_setting(trial, name) for name in ("rho", "mlp_weight")),
            *(
                f"{100 * trial[f'{model}.{split}.{record.METRIC}']:.2f}"
                for model in ("student", "teacher")
                for split in ("validation", "test")
            ),
            f"{trial[_INFORMATION]:.4f}",
            f"{trial['teacher.sharpness']:.3f}",
        )
        for trial in rows
        if record.column(trial) == column
        and trial["seed"] in study["search"]["seeds"]
        and (trial.get("rho") is not None or trial.get("mlp_weight") is not None)
    ]
    heads = ("", "rho", "alpha", "student, validation", "test", "teacher, validation", "test")
    return _table((*heads, "information", "sharpness"), lines)


def _setting(trial: Row, name: str) -> str:
    return tables.NOTHING if trial.get(name) is None else f"{trial[name]:g}"


def _eq1(rows: Rows) -> str:
    """Returns the rank correlations of a teacher's measures with its student, on test."""
    by_column = {
        title: _distilled(rows, column) for column, title in _titles(record.study(rows)).items()
    }
    lines = {title: list(_correlations(title, points)) for title, points in by_column.items()}
    if sum(map(bool, lines.values())) > 1:
        every = [point for points in by_column.values() for point in points]
        lines["all"] = list(_correlations("all", every))
    heads = ("students", "measure of the teacher", "rank correlation", "95 % interval")
    return _table((*heads, "teachers", "settings", "groups"), [*itertools.chain(*lines.values())])


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


def _distilled(rows: Rows, column: str) -> list[Point]:
    """Returns the teachers of a column whose students were trained in the same way."""
    return [
        Point(
            information=trial[_INFORMATION],
            accuracy=trial[f"teacher.test.{record.METRIC}"],
            student=trial[f"student.test.{record.METRIC}"],
            group=(column, trial["seed"]),
            setting=record.recipe(trial),
        )
        for trial in rows
        if record.column(trial) == column
        and trial.get(_INFORMATION) is not None
        and trial["row"] not in record.DISTILLED_OTHERWISE
    ]


def _cost(rows: Rows) -> str:
    """Returns the time of the trials of each column, in hours of one core."""
    titles = _titles(record.study(rows))
    seconds = {
        column: [trial["seconds"] for trial in rows if record.column(trial) == column]
        for column in titles
    }
    lines = [
        (title, str(len(seconds[column])), f"{sum(seconds[column]) / 3600:.1f}")
        for column, title in titles.items()
    ]
    return _table(("students", "trials", "hours"), lines)


def _titles(study: Mapping[str, Any]) -> dict[str, str]:
    return {column["name"]: column["title"] for column in study["columns"]}


def _table(
    heads: Sequence[str], lines: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)
) -> str:
    """Returns a table, in Markdown; columns of texts are aligned left."""
    rule = ["---" if place in texts else "---:" for place in range(len(heads))]
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
