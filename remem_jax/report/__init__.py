"""Reports: the records of a run, or of a study, as a page for people.

Each is written in Markdown and as one self-contained HTML file. Names of classes, files and data
sets come from strangers. They stay plain text until the templates write them, and the templates
escape every value.
"""

import pathlib

# The pages import matplotlib, which takes long; a run needs it only at its end.
FORMAT = 1  # Format of a run's results.json.
ANALYSIS_FORMAT = 1  # Format of an analysis's results.json.


def write(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and a model card of each student from what a run left.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the run left results.json and its metrics, and where the report goes.

    Raises:
        SettingError: If there are no results, or results of another format.
    """
    from remem_jax.report.run import page

    page.write(directory)


def write_study(directory: pathlib.Path) -> None:
    """Writes study.md, study.html and table.csv from the study.json of a study.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the study left study.json, and where the report goes.

    Raises:
        SettingError: If there is no study.json, or one of another format.
    """
    from remem_jax.report.study import page

    page.write(directory)


def write_analysis(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and the figures from what an analysis has found.

    The same input gives the same bytes. Each file is written whole or not at all.

    Args:
        directory: Where the analysis left results.json and its arrays, and where the report goes.

    Raises:
        SettingError: If there are no results, or results of another format.
    """
    from remem_jax.report.analysis import page

    page.write(directory)
