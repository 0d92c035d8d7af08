"""Makes a small model from images in a given time.

remem distil my_images --hours=1 --out=runs/mine
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, logging

_PROG = "remem distil"
_TFDS = "tfds:"
_FILES = (".csv", ".jsonl", ".ndjson", ".npz")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from remem_jax import main as command

    given, settings = parse(argv)
    logging.set_verbosity(logging.INFO)
    sys.argv[:] = [_PROG, *given, *settings]  # ml_collections reads it, too.
    app.run(command.main, argv=sys.argv, flags_parser=command.parse_flags)
    return 0


def parse(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Returns the arguments of `remem_jax.main`: those for the options, and the settings."""
    parser = _parser()
    arguments, settings = parser.parse_known_args(argv)
    unknown = [each for each in settings if not each.startswith(("--config.", "-config."))]
    if unknown:
        parser.error(f"unknown arguments {' '.join(unknown)}; settings begin with --config.")
    return _settings(arguments), settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Makes a small model from images in a given time. It plans what is not set.",
        epilog="Any other setting (docs/configuration.md): --config.student.steps=500",
        usage=f"{_PROG} IMAGES [--hours HOURS] [options] [--config.x.y=value ...]",
    )
    add = parser.add_argument
    add("images", help="a folder with a folder per class, a list, an .npz, or tfds:NAME")
    add("--hours", type=float, default=1.0, help="time for everything (default: 1)")
    add("--out", help="folder of the run, which it resumes from (default: in runs)")
    add("--classes-from", default="", metavar="LIST", help="list of the images and their classes")
    add("--student", default="", metavar="NAME", help="network to train: see remem models")
    add("--student-weights", default="imagenet", metavar="INIT", help="a name or file; '': none")
    add("--teacher", default="", metavar="INIT", help="pretrained ViT, a name or a file")
    add("--size", type=int, default=0, metavar="PIXELS", help="side of the images")
    add("--unlabelled", default="", metavar="FOLDER", help="more images, without labels")
    return parser


def _settings(arguments: argparse.Namespace) -> list[str]:
    """Returns the arguments of `remem_jax.main`."""
    images, name = arguments.images, arguments.images.removeprefix(_TFDS)
    if name == images:
        images = str(pathlib.Path(images).expanduser())
        place = pathlib.Path(images).resolve()
        name = place.stem if place.suffix.lower() in _FILES else place.name
    out = arguments.out or str(pathlib.Path("runs") / re.sub(r"[/:]", "_", name))
    values = {
        "budget.hours": arguments.hours,
        "student.model": arguments.student,
        "student.init": arguments.student_weights,
        "teacher.init": arguments.teacher,
        "data.image_size": arguments.size or "",
        "data.unlabelled": arguments.unlabelled,
    }
    if arguments.classes_from:  # The images are in a folder, in any layout.
        values["data.root"], images = images, arguments.classes_from
    return [
        f"--config=configs/own.py:{images}",
        f"--workdir={out}",
        *(f"--config.{name}={value}" for name, value in values.items() if value != ""),
        *([] if arguments.student_weights else ["--config.student.init="]),
    ]
