"""Figures of a study's results: its rows, and its students against alpha, beta and rho."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report.figures import drawing, rows, swept
from remem_jax.report.study import differences, results_table
from remem_jax.statistics import seeds

# Settings that ReMem varies, in the order of the figures.
_SWEPT = {
    "rho": "rho, the radius of SAM",
    "mlp_weight": "alpha, the weight of the MLP blocks",
    "attention_weight": "beta, the weight of the attention blocks",
}


def of_rows(study: results_table.Study) -> Iterator[drawing.Drawing]:
    """Draws the rows of each column of the main table that has several."""
    by_place = results_table.cells(study, results_table.main(study))
    over = {row["name"]: below["name"] for below, row in differences.comparisons(study)}
    titles = {row["name"]: row["title"] for row in study["rows"]}
    for number, column in enumerate(study["columns"]):
        shares = {
            row["name"]: {seed: value / 100 for seed, value in percents.items()}
            for row in study["rows"]
            if (
                percents := results_table.percents(
                    by_place.get((row["name"], column["name"])), "student"
                )
            )
        }
        baselines = {over[name] for name in shares if name in over}
        figure = rows.rows(
            [
                _row(
                    results_table.row_title(row),
                    shares[row["name"]],
                    shares.get(over.get(row["name"], "")),
                )
                for row in study["rows"]
                if row["name"] in shares
            ],
            baseline=titles[baselines.pop()] if len(baselines) == 1 else "",
            title=f"Students by row: {column['title']}",
            name="rows" + (f"_{number}" if number else ""),
        )
        if figure is not None:
            yield figure


def _row(
    title: str, shares: Mapping[int, float], below: Mapping[int, float] | None
) -> dict[str, Any]:
    common = [seed for seed in shares if seed in (below or {})]
    gains = [shares[seed] - (below or {})[seed] for seed in common]
    return {
        "row": title,
        "student": list(shares.values()),
        "accuracy": _mean(list(shares.values())),
        "gains": gains,
        "gain": _mean(gains),
    }


def _mean(values: Sequence[float]) -> dict[str, Any] | None:
    return seeds.mean(values)._asdict() if values else None


def against_settings(study: results_table.Study) -> Iterator[drawing.Drawing]:
    """Draws the best students, and their teachers, against each setting that the grid varies.

    Only seeds that are searched count: the others have only the best value.
    """
    searched = study["search"].get("seeds", study["seeds"])
    for axis, label in _SWEPT.items():
        for number, column in enumerate(study["columns"]):
            trials = [
                trial
                for trial in study["trials"]
                if trial["column"] == column["name"]
                and trial["fraction"] == 1
                and trial["seed"] in searched
                and axis in trial["settings"]
                and drawing.is_finite(trial["validation"])
            ]
            if len({trial["settings"][axis] for trial in trials}) < 2:
                continue
            figure = swept.against(
                _points(study, trials, axis),
                label=label,
                title=f"Students against {label.split(',')[0]}: {column['title']}",
                name=axis + (f"_{number}" if number else ""),
            )
            if figure is not None:
                yield figure


def _points(
    study: results_table.Study, trials: Sequence[Mapping[str, Any]], axis: str
) -> list[dict[str, Any]]:
    """Returns the mean over seeds for each series and value of the axis.

    A series is a row with a value of each other axis of `_SWEPT` that varies in it. Over the
    remaining axes, the trial that is best on validation counts, for each seed.
    """
    titles = {row["name"]: results_table.row_title(row) for row in study["rows"]}
    best: dict[tuple[str, Any], dict[int, Mapping[str, Any]]] = {}
    for trial in trials:
        others = [
            f"{_SWEPT[name].split(',')[0]} {trial['settings'][name]:g}"
            for name in _SWEPT
            if name != axis
            and len({t["settings"].get(name) for t in trials if t["row"] == trial["row"]}) > 1
        ]
        series = ", ".join([str(titles.get(trial["row"], trial["row"])), *others])
        of_seed = best.setdefault((series, trial["settings"][axis]), {})
        known = of_seed.get(trial["seed"])
        if known is None or trial["validation"] > known["validation"]:
            of_seed[trial["seed"]] = trial
    return [
        {
            "series": series,
            "value": value,
            "seeds": len(by_seed),
            "student": _mean([trial["validation"] for trial in by_seed.values()]),
            "teacher": _mean(
                [share for t in by_seed.values() if (share := _teacher(study, t)) is not None]
            ),
        }
        for (series, value), by_seed in best.items()
    ]


def _teacher(study: results_table.Study, trial: Mapping[str, Any]) -> float | None:
    """Returns the accuracy on validation of a trial's selected teacher; None if not on record."""
    teacher = (trial.get("selected") or {}).get("teacher") or {}
    data = {column["name"]: column["data"] for column in study["columns"]}[trial["column"]]
    return teacher.get("validation", {}).get(data["metric"]) if data else None
