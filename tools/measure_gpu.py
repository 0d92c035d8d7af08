"""Measures numerics, speed and a mini version of Table 10 on one GPU, in ten minutes.

    python -m tools.measure_gpu --pack=packed --data=caltech101 --weights=augreg:Ti/16   # on a CPU
    python -m tools.measure_gpu --packed=packed --out=measured --minutes=10              # on a GPU
    python -m tools.measure_gpu --render=measured/measured.json                 # docs/measured.md
    python -m tools.measure_gpu --packed=packed --out=runs/tried --device=cpu    # a trial run

`--pack` makes a folder of at most 60 MiB with all that the machine with the GPU needs besides this
repository: weights, images, reference values that this machine's CPU computes, and wheels. That
machine needs no network. The tool measures, in this order: (1) logits, gradients, a SAM step and a
KD step, compared with the CPU; (2) the rows of tools/benchmark.py, compared with torch and timm if
they are installed, and the memory of memory plans; (3) a mini version of the paper's Table 10, with
three seeds.

Each item has a time limit and is killed when it expires. `measured.json` is written after each item
and during long ones, so SIGTERM or SIGKILL loses little, and the same command resumes with the
unfinished items. `--tiny` tries everything on a CPU in a minute; its numbers mean nothing.
`--device=cpu` tries the full size until the time is over. docs/measured.md accepts results of
neither.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time
from typing import Any

from tools.benchmarks import facts
from tools.gpu import items, packing, page, record, running, worker
from tools.gpu.budget import Budget, Item

RECORD, PAGE = "measured.json", "measured.md"
DOCS = pathlib.Path(__file__).parents[1] / "docs"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_RESERVE = 5.0  # Seconds at the end for writing the results.
_TINY = packing.Contents("", ("digits", "", ""), 32, 128, (), tiny=True)  # Without weights.


def main() -> int:
    """Runs the command line; returns the exit code."""
    begun = time.monotonic()
    options = _options()
    try:
        if options.pack:
            return _pack(options)
        if options.render:
            return _render(pathlib.Path(options.render), options.page)
        return _run(options, begun)
    except (packing.PackingError, ValueError, OSError) as error:
        print(f"measure_gpu: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--pack", default="", metavar="DIR", help="make the folder to copy")
    mode.add_argument("--packed", default="", metavar="DIR", help="measure with that folder")
    mode.add_argument("--render", default="", metavar="JSON", help="write the page of a record")
    parser.add_argument("--page", default="", help="page of --render; default: docs/measured.md")
    parser.add_argument("--out", default="measured", help="folder of measured.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit in all")
    parser.add_argument("--items", default="", help="comma-separated names; all if empty")
    parser.add_argument("--compiled", default="", help="folder of compiled code, kept for reruns")
    parser.add_argument("--weights", default="augreg:Ti/16", help="name or file, for --pack")
    parser.add_argument("--data", default="caltech101", help="config.data.name, for --pack")
    parser.add_argument("--data-path", default="", help="config.data.path, for --pack")
    parser.add_argument("--data-dir", default="", help="config.data.dir, for --pack")
    parser.add_argument("--pixels", type=int, default=96, help="side of the images, for --pack")
    parser.add_argument(
        "--images", type=int, default=0, help="images of each split, for --pack; 0 is all"
    )
    parser.add_argument(
        "--wheels",
        default=",".join(packing.DISTRIBUTIONS),
        help="comma-separated distributions, for --pack",
    )
    parser.add_argument(
        "--device", default="gpu", choices=("gpu", "cpu"), help="cpu tries the tool at full size"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the tool on a CPU")
    options = parser.parse_args()
    if options.tiny:
        options.device = "cpu"
    return options


def _pack(options: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    _keep_compiled(options)
    from remem_jax.checks import SettingError

    contents = packing.Contents(
        options.weights,
        (options.data, options.data_path, options.data_dir),
        options.pixels,
        options.images,
        [name for name in options.wheels.split(",") if name],
    )
    folder = pathlib.Path(options.pack)
    try:
        if options.tiny:
            from tools.benchmarks import tiny

            with tempfile.TemporaryDirectory() as directory:
                weights = pathlib.Path(directory) / "random.npz"
                tiny.save_teacher(weights)
                packing.pack(folder, _TINY._replace(weights=str(weights)), items.TINY_PROGRAMS)
        else:
            packing.pack(folder, contents, items.PROGRAMS)
    except SettingError as error:
        raise packing.PackingError(str(error)) from None
    print(f"{folder}: {packing.size_mib(folder):.1f} MiB.")
    return 0


def _render(path: pathlib.Path, named: str = "") -> int:
    """Writes the page of a record; without a named page, docs/measured.md and measured.json."""
    content = record.read(path)
    if not named:
        if any(run["tiny"] or run["device"] != "gpu" for run in content["runs"]):
            raise ValueError(
                f"{path} was measured with --tiny or --device=cpu, but {DOCS / PAGE} shows only "
                "GPUs: name another page with --page."
            )
        record.write(DOCS / RECORD, content)
    target = pathlib.Path(named) if named else DOCS / PAGE
    record.replace(target, page.render(content))
    print(f"Wrote {target}.")
    return 0


def _run(options: argparse.Namespace, begun: float) -> int:
    packed, out = pathlib.Path(options.packed).absolute(), pathlib.Path(options.out)
    manifest = packing.read(packed)
    chosen = _chosen(options, items.make(manifest, tiny=options.tiny))
    out.mkdir(parents=True, exist_ok=True)
    kept = record.Record(out / RECORD)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    _keep_compiled(options)
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    seconds = 60 * options.minutes - _RESERVE - (time.monotonic() - begun)
    budget = Budget(seconds, items.SHARES, time.monotonic)
    with tempfile.TemporaryDirectory() as folder:
        added = packing.add_wheels(packed, pathlib.Path(folder) / "site")
        run_facts = _facts(options, manifest, added)
        kept.begin(run_facts, anew=(items.DEVICE,))
        if run_facts["lacking"]:
            print(f"Neither installed here nor packed: {', '.join(run_facts['lacking'])}.")
        context = worker.Context(packed, out.absolute() / "work", options.tiny, options.device)
        outcome = running.run(
            chosen, budget, kept, lambda _: worker.Worker(context), lambda: bool(signals)
        )
    kept.end(outcome)
    record.replace(out / PAGE, page.render(kept.content))
    print(f"{outcome}: {out / RECORD} and {out / PAGE}.")
    if signals:
        return 128 + signals[0]
    return 1 if outcome == running.NOT_POSSIBLE else 0


def _chosen(options: argparse.Namespace, known: list[Item]) -> list[Item]:
    if not options.items:
        return known
    names = [items.DEVICE, *options.items.split(",")]
    unknown = [name for name in names if name not in {item.name for item in known}]
    if unknown:
        names = ", ".join(item.name for item in known)
        raise ValueError(f"unknown items {', '.join(unknown)} in --items; known: {names}")
    return [item for item in known if item.name in names]


def _keep_compiled(options: argparse.Namespace) -> None:
    """Sets one cache of compiled code for all processes of this run and of runs that resume it."""
    folder = options.compiled or f"{tempfile.gettempdir()}/measure_gpu-{os.getuid()}"
    os.environ.setdefault(_CACHE, folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _facts(
    options: argparse.Namespace, manifest: dict[str, Any], added: list[str]
) -> dict[str, Any]:
    packed = {name: value for name, value in manifest.items() if name != "files"}
    machine = facts.collect()
    machine["environment"].pop(_CACHE, None)  # A path on this machine.
    return machine | {
        "tiny": options.tiny,
        "device": options.device,
        "minutes": options.minutes,
        "commit": packing.commit() or manifest["commit"],
        "packed": packed,
        "added": added,
        "lacking": packing.lacking(),
    }


if __name__ == "__main__":
    sys.exit(main())
