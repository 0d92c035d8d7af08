"""Lists, picks and fetches published weights, for machines that have no network in a run.

    python tools/fetch_weights.py list
    python tools/fetch_weights.py fetch augreg:Ti/16 augreg:B/16
    python tools/fetch_weights.py fetch --table4
    python tools/fetch_weights.py pick B/16 --pretraining i1k

What is fetched lies in the cache folder, below which a copy for another machine keeps its place.
"""

from remem_jax.storage import streams

if __name__ == "__main__":  # Before what takes seconds to import.
    streams.begin("fetch_weights")

import argparse
import os
import sys

from absl import flags, logging

from remem_jax.checks import SettingError
from remem_jax.weights import catalog, download


def main() -> int:
    """Runs the command line; returns the exit code."""
    flags.FLAGS(sys.argv[:1])  # The log asks for its own.
    logging.set_verbosity(logging.INFO)
    arguments = _parser().parse_args()
    if arguments.cache:
        os.environ["REMEM_CACHE"] = arguments.cache
    try:
        arguments.run(arguments)
    except SettingError as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_weights: stopped; the next start goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--mirror", default="", help="URL or folder instead of the public bucket")
    places.add_argument("--cache", default="", help="folder instead of that of REMEM_CACHE")
    commands = parser.add_subparsers(required=True, metavar="list|fetch|pick")

    lister = commands.add_parser("list", parents=[places], help="show what is published")
    lister.set_defaults(run=_list)

    fetcher = commands.add_parser("fetch", parents=[places], help="fetch weights by name")
    fetcher.add_argument("names", nargs="*", metavar="NAME", help="such as augreg:B/16")
    fetcher.add_argument(
        "--table4", action="store_true", help="those of the paper's table 4 as well"
    )
    fetcher.set_defaults(run=_fetch)

    picker = commands.add_parser("pick", parents=[places], help="name AugReg's best by its index")
    picker.add_argument("variant", help="such as B/16")
    picker.add_argument("--pretraining", choices=("i1k", "i21k", "i21k_30"), default="i21k")
    picker.add_argument("--adapted", default="", help="data set of a fine-tuned one")
    picker.add_argument("--resolution", type=int, default=224, help="of the fine-tuning, pixels")
    picker.set_defaults(run=_pick)
    return parser


def _list(arguments: argparse.Namespace) -> None:
    row = "{:22} {:9} {:>6}  {:5}  {:30} {}".format
    print(row("name", "variant", "MiB", "here", "pretraining", "note").rstrip())
    for one in catalog.PUBLISHED.values():
        path = catalog.in_mirror(one.path, arguments.mirror)
        here = "yes" if download.is_here(path, one.mebibytes) else "no"
        size = "?" if one.mebibytes is None else f"{one.mebibytes:.0f}"
        print(row(one.name, one.variant, size, here, one.pretraining, one.note).rstrip())
    print("\nAlso: augreg: and the name of any file of AugReg, without .npz; see pick.")
    for column, name in catalog.TABLE_4.items():
        print(f"Table 4 of the paper, {column}: {name}")


def _fetch(arguments: argparse.Namespace) -> None:
    names = [*arguments.names, *(catalog.TABLE_4.values() if arguments.table4 else ())]
    if not names:
        raise SettingError("Nothing to fetch: give names, as list shows them, or --table4.")
    for name in names:
        catalog.find(name)  # So that a typing error in the last shows before the first arrives.
    for name in names:
        print(f"{name} {download.obtain(name, mirror=arguments.mirror)}")


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
