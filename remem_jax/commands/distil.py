"""Makes a small model from images in a given time.

remem distil my_images --hours=1 --out=runs/mine
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, logging

from remem_jax.checks import SettingError
from remem_jax.storage import streams

_PROG = "remem distil"
_TFDS = "tfds:"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from remem_jax import main as command

    parser = _parser()
    arguments, settings = parser.parse_known_args(argv)
    unknown = [each for each in settings if not each.startswith(("--config.", "-config."))]
    if unknown:
        parser.error(f"unknown arguments {' '.join(unknown)}; settings begin with --config.")
    try:
        given = _settings(arguments)
    except SettingError as error:
        streams.print_error(f"remem_jax: {error}")
        return 1
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    sys.argv[:] = [_PROG, *given, *settings]  # ml_collections reads it, too.
    app.run(command.main, argv=sys.argv, flags_parser=command.parse_flags)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Makes a small model from images in a given time.",
        epilog="Any setting of docs/configuration.md: --config.student.steps=500",
    )
    add = parser.add_argument
    add("images", help="a folder with a folder per class, a list, an .npz, or tfds:NAME")
    add("--hours", type=float, default=1.0, help="time for everything (default: 1)")
    add("--out", help="folder of the run, which it resumes from (default: runs/IMAGES)")
    add("--student", default="", help="network to train: see remem models (default: planned)")
    add(
        "--student-weights",
        default="imagenet",
        metavar="WEIGHTS",
        help="its pretrained weights, a file or a name; '' for none (default: imagenet)",
    )
    add("--teacher", default="", help="pretrained ViT, a name or a file (default: planned)")
    add("--unlabelled", default="", metavar="FOLDER", help="more images, without labels")
    add("--size", type=int, default=0, help="side of the images in pixels (default: planned)")
    return parser


def _settings(arguments: argparse.Namespace) -> list[str]:
    """Returns the arguments of `remem_jax.main`."""
    images, name = arguments.images, arguments.images.removeprefix(_TFDS)
    if name == images:
        images = str(pathlib.Path(images).expanduser())
        name = pathlib.Path(images).resolve().stem
    out = arguments.out or str(pathlib.Path("runs") / re.sub(r"[/:]", "_", name))
    values = {
        "budget.hours": arguments.hours,
        "student.model": arguments.student,
        "student.init": arguments.student_weights,
        "teacher.init": arguments.teacher,
        "data.image_size": arguments.size or "",
        "data.unlabelled": arguments.unlabelled,
    }
    return [
        f"--config=configs/own.py:{images}",
        f"--workdir={out}",
        *(f"--config.{name}={value}" for name, value in values.items() if value != ""),
        *([] if arguments.student_weights else ["--config.student.init="]),
    ]
