"""Writes reports of runs, studies and analyses for people to read.

Each report is written as Markdown and as one self-contained HTML file. Names of classes, files and
data sets are untrusted input: they stay plain text until the templates write them, and the
templates escape every value.
"""

import pathlib

FORMAT = 1  # Format of a run's results.json.
STUDY_FORMAT = 1  # Format of a study's study.json.
ANALYSIS_FORMAT = 1  # Format of an analysis's results.json.

# The functions below import the pages when they are called, because the pages import matplotlib,
# which takes long and is needed only at the end of a run.


def write(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and one model card per student from the results of a run.

    The same input gives the same bytes. Each file is written atomically.

    Args:
        directory: Folder of the run, with results.json and the metrics; the report goes there, too.

    Raises:
        SettingError: If results.json is missing or has another format.
    """
    from remem_jax.report.run import page

    page.write(directory)


def write_study(directory: pathlib.Path) -> None:
    """Writes study.md, study.html, table.csv and trials.csv from the study.json of a study.

    The same input gives the same bytes. Each file is written atomically.

    Args:
        directory: Folder of the study, with study.json; the report goes there, too.

    Raises:
        SettingError: If study.json is missing or has another format.
    """
    from remem_jax.report.study import page

    page.write(directory)


def write_analysis(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and the figures from the results of an analysis.

    The same input gives the same bytes. Each file is written atomically.

    Args:
        directory: Folder of the analysis, with results.json and its arrays; the report goes there,
            too.

    Raises:
        SettingError: If results.json is missing or has another format.
    """
    from remem_jax.report.analysis import page

    page.write(directory)
