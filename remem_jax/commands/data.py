"""Describes images before a run, or lists the data sets of the paper.

remem data my_images
remem data my_images --out=look    # a page with thumbnails, too
remem data --run=runs/mine         # the images of a run, and labels that its teacher contradicts
remem data                         # the data sets of the paper
"""

import argparse
import functools
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from remem_jax import display
from remem_jax.checks import SettingError, require
from remem_jax.export import command
from remem_jax.storage import streams

if TYPE_CHECKING:
    from remem_jax.data.inspection.labels import Check
    from remem_jax.data.sources import Source


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return command.run(lambda: _run(arguments), stopped="stopped, nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remem data",
        description="Describes images before a run: classes, sizes, colours, unreadable files and "
        "duplicates. Without SOURCE, lists the data sets of the paper.",
    )
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        default="",
        metavar="SOURCE",
        help="folder of class folders or of splits, list (.csv, .jsonl), arrays (.npz), or a name "
        "of a data set (of the paper's, or tfds:NAME)",
    )
    add("--out", type=command.path, help="folder for a page with thumbnails and lists (CSV)")
    add("--run", type=command.path, help="finished run, whose teacher checks the labels")
    add("--dir", default="", help="folder of TFDS instead of its default")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # TFDS warns of each data set that is not prepared.
    if not arguments.source and arguments.run is None:
        _list_sets(arguments.dir)
        return
    source, refused = _open(arguments)
    # Imported after the checks, because they take seconds.
    from remem_jax.data.inspection import summary
    from remem_jax.report.inspection import page, text

    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    with display.opened():
        check = _check(arguments)
        logging.set_verbosity(logging.INFO)  # For the progress.
        display.use_terminal()
        inspection = summary.inspect(source, threads=len(os.sched_getaffinity(0)))
    lines = [*text.lines(inspection, refused)]
    lines += text.suspicious(check, source.classes) if check else ()
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.out is not None:
        page.write(arguments.out, inspection, refused, check)
        sys.stdout.write(f"\nThe page: {arguments.out / page.PAGE}\n")
    sys.stdout.flush()


def _list_sets(folder: str) -> None:
    """Prints the data sets of the paper."""
    from remem_jax.data.tfds import listing

    lines, damages = listing.lines(folder)
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    for damage in damages:
        streams.print_error(f"remem_jax: {damage}")


def _open(arguments: argparse.Namespace) -> tuple["Source", str]:
    """Opens a source as a run does; returns it, and why a run refuses it, or ""."""
    if arguments.source and arguments.out is not None:
        _require_outside(arguments.source, arguments.out)
    if arguments.run is not None:
        command.require_run(arguments.run)
        from remem_jax.export import images

        return images.open_source(arguments.run, path=arguments.source), ""
    from remem_jax import data
    from remem_jax.data.custom import class_names

    source = arguments.source
    opened = functools.partial(data.open_source, _kind(source), path=source, data_dir=arguments.dir)
    try:
        return opened(), ""
    except class_names.TooFewImagesError as error:
        return opened(enough=False), str(error)


def _check(arguments: argparse.Namespace) -> "Check | None":
    """Compares the labels with the predictions of a run's teacher, if a run is given."""
    if arguments.run is None:
        return None
    from remem_jax.export import labels

    return labels.check(arguments.run, path=arguments.source)


def _kind(source: str) -> str:
    """Returns the name of a source for `data.open_source`."""
    from remem_jax import data
    from remem_jax.data.custom import lists
    from remem_jax.data.tfds import named

    place = pathlib.Path(os.path.expanduser(source))  # noqa: PTH111
    if place.is_dir():
        return "folder"
    if place.suffix.lower() in lists.LISTS:
        return "list"
    if place.suffix.lower() == ".npz":
        return "arrays"
    if named.is_name(source) or (source in data.NAMES and source not in data.CUSTOM):
        return source
    raise SettingError(
        f"There is no folder, list or file of arrays {source!r}, and no data set of that name: "
        "give the path of your images."
    )


def _require_outside(source: str, out: pathlib.Path) -> None:
    """Checks that the page does not go into the folder of images, where it would be a class."""
    root = pathlib.Path(os.path.realpath(os.path.expanduser(source)))  # noqa: PTH111
    place = pathlib.Path(os.path.realpath(out))
    require(
        not root.is_dir() or not place.is_relative_to(root),
        f"--out {out} lies in the folder of images {source}, where it would become a class: give "
        "a folder outside of it.",
    )
