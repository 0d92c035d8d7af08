"""Lists, selects and downloads published weights, for machines that have no network during a run.

    python tools/fetch_weights.py list
    python tools/fetch_weights.py students
    python tools/fetch_weights.py fetch augreg:Ti/16 augreg:B/16 resnet18.a1_in1k
    python tools/fetch_weights.py fetch --table4
    python tools/fetch_weights.py pick B/16 --pretraining i1k

Downloads are stored in the cache folder; those of students, in the cache of huggingface_hub. To use
them on another machine, copy them to the same place in its cache folder.
"""

from remem_jax.storage import streams

if __name__ == "__main__":  # Before the slow imports.
    streams.begin("fetch_weights")

import argparse
import os
import sys

from absl import flags, logging

from remem_jax import display, redaction
from remem_jax.checks import SettingError
from remem_jax.weights import catalog, download, hub, student_catalog


def main() -> int:
    """Runs the command line; returns the exit code."""
    flags.FLAGS(sys.argv[:1])  # absl's log reads its flags.
    logging.set_verbosity(logging.INFO)
    redaction.guard()
    arguments = _parser().parse_args()
    if arguments.cache:
        os.environ["REMEM_CACHE"] = arguments.cache
    try:
        with display.opened():
            display.use_terminal()
            arguments.run(arguments)
    except SettingError as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_weights: stopped; the same command resumes the download.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--mirror", default="", help="URL or folder instead of the public bucket")
    shared.add_argument("--cache", default="", help="cache folder instead of REMEM_CACHE")
    commands = parser.add_subparsers(required=True, metavar="list|students|fetch|pick")

    lister = commands.add_parser("list", parents=[shared], help="list published weights")
    lister.set_defaults(run=_list)

    students = commands.add_parser(
        "students", parents=[shared], help="list pretrained students, for config.student.init"
    )
    students.set_defaults(run=_list_students)

    fetcher = commands.add_parser("fetch", parents=[shared], help="download weights by name")
    fetcher.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a name such as augreg:B/16 or timm/resnet18.a1_in1k",
    )
    fetcher.add_argument(
        "--table4", action="store_true", help="also download the weights of the paper's Table 4"
    )
    fetcher.set_defaults(run=_fetch)

    picker = commands.add_parser(
        "pick", parents=[shared], help="show the best AugReg checkpoint according to its index"
    )
    picker.add_argument("variant", help="a variant such as B/16")
    picker.add_argument("--pretraining", choices=("i1k", "i21k", "i21k_30"), default="i21k")
    picker.add_argument("--adapted", default="", help="data set that it was fine-tuned on")
    picker.add_argument("--resolution", type=int, default=224, help="pixels of the fine-tuning")
    picker.set_defaults(run=_pick)
    return parser


def _list(arguments: argparse.Namespace) -> None:
    row = "{:22} {:9} {:>6}  {:5}  {:30} {}".format
    print(row("name", "variant", "MiB", "here", "pretraining", "note").rstrip())
    for entry in catalog.PUBLISHED.values():
        path = catalog.in_mirror(entry.path, arguments.mirror)
        here = "yes" if download.is_here(path, entry.mebibytes) else "no"
        size = "?" if entry.mebibytes is None else f"{entry.mebibytes:.0f}"
        print(row(entry.name, entry.variant, size, here, entry.pretraining, entry.note).rstrip())
    print("\nAlso: augreg: followed by any AugReg file name without .npz; see the command pick.")
    for column, name in catalog.TABLE_4.items():
        print(f"Table 4 of the paper, {column}: {name}")


def _list_students(arguments: argparse.Namespace) -> None:
    del arguments
    row = "{:49} {:20} {:>6} {:>5}  {:5}  {:13} {}".format
    print(row("name", "student", "pixels", "top-1", "here", "licence", "pretraining"))
    for entry in student_catalog.PUBLISHED.values():
        student = student_catalog.student_of(entry) or "none"
        here = "yes" if hub.is_cached(hub.Name(entry.repository)) else "no"
        top1 = f"{entry.top1:.1f}"
        cells = (entry.test_pixels, top1, here, entry.licence, entry.pretraining)
        print(row(entry.name, student, *cells))
    print(
        "\nTop-1: on ImageNet's validation images, in percent, at these pixels. The first weights"
    )
    print(f"of a student are also named {student_catalog.RECOMMENDED!r}.")


def _on_hub(name: str) -> hub.Name | None:
    """Returns the repository of a student's weights; None for a teacher's name."""
    published = student_catalog.PUBLISHED.get(name)
    return hub.Name(published.repository) if published else hub.parse(name)


def _fetch(arguments: argparse.Namespace) -> None:
    names = [*arguments.names, *(catalog.TABLE_4.values() if arguments.table4 else ())]
    if not names:
        raise SettingError("Nothing to fetch: give names from the command list, or --table4.")
    for name in names:  # Reports a typing error in any name before the first download.
        if _on_hub(name) is None:
            catalog.find(name)
    for name in names:
        repository = _on_hub(name)
        if repository:
            path = hub.fetch(repository).weights
        else:
            path = download.obtain(name, mirror=arguments.mirror)
        print(f"{name} {path}")


def _pick(arguments: argparse.Namespace) -> None:
    best = catalog.pick(
        download.index_rows(mirror=arguments.mirror),
        arguments.variant,
        arguments.pretraining,
        adapted=arguments.adapted,
        resolution=arguments.resolution,
    )
    column = "adapt_final_val" if arguments.adapted else "final_val"
    print(f"{best.name} {column} {best.accuracy}")


if __name__ == "__main__":
    sys.exit(streams.run("fetch_weights", main))
