"""Reports: the records of a run, or of a study, as a page for people.

Each is written in Markdown and as one self-contained HTML file. Names of classes, files and data
sets come from strangers. They stay plain text until the templates write them, and the templates
escape every value.
"""

import math
import pathlib
from typing import Any

from remem_jax import checks
from remem_jax.data import walk
from remem_jax.report import (
    analysis,
    card,
    drawing,
    pages,
    paper,
    plots,
    protocol,
    study,
    tables,
    teachers,
)
from remem_jax.storage import files, logs
from remem_jax.storage import results as stored

FORMAT = 1  # Of results.json.
ANALYSIS_FORMAT = analysis.FORMAT


def write(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and a model card of each student from what a run left.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the run left results.json and its metrics, and where the report goes.

    Raises:
        SettingError: If there are no results, or results of another format.
    """
    path = directory / "results.json"
    results = stored.read(path)
    if results is None:
        raise checks.SettingError(f"{path} is not there: the run has not come to its end.")
    checks.one_of(f"The format of {path}", results.get("format"), (FORMAT,))
    figures = [drawing.save(directory / analysis.FIGURES, one) for one in teachers.of_run(results)]
    content = _content(results, logs.read(directory), figures)
    files.write_text(directory / "report.html", pages.html("page.html.jinja", content))
    files.write_text(directory / "report.md", pages.markdown("report.md.jinja", content))
    card.write(directory, results)


def write_study(directory: pathlib.Path) -> None:
    """Writes study.md, study.html and table.csv from the study.json of a study.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the study left study.json, and where the report goes.

    Raises:
        SettingError: If there is no study.json, or one of another format.
    """
    study.write(directory)


def write_analysis(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and the figures from what an analysis has found.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the analysis left results.json and its arrays, and where the report goes.

    Raises:
        SettingError: If there are no results, or results of another format.
    """
    analysis.write(directory)


def _content(
    results: tables.Results, rows: list[dict[str, Any]], figures: list[drawing.Plot]
) -> dict[str, Any]:
    notes = [gain(results), standard_errors(results), paper.note(results)]
    optional = [tables.confused(results), tables.on_test(results), teachers.table_of_run(results)]
    return {
        "title": results["title"],
        "summary": summary(results),
        "warning": card.warning(results),
        "comparison": tables.comparison(results),
        "notes": [note for note in notes if note],
        "plots": [*figures, *plots.draw(results, rows)],
        "models": [
            tables.details(results),
            *(table for table in optional if table),
            tables.teachers(results),
            tables.students(results),
        ],
        "facts": [tables.settings(results), tables.origins(results), tables.times(results)],
        "skipped": results["data"]["skipped"],
        "remarks": remarks(results["data"]),
        "differs": [
            *results["config"].get("differs", []),
            *protocol.deviations(results["config"]),
        ],
    }


def remarks(data: dict[str, Any]) -> list[str]:
    """What was odd about the data, a sentence each; results of before have none."""
    told = walk.told(data.get("passed_over", {}), data.get("empty_classes", ()))
    return [f"{data['title']}: {one}." for one in (told, *data.get("warnings", ())) if one]


def summary(results: tables.Results) -> str:
    """What was measured, in words."""
    data, models = results["data"], results["models"]
    examples = data["examples"]
    # Images that stream from their files have sizes of their own.
    source = data["source_size"]
    stored = f"of {source[0]} x {source[1]} pixels" if source else "of any size"
    size = results["data"]["image_size"]
    return (
        f"The student, {models['student']} with {models['student_parameters']:,} parameters, "
        f"learned {data['title']}: {examples['train']:,} training, {examples['validation']:,} "
        f"validation and {examples['test']:,} test images {stored} in "
        f"{data['classes']:,} classes, seen by the models as {size} x {size}. "
        f"What counts is {tables.METRIC_TITLES[data['metric']]}, in percent. All settings were "
        "selected on the validation split; test was read once, for what was selected."
    )


def gain(results: tables.Results) -> str | None:
    """How far ReMem's student is above the others on test, in points."""
    metric = results["data"]["metric"]
    found = {row["method"]: row["student"]["test"][metric] for row in results["methods"]}
    others = {"finetune": "fine-tuning's", "scratch": "the one trained from scratch"}
    gains = [
        f"{_points(found['remem'] - found[method])} {name}"
        for method, name in others.items()
        if "remem" in found and method in found
    ]
    return f"On test, ReMem's student is {' and '.join(gains)}." if gains else None


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.2f}"
    if size == "0.00":
        return "level with"
    return f"{size} points {'above' if difference > 0 else 'below'}"


def standard_errors(results: tables.Results) -> str:
    """How far a test accuracy may be off by the luck of which images are in the test split."""
    data = results["data"]
    images = data["examples"]["test"]
    errors = ", ".join(
        f"{100 * math.sqrt(share * (1 - share) / images):.2f} ({tables.method_title(method)})"
        for method, share in (
            (row["method"], row["student"]["test"][data["metric"]]) for row in results["methods"]
        )
    )
    rough = (
        ""
        if data["metric"] == "top1"
        else " This is a rough figure: a mean over classes does not weigh all images alike."
    )
    return (
        f"Standard error of the students' test accuracies, sqrt(p (1 - p) / n) with n = "
        f"{images:,}, in points: {errors}.{rough} {_seeds(results)} A difference below about two "
        "standard errors may be chance."
    )


def _seeds(results: tables.Results) -> str:
    """What is known of the luck of the seeds, as sentences."""
    students = max(len(row.get("seeds", ())) for row in results["methods"])
    alone = f"All of this is one run with one seed ({results['seed']}): what another seed would"
    if students < 2:
        return f"{alone} change is not measured."
    return (
        f"Behind ± stands the sample standard deviation over {students} seeds of the students. "
        f"{alone} change of the teacher and of the splits is not measured."
    )
