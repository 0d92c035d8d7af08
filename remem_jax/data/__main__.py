"""Prints the data sets of the paper, and which of them are prepared on this machine.

python -m remem_jax.data [--dir DIR]
"""

from remem_jax.storage import streams

if __name__ == "__main__":  # Before imports that take seconds.
    streams.begin("remem_jax")

import argparse
import sys
import textwrap

from absl import logging

from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.data.tfds import copies, prepared

_ROW = "{:11}  {:21}  {:16}  {:>7}  {:9}  {:4}  {:12}  {}".format
_METRICS = {registry.TOP1: "top-1", registry.MEAN_PER_CLASS: "per class"}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.data", description="Lists the data sets of the paper."
    )
    parser.add_argument("--dir", default="", help="folder of TFDS instead of its default")
    data_dir = parser.parse_args().dir
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each data set that is not prepared.
    damages: list[str] = []
    try:
        lines = _lines(data_dir, damages)
    except SettingError as error:
        sys.stderr.write(f"remem_jax: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    sys.stderr.writelines(f"remem_jax: {damage}\n" for damage in damages)
    return 0


def _lines(data_dir: str, damages: list[str]) -> list[str]:
    """Returns the lines to print; adds the errors of damaged data sets to `damages`."""
    folder = copies.folder(data_dir)
    columns = ("name", "train", "test", "classes", "metric", "flip", "obtained", "prepared here")
    lines = [_ROW(*columns)]
    for name, record in registry.RECORDS.items():
        train, test = record.examples
        lines.append(
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
    lines += [
        "",
        f"Prepared here: in {folder}. What is not: tools/prepare_data.py NAME.",
        "The validation split is held out of train. Per class: mean of the classes' accuracies.",
    ]
    for name, record in registry.RECORDS.items():
        lines += ["", f"{name}: {record.tfds}", f"  licence: {record.licence}", f"  {record.page}"]
        if record.note:
            lines += textwrap.wrap(
                f"assumed: {record.note}", 98, initial_indent="  ", subsequent_indent="    "
            )
    return lines


def _prepared(name: str, data_dir: str, damages: list[str]) -> str:
    """Returns the cell of the last column: the format and the numbers of examples."""
    try:
        state = prepared.state(name, data_dir)
    except SettingError as error:
        damages.append(str(error))
        return "damaged"
    if state is None:
        return "no"
    train, test = state.counts
    suffix = "" if registry.RECORDS[name].is_official(state.counts) else ", not official"
    return f"{state.format} {train}+{test}{suffix}"


if __name__ == "__main__":
    sys.exit(streams.run("remem_jax", main))
