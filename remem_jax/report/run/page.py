"""Writes the report of a run: its results, its settings, and the differences from the paper."""

import pathlib
from typing import Any

from remem_jax import checks
from remem_jax.data.custom import walk
from remem_jax.report import FORMAT, paper, protocol, rendering, tables
from remem_jax.report.card import model_card
from remem_jax.report.figures import drawing
from remem_jax.report.run import (
    budget,
    calibration,
    comparisons,
    data_summary,
    distillation,
    errors,
    information,
    plots,
    recommendation,
    refit,
    repeated,
    search,
)
from remem_jax.report.run import tables as run_tables
from remem_jax.storage import files, logs
from remem_jax.storage import results as stored


def write(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and the model cards; see `report.write`."""
    path = directory / "results.json"
    results = stored.read(path)
    if results is None:
        raise checks.SettingError(f"{path} does not exist: the run has not finished.")
    checks.one_of(f"The format of {path}", results.get("format"), (FORMAT,))
    figures = [
        drawing.save(directory / drawing.FIGURES, figure) for figure in information.figures(results)
    ]
    found = errors.read(directory, results)
    content = {
        **_content(results, logs.read(directory), figures),
        "advice": recommendation.recommend(results, directory),
        "errors": errors.of_run(directory, results, found),
        "confusion": _confusion(directory, results, found),
    }
    files.write_text(directory / "report.html", rendering.html("run/page.html.jinja", content))
    files.write_text(directory / "report.md", rendering.markdown("run/page.md.jinja", content))
    model_card.write(directory, results)


def _confusion(
    directory: pathlib.Path, results: tables.Results, found: errors.Predictions | None
) -> drawing.Plot | None:
    """Writes the figure of the confusion matrix; None if the predictions were not recorded."""
    figure = found and errors.figure(found, results["data"]["class_names"])
    return drawing.save(directory / drawing.FIGURES, figure) if figure else None


def _content(
    results: tables.Results, rows: list[dict[str, Any]], figures: list[drawing.Plot]
) -> dict[str, Any]:
    notes = [
        comparisons.gain(results),
        comparisons.standard_errors(results),
        paper.note(results),
    ]
    optional = [
        refit.table(results),
        budget.stages(results),
        comparisons.table(results),
        run_tables.confused(results),
        run_tables.on_test(results),
        information.table(results),
        calibration.of_teachers(results),
        calibration.flatness(results),
        search.grids(results),
        run_tables.teachers(results),
        run_tables.students(results),
    ]
    return {
        "title": results["title"],
        "gain": distillation.gain(results),
        "summary": summary(results),
        "warning": model_card.warning(results),
        "comparison": run_tables.comparison(results),
        "notes": [note for note in notes if note],
        "plots": [*figures, *plots.draw(results, rows)],
        "models": [_details(results), *(table for table in optional if table)],
        "facts": [tables.settings(results), run_tables.origins(results), run_tables.times(results)],
        "skipped": results["data"]["skipped"],
        "diverged": _diverged(results),
        "remarks": [*repeated.remarks(results), *remarks(results["data"])],
        "differs": _differs(results),
    }


def remarks(data: dict[str, Any]) -> list[str]:
    """Returns a sentence on each peculiarity of the data; empty for results of older versions."""
    passed_over = walk.describe_skipped(data.get("passed_over", {}), data.get("empty_classes", ()))
    skipped = walk.describe_skipped(data.get("unlabelled", {}).get("passed_over", {}), ())
    return [
        f"{data['title']}: {remark}."
        for remark in (
            passed_over,
            skipped and f"of the unlabelled images, {skipped}",
            *data.get("warnings", ()),
        )
        if remark
    ]


def _diverged(results: tables.Results) -> list[str]:
    """Returns one sentence per result that is missing because training diverged."""
    failures = [(row["method"], row.get("teacher_lost")) for row in results["methods"]]
    return [
        *(
            f"{tables.method_title(method)} has no teacher checkpoints at steps "
            f"{', '.join(map(str, missing['steps']))}: {missing['reason']}"
            for method, missing in failures
            if missing
        ),
        *(
            f"{tables.method_title(failure['method'])} has no result. {failure['reason']}"
            for failure in results.get("failed", ())
        ),
        *refit.failures(results),
    ]


def _details(results: tables.Results) -> tables.Table:
    """Adds a note on the classes that the metrics cover to the table of further metrics."""
    table, covered = run_tables.details(results), data_summary.coverage(results, "test")
    return table._replace(note=f"{table.note} {covered}") if covered else table


def summary(results: tables.Results) -> str:
    """Summarises the student, the data and the evaluation in sentences."""
    data, models = results["data"], results["models"]
    unlabelled, held = data_summary.unlabelled(results), data_summary.held_out(results)
    return (
        f"The student, {models['student']} with {models['student_parameters']:,} parameters, "
        f"was trained on {data['title']}: {data_summary.images(results)}. "
        f"{unlabelled}{unlabelled and ' '}"
        f"{held}{held and ' '}{data_summary.counts(results)} {data_summary.reading(results)}"
    )


def _differs(results: tables.Results) -> list[str]:
    """Returns one sentence per difference from the paper, without duplicates."""
    sentences = [
        *results["config"].get("differs", []),
        *protocol.of_one_run(results["config"]),
        *protocol.deviations(results["config"]),
    ]
    return list(dict.fromkeys(sentences))
