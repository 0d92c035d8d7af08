"""Writes the report of a study: of many runs that reproduce a table or a figure of the paper."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax import checks
from remem_jax.report import STUDY_FORMAT, paper, rendering, tables
from remem_jax.report.figures import drawing
from remem_jax.report.study import (
    claims,
    gains,
    information,
    overview,
    predictors,
    progress,
    results_table,
    search,
    trial_rows,
    trials,
)
from remem_jax.storage import files, results

_REFITTED = (
    "The models that were selected on validation were trained anew, with the same settings, on "
    "train and validation together, so that no image is left to select on."
)
_OPTIMISTIC = (
    "These settings were selected on the test split itself: each number is the maximum over all "
    "settings tried on the same images, and is biased upwards. The paper does not say on which "
    "split it selects; it may have selected on test. Rely on the first table."
)
_FIGURES = (
    overview.of_rows,
    overview.against_settings,
    predictors.figures,
    information.figures,
)
_OTHERS = {  # Headings and notes of the tables besides the main one.
    results_table.REFIT: {
        "heading": "Trained anew on train and validation",
        "warning": "",
        "note": _REFITTED,
    },
    results_table.TEST: {
        "heading": "Selected on the test split: optimistic",
        "warning": "Warning.",
        "note": _OPTIMISTIC,
    },
}


def write(directory: pathlib.Path) -> None:
    """Writes study.md, study.html, table.csv and trials.csv; see `report.write_study`."""
    path = directory / "study.json"
    study = results.read(path)
    if study is None:
        raise checks.SettingError(f"{path} does not exist: the study has not started.")
    checks.one_of(f"The format of {path}", study.get("format"), (STUDY_FORMAT,))
    figures = [
        drawing.save(directory / drawing.FIGURES, figure)
        for drawn in _FIGURES
        for figure in drawn(study)
    ]
    content = {**_content(study, trials.links(study, directory)), "plots": figures}
    files.write_text(directory / "study.html", rendering.html("study/page.html.jinja", content))
    files.write_text(directory / "study.md", rendering.markdown("study/page.md.jinja", content))
    files.write_text(directory / "table.csv", results_table.comma_separated(study))
    files.write_text(directory / "trials.csv", trial_rows.comma_separated(trial_rows.rows(study)))


def _content(study: results_table.Study, links: Mapping[str, str]) -> dict[str, Any]:
    chosen = [trials.selected(study, choice) for choice in ("validation", "test")]
    main = results_table.main(study)
    return {
        "title": title(study),
        "mini": study["mini"],
        "summary": summary(study),
        "warning": warning(study),
        "progress": progress.of(study),
        "claims": claims.sentences(study),
        "claims_note": claims.note(study),
        "heading": _heading(study),
        "sections": _sections(study, main),
        "notes": [*notes(study)],
        "gains": gains.over_baseline(study, main),
        "gains_note": gains.NOTE,
        "others": [
            {
                **texts,
                "sections": _sections(study, choice),
                "gains": gains.over_baseline(study, choice),
            }
            for choice, texts in _OTHERS.items()
            if choice != main and results_table.cells(study, choice)
        ],
        "missing": trials.missing(study),
        "data": trials.data(study),
        "search": study["search"]["text"],
        "searched": search.grids(study),
        "tables": [
            *search.halving(study),
            trials.cost(study),
            *(
                table
                for table in (*chosen, predictors.table(study), information.table(study))
                if table is not None
            ),
            trials.tried(study, links),
        ],
        "differs": study["differs"],
        "versions": trials.versions(study),
    }


def _heading(study: results_table.Study) -> str:
    table = f", in the layout of the paper's Table {study['table']}" if study["table"] else ""
    optimistic = results_table.main(study) == results_table.TEST
    return f"Results{table}{', selected on the test split: optimistic' if optimistic else ''}"


def _sections(study: results_table.Study, choice: str) -> list[dict[str, Any]]:
    """Returns each grid, and the same grid as a table with a single header row."""
    return [
        {"grid": grid, "flat": results_table.flat(", ".join(grid.columns), grid)}
        for grid in results_table.grids(study, choice)
    ]


def title(study: results_table.Study) -> str:
    """Returns the study's title, which names a mini version as one."""
    if study["mini"] and "mini" not in study["title"].lower():
        return f"{study['title']} (mini version)"
    return study["title"]


def summary(study: results_table.Study) -> str:
    """Describes how complete the table is, and what its numbers are."""
    seeds = len(study["seeds"])
    cells = results_table.cells(study, results_table.main(study))
    places = [(row["name"], column["name"]) for row in study["rows"] for column in study["columns"]]
    counts = [len(cells[place]["replicates"]) if place in cells else 0 for place in places]
    total, complete = len(counts), sum(count >= seeds for count in counts)
    partial = f", {sum(0 < count < seeds for count in counts)} partial" if seeds > 1 else ""
    return (
        f"Cells: {complete} of {total} complete{partial}, {counts.count(0)} missing. Numbers are "
        f"accuracies on test, in percent: {_metrics(study)}. {_readings(study)}"
    )


def _readings(study: results_table.Study) -> str:
    """Describes what selected the settings, and the use of the test split."""
    if results_table.main(study) == results_table.TEST:
        return (
            "All settings were selected on the test split itself (config.base.data.validation is "
            "0): each number is the maximum over all settings tried on the same images, and is "
            "biased upwards."
        )
    selected = (
        "All settings were selected on the validation split, unless a heading says otherwise."
    )
    on_test = study.get("choose_on_test", bool(results_table.cells(study, "test")))
    if on_test:
        return (
            f"{selected} Every student was evaluated on test too (config.choose_on_test), which "
            "affects only the results under that heading."
        )
    again = ", and once for those trained anew" if study.get("refit") else ""
    return (
        f"{selected} Each trial read the test split once, for the models that it had selected on "
        f"validation{again}; each cell shows the trial that is best on validation."
    )


def _metrics(study: results_table.Study) -> str:
    metrics: dict[str, list[str]] = {}
    for column in study["columns"]:
        if column["data"] is not None:
            metrics.setdefault(column["data"]["metric"], []).append(column["title"])
    names = {metric: tables.METRIC_TITLES.get(metric, metric) for metric in metrics}
    if len(names) == 1:
        return next(iter(names.values()))
    parts = [f"{names[metric]} for {', '.join(titles)}" for metric, titles in metrics.items()]
    return "; ".join(parts) or "none yet"


def warning(study: results_table.Study) -> str:
    """Returns a warning if some data are not the official ones; else empty."""
    columns = _columns(study, official=False)
    if study["mini"] or not columns:  # A mini version has its own warning.
        return ""
    return (
        f"For {', '.join(columns)} the numbers of images are not those of the official data set. "
        "Do not compare these results with results on the official benchmark."
    )


def _columns(study: results_table.Study, *, official: bool | None) -> list[str]:
    return [
        column["title"]
        for column in study["columns"]
        if column["data"] is not None and column["data"]["official"] is official
    ]


def notes(study: results_table.Study) -> Iterator[str]:
    """Yields the notes below the main table."""
    yield from _data(study)
    yield _seeds(study)
    if any(len(replicate["students_of_seeds"]) > 1 for replicate in _replicates(study)):
        yield (
            "A student's number is itself the mean over students that differ only by the student's "
            "seed; the table of selected settings lists each."
        )
    yield from _published(study)
    if paper.remark(study["table"]):
        yield paper.remark(study["table"])


def _data(study: results_table.Study) -> Iterator[str]:
    """Names the data of columns that are not official or that share their data."""
    columns: dict[str, list[str]] = {}
    others = set()
    for column in study["columns"]:
        if column["data"] is not None:
            title = column["data"]["title"]
            columns.setdefault(title, []).append(column["title"])
            if column["data"]["official"] is not True or len(columns[title]) > 1:
                others.add(title)
    parts = [
        f"“{name}” for {', '.join(titles)}"
        for name, titles in columns.items()
        if name in others and titles != [name]
    ]
    if parts:
        yield f"The data behind the columns: {'; '.join(parts)}."


def _replicates(study: results_table.Study) -> list[Any]:
    return [replicate for cell in study["cells"] for replicate in cell["replicates"]]


def _seeds(study: results_table.Study) -> str:
    seeds: Sequence[int] = study["seeds"]
    if len(seeds) == 1:
        return (
            f"All results come from one seed ({seeds[0]}): the variation between seeds was not "
            "measured."
        )
    return (
        f"Numbers are means over the {len(seeds)} seeds {', '.join(map(str, seeds))}; sd is "
        "the sample standard deviation over them, not an interval. Cells with fewer seeds say so."
    )


def _published(study: results_table.Study) -> Iterator[str]:
    """Describes how far the paper's numbers are comparable."""
    number, columns = study["table"], []
    for column in study["columns"]:
        cells = (paper.cell(number, row["name"], column["name"]) for row in study["rows"])
        if any(cells):
            columns.append(column)
    full = [column["title"] for column in columns if results_table.is_full_size(study, column)]
    if len(full) < len(columns) and paper.is_comparable(number):
        yield (
            "Differences are ours minus the paper's, in points. The paper's numbers have one "
            "decimal, and its text does not give the number of seeds."
        )
    if study["mini"] and columns:
        yield (
            "Rows labelled “paper, full size” are the paper's numbers from full-size experiments. "
            "No differences are given, because this is a mini version."
        )
    elif full:
        yield (
            "Rows labelled “paper, full size” are the paper's numbers on the official data. No "
            f"differences are given, because the data for {', '.join(full)} are different here."
        )
