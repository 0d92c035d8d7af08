"""Selects and downloads published weights, for machines that have no network during a run.

    python tools/fetch_weights.py fetch augreg:Ti/16 augreg:B/16 resnet18.a1_in1k
    python tools/fetch_weights.py fetch --table4
    python tools/fetch_weights.py pick B/16 --pretraining i1k

`remem models` lists them. Downloads are stored in the cache folder; those of students, in the cache
of huggingface_hub. To use them on another machine, copy them to the same place there.
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
    flags.FLAGS.mark_as_parsed()  # The log of absl reads its flags.
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
    commands = parser.add_subparsers(required=True, metavar="fetch|pick")

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


def _on_hub(name: str) -> hub.Name | None:
    """Returns the repository of weights on the Hub; None for a name of the bucket."""
    published = student_catalog.PUBLISHED.get(name)
    return hub.Name(published.repository) if published else hub.parse(name)


def _fetch(arguments: argparse.Namespace) -> None:
    names = [*arguments.names, *(catalog.TABLE_4.values() if arguments.table4 else ())]
    if not names:
        raise SettingError("Nothing to fetch: give names from `remem models`, or --table4.")
    for name in names:  # Reports a typing error in any name before the first download.
        if _on_hub(name) is None:
            catalog.find(name)
    for name in names:
        repository = _on_hub(name)
        if repository:
            path = hub.fetch(repository, setting="NAME").weights
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
