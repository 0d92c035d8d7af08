"""The table of the paper's data sets, and which of them are prepared on this machine."""

import textwrap

from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.data.tfds import copies, prepared

_ROW = "{:11}  {:21}  {:16}  {:>7}  {:9}  {:4}  {:12}  {}".format
_METRICS = {registry.TOP1: "top-1", registry.MEAN_PER_CLASS: "per class"}


def lines(data_dir: str) -> tuple[list[str], list[str]]:
    """Returns the lines of the table, and the errors of data sets that are damaged.

    Args:
        data_dir: Folder of TFDS; empty for its default.

    Raises:
        SettingError: If the folder is not on this machine.
    """
    folder = copies.folder(data_dir)
    columns = ("name", "train", "test", "classes", "metric", "flip", "obtained", "prepared here")
    table, damages = [_ROW(*columns)], []
    for name, record in registry.RECORDS.items():
        train, test = record.examples
        table.append(
            _ROW(
                name,
                f"{record.train} {train}",
                f"{record.test} {test}",
                record.classes,
                _METRICS[record.metric],
                "yes" if record.flip else "no",
                record.obtained,
                _prepared(name, data_dir, damages),
            )
        )
    table += [
        "",
        f"Prepared here: in {folder}. What is not: tools/prepare_data.py NAME.",
        "Per class: mean of the classes' accuracies.",
    ]
    for name, record in registry.RECORDS.items():
        table += ["", f"{name}: {record.tfds}", f"  licence: {record.licence}", f"  {record.page}"]
        official = f"{record.validation} {record.validation_examples}"
        selects = official if record.validation else "held out of train"
        table += _wrapped(f"selects: {selects}, since {record.selection}")
        if record.note:
            table += _wrapped(f"assumed: {record.note}")
    return table, damages


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ")


def _prepared(name: str, data_dir: str, damages: list[str]) -> str:
    """Returns the cell of the last column: the format and the numbers of examples.

    The error of a damaged data set is added to `damages`.
    """
    try:
        state = prepared.state(name, data_dir)
    except SettingError as error:
        damages.append(str(error))
        return "damaged"
    if state is None:
        return "no"
    train, test = state.counts
    is_official = registry.RECORDS[name].is_official(state.counts, state.validation)
    suffix = "" if is_official else ", not official"
    return f"{state.format} {train}+{test}{suffix}"
