"""The part of a study's report on who runs what, what is left, and when it ends."""

import datetime
from typing import NamedTuple

from remem_jax.report import tables
from remem_jax.report.study import results_table, trials


class Progress(NamedTuple):
    """The progress of a study.

    Attributes:
        summary: What is left, and when it is expected to end.
        running: The trials that run; None if none does.
    """

    summary: str
    running: tables.Table | None


def of(study: results_table.Study) -> Progress | None:
    """Describes the progress of a study; None if it has ended, or an older version wrote it."""
    progress = study.get("progress")
    if not progress:
        return None
    return Progress(_summary(study), _running(study))


def _summary(study: results_table.Study) -> str:
    progress = study["progress"]
    running, workers = len(progress["running"]), progress["workers"]
    text = (
        f"At {_time(progress['at'])}, {progress['left']:,} of {study['cost']['trials']:,} trials "
        f"are left, of which {running} {'runs' if running == 1 else 'run'} now."
    )
    if not workers:
        return f"{text} No worker runs: the same command goes on."
    of_workers = f"{workers} {'worker' if workers == 1 else 'workers'}"
    if progress["until"] is None:
        return f"{text} With {of_workers}; the end is known when the first trial is done."
    return (
        f"{text} With {of_workers}, and trials that take as long as those that are done, the study "
        f"ends at about {_time(progress['until'])}."
    )


def _running(study: results_table.Study) -> tables.Table | None:
    running = study["progress"]["running"]
    if not running:
        return None
    by_key, titled = {trial["trial"]: trial for trial in study["trials"]}, trials.titles(study)
    lines = tuple(
        (
            trials.name(by_key[worker["trial"]]),
            *titled(by_key[worker["trial"]]["row"], by_key[worker["trial"]]["column"]),
            str(by_key[worker["trial"]]["seed"]),
            str(worker["host"]) + (" (has died)" if worker["died"] else ""),
            str(worker["pid"]),
            tables.NOTHING if worker["since"] is None else _time(worker["since"]),
        )
        for worker in running
    )
    heads = ("Trial", "Row", "Column", "Seed", "Worker", "Process", "Since")
    return tables.Table("Trials that run now", heads, lines, numeric=False)


def _time(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
