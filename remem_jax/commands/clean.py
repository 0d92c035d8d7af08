"""Removes what a run has left and does not need, and what the cache holds.

remem clean runs/mine --dry-run
remem clean --cache
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from remem_jax.checks import SettingError, require
from remem_jax.export import command
from remem_jax.storage import cleaning, files
from remem_jax.storage.cleaning import Item

_WORKS = (
    "The report, remem predict and remem export work as before, and the command of the run trains "
    "nothing again."
)
_LONGER = "remem distil can train longer in this folder."
_NOT_LONGER = "To train longer, remem distil needs another --out: its teachers are gone."
_UNFINISHED = "The run is not finished: it goes on with the command that began it."
_NEXT = "Everything works as before; the next run makes again what it needs."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return command.run(lambda: _clean(arguments), stopped="stopped; the rest stays")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remem clean",
        description="Removes files that a finished run, or a study, does not need: checkpoints, "
        "copies of students, teachers that were not selected. It says what each kind frees, and "
        "what works afterwards.",
    )
    add = parser.add_argument
    add("run", nargs="?", type=command.path, help="folder of a run or a study")
    add("--dry-run", action="store_true", help="only list what would be removed")
    add("--all", action="store_true", help="also what training longer, or a profile, would need")
    add("--cache", action="store_true", help="also the cache: decoded images, compiled programs")
    return parser


def _clean(arguments: argparse.Namespace) -> None:
    require(
        arguments.run is not None or arguments.cache,
        "remem clean needs the folder of a run, or --cache.",
    )
    if arguments.run is not None:
        _clean_runs(arguments.run, everything=arguments.all, dry=arguments.dry_run)
    if arguments.cache:
        folder = files.cache()
        _write(str(folder))
        items = cleaning.of_cache(folder)
        _report(items, folder, cleaning.remove([] if arguments.dry_run else items))
        _write(_NEXT)
    sys.stdout.flush()


def _clean_runs(directory: pathlib.Path, *, everything: bool, dry: bool) -> None:
    """Cleans a run, or all trials of a study.

    Raises:
        SettingError: If it is neither, or is running.
    """
    found = cleaning.runs(directory)
    require(
        len(found) > 0,
        f"{directory} is not the folder of a run or a study of remem_jax: nothing is removed.",
    )
    kinds: set[str] = set()
    for run in found:
        _write(str(run))
        try:
            with cleaning.held(run):
                items = cleaning.of_run(run, everything=everything)
                kinds.update(item.kind for item in items)
                _report(items, run, cleaning.remove([] if dry else items))
        except BlockingIOError:
            raise SettingError(
                f"A process is running in {run}: nothing is removed there; wait, or stop it."
            ) from None
    if not (directory / "results.json").exists() and len(found) == 1:
        _write(_UNFINISHED)
    elif (directory / "budget.json").exists():
        _write(f"{_WORKS} {_NOT_LONGER if cleaning.SELECTED in kinds else _LONGER}")
    else:
        _write(_WORKS)


def _report(items: Sequence[Item], folder: pathlib.Path, freed: int) -> None:
    """Prints what each kind takes, and what is left."""
    for item in items:
        count = len(item.paths)
        _write(f"{_megabytes(item.bytes)}  {item.kind} ({count:,})")
    total = sum(item.bytes for item in items)
    left = cleaning.size(folder)
    if not items:
        _write(f"nothing to remove; {_megabytes(left).strip()} are needed")
    elif freed:
        _write(f"{_megabytes(freed)}  freed; {_megabytes(left).strip()} are left")
    else:
        rest = _megabytes(left - total).strip()
        _write(f"{_megabytes(total)}  would be freed; {rest} would be left")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:10,.1f} MB"


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
