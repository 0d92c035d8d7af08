"""Exports a run's student, or its teacher, and compares the file with the model on real images.

remem export RUN --format=onnx                    # RUN/export/METHOD_student.onnx
remem export RUN --format=onnx --fold --precision=int8 --input=uint8
remem export RUN --format=timm                    # the teacher
"""

from remem_jax.export import command

if __name__ == "__main__":
    command.begin()  # Comes before imports that take seconds.

import argparse
import functools
import os
import pathlib
import sys
from typing import Any

from absl import logging

from remem_jax import display
from remem_jax.checks import at_least, require
from remem_jax.export import options
from remem_jax.export.options import Form

_CHECK_IMAGES, _CALIBRATION_IMAGES = 512, 256
# Options that only students, and only graphs, have; None or False means that one is not given.
_STUDENT_OPTIONS = (*("seed", "input", "batch", "fold", "precision", "calibration_images"),)
_GRAPH_OPTIONS = ("input", "batch")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    return command.run(
        lambda: _export(_parser().parse_args(argv)),
        stopped="stopped; an unfinished export is removed, and an earlier export stays",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remem export",
        usage="remem export RUN [--format FORMAT] [options]",
        description="Exports the student of a run, or its teacher, and checks it on real images.",
        # Each option fits on one line, and all of them on a screen.
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=30),
    )
    add, formats = parser.add_argument, (*options.FORMATS, *options.TEACHER_FORMATS)
    best = "(default: the best on validation)"
    add("run", type=command.path, help="folder of a finished run (its --workdir)")
    add(
        "--format",
        choices=formats,
        default="onnx",
        metavar="FORMAT",
        help=f"{', '.join(options.FORMATS)}; teacher: {', '.join(options.TEACHER_FORMATS)}",
    )
    add("--out", type=command.path, help="output file (default: in RUN/export)")
    add("--method", default="", help=f"of the run {best}")
    add("--seed", type=int, help=f"of the student {best}")
    add(
        "--input",
        choices=options.INPUTS,
        metavar="TYPE",
        help="float: -1 to 1 (default); uint8: 0 to 255",
    )
    add("--batch", type=int, metavar="SIZE", help="fixed batch size (default: any)")
    add("--fold", action="store_true", help="fold BatchNorm layers into convolutions")
    add(
        "--precision",
        choices=options.PRECISIONS,
        metavar="TYPE",
        help="float32 (default), float16 or int8",
    )
    add("--images", type=command.path, metavar="DIR", help="check on these, not the run's data")
    add(
        "--split",
        choices=options.SPLITS,
        metavar="SPLIT",
        help=f"to check on: {', '.join(options.SPLITS)}",
    )
    add(
        "--check-images",
        type=int,
        default=_CHECK_IMAGES,
        metavar="N",
        help=f"images to check on (default: {_CHECK_IMAGES}; 0: all)",
    )
    add(
        "--calibration-images",
        type=int,
        metavar="N",
        help=f"training images for int8 (default: {_CALIBRATION_IMAGES})",
    )
    add(
        "--allowed-difference",
        type=float,
        metavar="X",
        help="of a logit, relative to the largest if above 1",
    )
    add(
        "--allowed-disagreement",
        type=float,
        metavar="X",
        help="share of images with another class",
    )
    return parser


def _export(arguments: argparse.Namespace) -> None:
    """Exports the student or the teacher, and prints the result."""
    _check(arguments)
    command.require_run(arguments.run)
    # Imported after the checks, because it takes seconds.
    from remem_jax.export import destinations

    if arguments.out is not None:
        folder = arguments.format in options.FOLDERS
        destinations.require_replaceable(arguments.out, folder=folder)
        _require_outside_of_images(arguments.out, arguments.run)
    export = _export_teacher if arguments.format in options.TEACHER_FORMATS else _export_student
    with display.opened():
        display.use_terminal()
        summary = export(arguments)
    sys.stdout.write(f"{summary}\n")
    sys.stdout.flush()


def _check(arguments: argparse.Namespace) -> None:
    """Raises `SettingError` for numbers out of range, and for options without an effect."""
    at_least("--check-images", arguments.check_images, 0)
    if arguments.calibration_images is not None:
        at_least("--calibration-images", arguments.calibration_images, 1)
    ignored: tuple[str, ...] = ()
    if arguments.format in options.TEACHER_FORMATS:
        ignored = _STUDENT_OPTIONS
    elif arguments.format not in options.GRAPHS:
        ignored = _GRAPH_OPTIONS
    given = [name for name in ignored if not _is_absent(getattr(arguments, name))]
    require(
        not given,
        f"--format={arguments.format} has no use for {', '.join(map(_flag, given))}: leave out "
        "options of other formats.",
    )
    require(
        arguments.calibration_images is None or arguments.precision == "int8",
        "--calibration-images is only for --precision=int8: leave it out, or set that.",
    )
    require(
        arguments.split is None or arguments.images is None,
        "--split is of the run's data, which --images replaces: leave out one of them.",
    )
    if arguments.format in options.FORMATS:
        options.check(_form(arguments))


def _form(arguments: argparse.Namespace) -> Form:
    return Form(
        arguments.format,
        arguments.input or "float",
        arguments.batch or 0,
        arguments.fold,
        arguments.precision or "float32",
    )


def _is_absent(value: Any) -> bool:
    return value is None or value is False


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require_outside_of_images(path: pathlib.Path, run: pathlib.Path) -> None:
    """Raises for a path in the image folder of the run: an export would become part of the data."""
    from remem_jax.storage import results

    config = results.read(run / "config.json") or {}
    settings = config.get("data", {})
    if settings.get("name") != "folder" or not settings.get("path"):
        return
    images, target = os.path.realpath(settings["path"]), os.path.realpath(path)
    inside = pathlib.Path(images) in pathlib.Path(target).parents
    require(
        not inside,
        f"{path} is in the image folder of the run ({settings['path']}); set --out to another "
        "place.",
    )


def _export_student(arguments: argparse.Namespace) -> str:
    import numpy as np

    from remem_jax.export import checking, destinations, runs, students

    form = _form(arguments)
    student = runs.open_student(arguments.run, method=arguments.method, seed=arguments.seed)
    path = arguments.out or arguments.run / "export" / _name(student, form, arguments.seed)
    destinations.require_replaceable(path, folder=form.format in options.FOLDERS)
    preprocessing = student.described.preprocessing
    calibration = np.zeros((0, 0, 0, 3), np.uint8)
    if form.precision == "int8":
        most = arguments.calibration_images or _CALIBRATION_IMAGES
        calibration = _images(arguments, preprocessing, "train", most).pixels
    images = _images(arguments, preprocessing, _split(arguments), arguments.check_images)
    allowed = checking.limits(
        form.precision, arguments.allowed_difference, arguments.allowed_disagreement
    )
    record = students.export(student, form, path, images, allowed=allowed, calibration=calibration)
    return _summary(path, record["check"]) + _latencies(record)


def _export_teacher(arguments: argparse.Namespace) -> str:
    from remem_jax.export import checking, destinations, teachers

    allowed = checking.limits(
        "float32", arguments.allowed_difference, arguments.allowed_disagreement
    )
    teacher = teachers.open_teacher(arguments.run, method=arguments.method)
    suffix = options.TEACHER_FORMATS[arguments.format]
    name = f"{teacher.method}_teacher_{arguments.format}{suffix}"
    path = arguments.out or arguments.run / "export" / name
    destinations.require_replaceable(path, folder=False)
    images = _images(arguments, teacher.preprocessing, _split(arguments), arguments.check_images)
    record = teachers.export(teacher, arguments.format, path, images, allowed=allowed)
    return "\n".join(
        [_summary(path, record["check"]), *([record["note"]] if "note" in record else [])]
    )


def _split(arguments: argparse.Namespace) -> str:
    """Returns the split to check on: validation, unless the model was trained on it."""
    if arguments.split:
        return arguments.split
    from remem_jax.export import runs
    from remem_jax.report import tables

    record = runs.read_results(arguments.run)
    was_selected = arguments.method in ("", *(row["method"] for row in record["methods"]))
    return tables.selection(record) if was_selected else "test"


def _images(arguments: argparse.Namespace, preprocessing: Any, split: str, most: int) -> Any:
    """Reads the given folder of images, or else a split of the run's data."""
    from remem_jax.export import images

    if arguments.images is not None:
        return images.read_folder(arguments.images, preprocessing, most)
    return images.open_images(arguments.run, split, most)


def _name(student: Any, form: Form, seed: int | None) -> str:
    """Returns the default file name: METHOD_student, and options that are not the default."""
    words = [student.described.method, "student"]
    words += [] if seed is None else [f"seed_{seed}"]
    words += ["uint8"] if form.input == "uint8" else []
    words += [f"batch_{form.batch}"] if form.batch else []
    words += ["folded"] if form.fold else []
    words += [form.precision] if form.precision != "float32" else []
    return "_".join(words) + options.SUFFIXES[form.format]


def _summary(path: pathlib.Path, check: dict[str, Any]) -> str:
    from remem_jax.export import destinations

    lines = [
        f"{path}: {destinations.size(path):,} bytes",
        f"on {check['images']}: logits differ by at most {check['largest_difference']:.2g} (the "
        f"largest is {check['largest_logit']:.3g}), {100 * check['agreement']:.2f} % have the same "
        "predicted class",
    ]
    if check["skipped"]:
        lines.append(
            f"skipped, because they cannot be read: {len(check['skipped'])} images "
            f"({'; '.join(check['skipped'][:3])})"
        )
    if check["accuracy"] is not None:
        original = f"before export: {100 * check['student_accuracy']:.2f} %"
        lines.append(f"top-1 {100 * check['accuracy']:.2f} % ({original})")
    return "\n".join(lines)


def _latencies(record: dict[str, Any]) -> str:
    latency = record["latency_ms"]
    return "".join(
        f"\nbatch of {batch}: {ms:.2f} ms (JAX, here: {latency['student_in_jax'][batch]:.2f} ms)"
        for batch, ms in latency["export"].items()
        if batch in latency["student_in_jax"]
    )


if __name__ == "__main__":
    sys.exit(main())
