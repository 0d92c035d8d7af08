"""Reports: the records of a run, or of a study, as a page for people.

Each is written in Markdown and as one self-contained HTML file. Names of classes, files and data
sets come from strangers. They stay plain text until the templates write them, and the templates
escape every value.
"""

import pathlib
from typing import Any

from remem_jax import checks
from remem_jax.data import walk
from remem_jax.report import (
    analysis,
    card,
    comparisons,
    drawing,
    measured,
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
    notes = [
        comparisons.gain(results),
        comparisons.standard_errors(results),
        paper.note(results),
    ]
    optional = [
        comparisons.table(results),
        tables.confused(results),
        tables.on_test(results),
        teachers.table_of_run(results),
    ]
    return {
        "title": results["title"],
        "summary": summary(results),
        "warning": card.warning(results),
        "comparison": tables.comparison(results),
        "notes": [note for note in notes if note],
        "plots": [*figures, *plots.draw(results, rows)],
        "models": [
            _details(results),
            *(table for table in optional if table),
            measured.searched(results),
            tables.teachers(results),
            tables.students(results),
        ],
        "facts": [tables.settings(results), tables.origins(results), tables.times(results)],
        "skipped": results["data"]["skipped"],
        "diverged": _diverged(results),
        "remarks": remarks(results["data"]),
        "differs": _differs(results),
    }


def remarks(data: dict[str, Any]) -> list[str]:
    """What was odd about the data, a sentence each; results of before have none."""
    told = walk.told(data.get("passed_over", {}), data.get("empty_classes", ()))
    return [f"{data['title']}: {one}." for one in (told, *data.get("warnings", ())) if one]


def _diverged(results: tables.Results) -> list[str]:
    """What is not there because training diverged, a sentence each."""
    lost = [(row["method"], row.get("teacher_lost")) for row in results["methods"]]
    return [
        *(
            f"{tables.method_title(method)} has no teachers of steps "
            f"{', '.join(map(str, own['steps']))}: {own['reason']}"
            for method, own in lost
            if own
        ),
        *(
            f"{tables.method_title(one['method'])} has no result. {one['reason']}"
            for one in results.get("failed", ())
        ),
    ]


def _details(results: tables.Results) -> tables.Table:
    """More metrics of what was selected, and which classes they cover."""
    table, covered = tables.details(results), measured.coverage(results, "test")
    return table._replace(note=f"{table.note} {covered}") if covered else table


def summary(results: tables.Results) -> str:
    """What was measured, in words."""
    data, models = results["data"], results["models"]
    return (
        f"The student, {models['student']} with {models['student_parameters']:,} parameters, "
        f"learned {data['title']}: {measured.images(results)}. {measured.counts(results)} "
        f"{measured.reading(results)}"
    )


def _differs(results: tables.Results) -> list[str]:
    """How the run is not the paper's, each sentence once."""
    sentences = [
        *results["config"].get("differs", []),
        *protocol.of_one_run(results["config"]),
        *protocol.deviations(results["config"]),
    ]
    return list(dict.fromkeys(sentences))
