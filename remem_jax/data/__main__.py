"""Prints the data sets of the paper, and which of them are prepared on this machine.

python -m remem_jax.data [--dir DIR]
"""

import argparse
import sys
import textwrap

from absl import logging

from remem_jax.checks import SettingError
from remem_jax.data import copies, prepared, registry

_ROW = "{:11}  {:21}  {:16}  {:>7}  {:9}  {:4}  {:12}  {}".format
_METRICS = {registry.TOP1: "top-1", registry.MEAN_PER_CLASS: "per class"}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.data", description="Lists the data sets of the paper."
    )
    parser.add_argument("--dir", default="", help="folder of TFDS instead of its default")
    data_dir = parser.parse_args().dir
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each that is not prepared.
    sys.stdout.write("\n".join(_lines(data_dir)) + "\n")
    return 0


def _lines(data_dir: str) -> list[str]:
    head = _ROW("name", "train", "test", "classes", "metric", "flip", "obtained", "prepared here")
    lines = [head]
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
                _here(name, data_dir),
            )
        )
    place = copies.folder(data_dir)
    lines += [
        "",
        f"Prepared here: in {place}. What is not: tools/prepare_data.py NAME.",
        "The validation split is held out of train. Per class: mean of the classes' accuracies.",
    ]
    for name, record in registry.RECORDS.items():
        lines += ["", f"{name}: {record.tfds}", f"  licence: {record.licence}", f"  {record.page}"]
        if record.note:
            lines += textwrap.wrap(
                f"assumed: {record.note}", 98, initial_indent="  ", subsequent_indent="    "
            )
    return lines


def _here(name: str, data_dir: str) -> str:
    try:
        state = prepared.state(name, data_dir)
    except SettingError:
        return "damaged"
    if state is None:
        return "no"
    train, test = state.counts
    other = "" if registry.RECORDS[name].is_official(state.counts) else ", not official"
    return f"{state.format} {train}+{test}{other}"


if __name__ == "__main__":
    sys.exit(main())
