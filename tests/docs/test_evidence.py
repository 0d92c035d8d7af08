"""The numbers in docs/evidence.md follow from docs/evidence/trials.csv, by SciPy."""

import csv
import pathlib
import re
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from scipy import stats

from configs import evidence
from remem_jax.report.study import trial_rows
from tools import make_evidence
from tools.evidence import record

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "evidence.md"
METRIC = "mean_per_class"  # That of both data sets.
NOTHING = "\N{EN DASH}"
# Rows whose students have another loss, or calibrated teachers.
OTHER_LOSSES = (
    *("calibrated", "standardised", "weighted"),
    *("remem_calibrated", "remem_standardised"),
)
NAMES = {row["title"]: name for name, row in evidence.ROWS.items()}

Trial = dict[str, str]
Cells = list[str]


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """All finished trials of the study."""
    path = PAGE.parent / "evidence" / "trials.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} == {"done"}
    return [row | {"column": f"{row['column']}_{row['student_steps']}"} for row in rows]


def _blocks(kind: str) -> Iterator[tuple[str, list[Cells]]]:
    """Yields the column and the lines, without heads, of each table of a kind."""
    mark = rf"<!-- Made by tools/make_evidence.py: {kind} ?(\w*) -->(.*?)<!-- End. -->"
    for found in re.finditer(mark, PAGE.read_text(encoding="utf-8"), re.S):
        lines = [line for line in found[2].splitlines() if line.startswith("|")]
        yield found[1], [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", text)]


def _chosen(trials: list[Trial], column: str, row: str) -> dict[int, Trial]:
    """Returns the trial of each seed that is best on validation, or the repeated one."""
    chosen: dict[int, Trial] = {}
    for trial in trials:
        if (trial["row"], trial["column"]) == (row, column):
            best = chosen.setdefault(int(trial["seed"]), trial)
            if _validation(trial) > _validation(best):
                chosen[int(trial["seed"])] = trial
    return chosen


def _validation(trial: Trial) -> tuple[float, float]:
    name = "student.validation."
    return float(trial[f"{name}{METRIC}"]), -float(trial[f"{name}loss"])


def _students(trials: list[Trial], column: str, row: str) -> dict[int, float]:
    chosen = _chosen(trials, column, row)
    return {seed: 100 * float(t[f"student.test.{METRIC}"]) for seed, t in chosen.items()}


def _paired(above: dict[int, float], below: dict[int, float]) -> list[float]:
    """Returns the mean difference over common seeds and its interval, if it has one."""
    seeds = sorted(above.keys() & below.keys())
    pairs = [above[seed] for seed in seeds], [below[seed] for seed in seeds]
    mean = statistics.fmean(a - b for a, b in zip(*pairs, strict=True))
    if len(seeds) < 2:
        return [mean]
    test = stats.ttest_rel(*pairs)
    return [mean, *map(float, test.confidence_interval(0.95)), float(test.pvalue)]


def _title(column: str) -> str:
    """Returns the title of a column with a number of steps, such as "caltech101_lite0_600"."""
    name, _, steps = column.rpartition("_")
    config = evidence.get_config(f"{name.split('_')[0]},small")
    return f"{config.columns[name].title}, {int(steps):,} steps"


def test_the_results_are_those_of_the_trials(trials: list[Trial]) -> None:
    measured = {trial["column"] for trial in trials}
    assert {column for column, _ in _blocks("results")} == measured
    for column, lines in _blocks("results"):
        finetuned = _students(trials, column, "finetune")
        rows = {trial["row"] for trial in trials if trial["column"] == column}
        assert {NAMES[title] for title, *_ in lines} == rows
        for title, _, student, gain, p_value, teacher, information, *_ in lines:
            row = NAMES[title]
            values = list(_students(trials, column, row).values())
            expected = [statistics.fmean(values)]
            expected += [statistics.stdev(values)] if len(values) > 1 else []
            assert _numbers(student) == pytest.approx(expected, abs=0.0051), title
            chosen = _chosen(trials, column, row).values()
            if row == "finetune":
                assert (gain, p_value) == ("", "")
            else:
                paired = _paired(_students(trials, column, row), finetuned)
                assert _numbers(gain) == pytest.approx(paired[:3], abs=0.0051), title
                if p_value.startswith("<"):
                    assert paired[3] < _numbers(p_value)[0], title
                else:
                    assert [*_numbers(p_value)] == pytest.approx(paired[3:], rel=0.06), title
            for text, name, scale in (
                (teacher, f"teacher.test.{METRIC}", 100.0),
                (information, "teacher.information", 1.0),
            ):
                of_teacher = [scale * float(trial[name]) for trial in chosen if trial[name]]
                assert bool(of_teacher) == (text != NOTHING)
                if of_teacher:
                    mean = statistics.fmean(of_teacher)
                    assert _numbers(text)[0] == pytest.approx(mean, abs=scale * 0.000051)


def test_the_claims_are_those_of_the_trials(trials: list[Trial]) -> None:
    (lines,) = (lines for _, lines in _blocks("claims"))
    found = {(claim, students): (gap, answer) for claim, students, gap, answer in lines}
    expected = {
        (claim, _title(column)): _paired(
            _students(trials, column, row), _students(trials, column, baseline)
        )
        for claim, row, baseline in evidence.CLAIMS.values()
        for column in {trial["column"] for trial in trials}
        if _students(trials, column, row).keys() & _students(trials, column, baseline).keys()
    }
    assert found.keys() == expected.keys()
    for place, (mean, *rest) in expected.items():
        gap, answer = found[place]
        assert _numbers(gap) == pytest.approx([mean, *rest[:2]], abs=0.0051)
        if rest:
            assert (answer == "it holds here.") == (rest[0] > 0)
            assert ("the opposite does" in answer) == (rest[1] < 0)


def test_the_grid_is_that_of_the_trials(trials: list[Trial]) -> None:
    assert {column for column, _ in _blocks("grid")} <= {trial["column"] for trial in trials}
    for column, lines in _blocks("grid"):
        found = {(NAMES[title], rho, alpha): cells for title, rho, alpha, *cells in lines}
        searched = [
            trial
            for trial in trials
            if trial["column"] == column
            and trial["seed"] == "0"
            and (trial["rho"] or trial["mlp_weight"])
        ]
        assert len(found) == len(searched)
        for trial in searched:
            place = trial["row"], trial["rho"] or NOTHING, trial["mlp_weight"] or NOTHING
            assert [float(cell) for cell in found[place][:4]] == pytest.approx(
                [
                    100 * float(trial[f"{model}.{split}.{METRIC}"])
                    for model in ("student", "teacher")
                    for split in ("validation", "test")
                ],
                abs=0.0051,
            )


def test_the_correlations_are_those_of_the_trials(trials: list[Trial]) -> None:
    groups: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for trial in trials:
        if trial["teacher.information"] and trial["row"] not in OTHER_LOSSES:
            names = ("teacher.information", f"teacher.test.{METRIC}", f"student.test.{METRIC}")
            information, accuracy, student = (float(trial[name]) for name in names)
            group = groups.setdefault((trial["column"], trial["seed"]), [])
            group.append((information, accuracy, student))
    (lines,) = (lines for _, lines in _blocks("eq1"))
    found = {(students, measure): float(value) for students, measure, value, *_ in lines}
    columns = {column for (column, _), points in groups.items() if len(points) > 2}
    totals: dict[str, list[tuple[int, float]]] = {}
    for points in groups.values():
        if len(points) < 3:
            continue
        matrix = stats.spearmanr(points).statistic
        values = {"information": matrix[0, 2], "accuracy": matrix[1, 2]}
        rest = (1 - matrix[0, 1] ** 2) * (1 - matrix[1, 2] ** 2)
        if len(points) > 3 and rest > 1e-9:  # Else one rank says all of another.
            partial = (matrix[0, 2] - matrix[0, 1] * matrix[1, 2]) / rest**0.5
            values["information, at equal accuracy"] = partial
        for name, value in values.items():
            totals.setdefault(name, []).append((len(points), float(value)))
    title = "all" if len(columns) > 1 else next(students for students, _ in found)
    for name, values in totals.items():
        mean = sum(n * value for n, value in values) / sum(n for n, _ in values)
        assert found[title, name] == pytest.approx(mean, abs=0.0051), name


def test_the_cost_is_that_of_the_trials(trials: list[Trial]) -> None:
    (lines,) = (lines for _, lines in _blocks("cost"))
    assert sum(int(count) for _, count, _ in lines) == len(trials)
    hours = sum(float(trial["seconds"]) for trial in trials) / 3600
    assert sum(float(line[-1]) for line in lines) == pytest.approx(hours, abs=0.05 * len(lines))


def test_the_tool_would_write_the_page_as_it_is() -> None:
    rows = record.read(PAGE.parent / "evidence" / "trials.csv")
    assert make_evidence.page(record.add(rows, ())) == PAGE.read_text(encoding="utf-8")


def _record(trial: str, **changes: Any) -> dict[str, Any]:
    """Returns a trial of study.json without a teacher."""
    student = {"seed": 0, "validation": {METRIC: 0.5, "loss": 1.0}, "test": {METRIC: 0.25}}
    return {
        "trial": trial,
        **{"row": "alone", "column": "caltech101_lite0", "seed": 0, "student_steps": 1200},
        **{"fraction": 1.0, "settings": {}, "state": "done", "reason": "", "seconds": 2.0},
        "selected": {"settings": {"student.loss": None}, "students": [student], "teacher": None},
        **{"worker": "here", "folder": "/study/trials/0"},
        **changes,
    }


def test_a_study_adds_its_finished_trials() -> None:
    first = record.add((), [{"trials": [_record("5e1", seed=1), _record("b", state="running")]}])
    again = [_record("5e1", seed=1, seconds=3.0), _record("c")]

    rows = record.add(first, [{"trials": again}])

    assert [(row["trial"], row["number"], row["seconds"]) for row in rows] == [
        ("c", 0, 2.0),
        ("5e1", 1, 3.0),
    ]
    assert not {"worker", "folder"} & {name for row in rows for name in row}
    (cell,) = record.study(rows)["cells"]
    assert cell["column"] == "caltech101_lite0_1200"
    assert {each["seed"]: each["student"] for each in cell["replicates"]} == {0: 0.25, 1: 0.25}


def test_the_table_of_trials_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    rows = record.add((), [{"trials": [_record("5e1"), _record("b", settings={"rho": 0.05})]}])
    path = tmp_path / "trials.csv"
    path.write_text(trial_rows.comma_separated(rows), encoding="utf-8")

    found = record.read(path)

    assert found == [{name: v for name, v in row.items() if v is not None} for row in rows]
