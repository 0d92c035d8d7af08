"""Exports a run's student, or its teacher, and checks what was written against it.

python -m remem_jax.export RUN --format=onnx                    # RUN/export/METHOD_student.onnx
python -m remem_jax.export RUN --format=onnx --fold --precision=int8 --input=uint8
python -m remem_jax.export RUN --format=timm                    # the teacher
"""

from remem_jax.export import command

if __name__ == "__main__":
    command.begin()  # Before what takes seconds to import.

import argparse
import os
import pathlib
import sys
from typing import Any

import numpy as np
from absl import logging

from remem_jax.checks import at_least, require
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import (
    checking,
    description,
    destinations,
    runs,
    students,
    teachers,
)
from remem_jax.export.description import Form
from remem_jax.storage import results

_CHECK_IMAGES, _CALIBRATION_IMAGES, _SPLIT = 512, 256, "validation"
# What only some exports take; None, or False, is not given.
_OF_STUDENTS = ("seed", "input", "batch", "fold", "precision", "calibration_images")
_OF_GRAPHS = ("input", "batch")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    return command.run(
        lambda: _export(_parser().parse_args(argv)),
        stopped="stopped; an export that was not finished is removed, and what was there stays",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.export",
        description="Exports the student of a run, or its teacher, and checks it on real images.",
    )
    add, known = parser.add_argument, (*description.FORMATS, *teachers.FORMATS)
    add("run", type=command.path, help="folder of a finished run (its --workdir)")
    add("--format", choices=known, default="onnx", help="the last three are of the teacher")
    add("--out", type=command.path, help="the file; else in RUN/export")
    add("--method", default="", help="of the run; else the one that is best on validation")
    add("--seed", type=int, help="of the run's students; else the one that is best on validation")
    add("--input", choices=description.INPUTS, help="float (-1 to 1, as usual), or 0 to 255")
    add("--batch", type=int, help="images at once; else any number")
    add("--fold", action="store_true", help="fold BatchNorm into the convolutions")
    add("--precision", choices=description.PRECISIONS, help="else float32")
    add("--images", type=command.path, help="folder to check on, instead of the run's data")
    add("--split", choices=runs.SPLITS, help=f"of the run's data; else {_SPLIT}")
    add("--check-images", type=int, default=_CHECK_IMAGES, help="how many; 0 is all")
    add("--calibration-images", type=int, help=f"for int8; else {_CALIBRATION_IMAGES}")
    add(
        "--allowed-difference",
        type=float,
        help="of a logit, as a share of the largest above 1; else by the precision",
    )
    add("--allowed-disagreement", type=float, help="share of the images; else by the precision")
    return parser


def _export(asked: argparse.Namespace) -> None:
    """Does what was asked for, and says what came of it."""
    _check(asked)
    if asked.out is not None:
        folder = asked.format in description.FOLDERS
        destinations.require_replaceable(asked.out, folder=folder)
        _require_outside_of_images(asked.out, asked.run)
    told = _teacher(asked) if asked.format in teachers.FORMATS else _student(asked)
    sys.stdout.write(told + "\n")
    sys.stdout.flush()


def _check(asked: argparse.Namespace) -> None:
    """Raises `SettingError` for numbers out of range, and for options that would be ignored."""
    at_least("--check-images", asked.check_images, 0)
    if asked.calibration_images is not None:
        at_least("--calibration-images", asked.calibration_images, 1)
    ignored: tuple[str, ...] = ()
    if asked.format in teachers.FORMATS:
        ignored = _OF_STUDENTS
    elif asked.format not in description.GRAPHS:
        ignored = _OF_GRAPHS
    given = [name for name in ignored if not _is_absent(getattr(asked, name))]
    require(
        not given,
        f"--format={asked.format} has no use for {', '.join(map(_flag, given))}: leave out what "
        "is of other formats.",
    )
    require(
        asked.calibration_images is None or asked.precision == "int8",
        "--calibration-images is of --precision=int8: leave it out, or set that.",
    )
    require(
        asked.split is None or asked.images is None,
        "--split is of the run's data, which --images takes the place of: leave out one of them.",
    )


def _is_absent(value: Any) -> bool:
    return value is None or value is False


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require_outside_of_images(path: pathlib.Path, run: pathlib.Path) -> None:
    """Raises for a place among the images that a run has learned, of which it would be taken."""
    config = results.read(run / "config.json") or {}
    settings = config.get("data", {})
    if settings.get("name") != "folder" or not settings.get("path"):
        return
    images, place = os.path.realpath(settings["path"]), os.path.realpath(path)
    inside = pathlib.Path(images) in pathlib.Path(place).parents
    require(
        not inside,
        f"{path} lies among the images of the run ({settings['path']}); set --out to another "
        "place.",
    )


def _student(asked: argparse.Namespace) -> str:
    form = Form(
        asked.format,
        asked.input or "float",
        asked.batch or 0,
        asked.fold,
        asked.precision or "float32",
    )
    description.check(form)
    student = runs.open_student(asked.run, method=asked.method, seed=asked.seed)
    path = asked.out or asked.run / "export" / _name(student, form, asked.seed)
    destinations.require_replaceable(path, folder=form.format in description.FOLDERS)
    steps, calibration = student.described.preprocessing, np.zeros((0, 0, 0, 3), np.uint8)
    if form.precision == "int8":
        most = asked.calibration_images or _CALIBRATION_IMAGES
        calibration = _images(asked, steps, "train", most).pixels
    images = _images(asked, steps, asked.split or _SPLIT, asked.check_images)
    allowed = checking.limits(form.precision, asked.allowed_difference, asked.allowed_disagreement)
    found = students.export(student, form, path, images, allowed=allowed, calibration=calibration)
    return _told(path, found["check"]) + _told_latency(found)


def _teacher(asked: argparse.Namespace) -> str:
    allowed = checking.limits("float32", asked.allowed_difference, asked.allowed_disagreement)
    teacher = teachers.open_teacher(asked.run, method=asked.method)
    name = f"{teacher.method}_teacher_{asked.format}{teachers.FORMATS[asked.format]}"
    path = asked.out or asked.run / "export" / name
    destinations.require_replaceable(path, folder=False)
    images = _images(asked, teacher.preprocessing, asked.split or _SPLIT, asked.check_images)
    found = teachers.export(teacher, asked.format, path, images, allowed=allowed)
    return _told(path, found["check"])


def _images(asked: argparse.Namespace, steps: Preprocessing, split: str, most: int) -> runs.Images:
    """Those of the folder that was given, else of the run's split."""
    if asked.images is not None:
        return runs.read_folder(asked.images, steps, most)
    return runs.open_images(asked.run, split, most)


def _name(student: runs.Student, form: Form, seed: int | None) -> str:
    """METHOD_student, and what tells this export from the others of the student."""
    parts = [student.described.method, "student"]
    parts += [] if seed is None else [f"seed_{seed}"]
    parts += ["uint8"] if form.input == "uint8" else []
    parts += [f"batch_{form.batch}"] if form.batch else []
    parts += ["folded"] if form.fold else []
    parts += [form.precision] if form.precision != "float32" else []
    return "_".join(parts) + description.SUFFIXES[form.format]


def _told(path: pathlib.Path, check: dict[str, Any]) -> str:
    lines = [
        f"{path}: {destinations.size(path):,} bytes",
        f"on {check['images']}: logits differ by at most {check['largest_difference']:.2g} (the "
        f"largest is {check['largest_logit']:.3g}), {100 * check['agreement']:.2f} % get the same "
        "class",
    ]
    if check["skipped"]:
        lines.append(
            f"skipped, as they could not be read: {len(check['skipped'])} images "
            f"({'; '.join(check['skipped'][:3])})"
        )
    if check["accuracy"] is not None:
        before = f"before: {100 * check['student_accuracy']:.2f} %"
        lines.append(f"top-1 {100 * check['accuracy']:.2f} % ({before})")
    return "\n".join(lines)


def _told_latency(found: dict[str, Any]) -> str:
    latency = found["latency_ms"]
    return "".join(
        f"\nbatch of {batch}: {ms:.2f} ms (JAX, here: {latency['student_in_jax'][batch]:.2f} ms)"
        for batch, ms in latency["export"].items()
        if batch in latency["student_in_jax"]
    )


if __name__ == "__main__":
    sys.exit(main())
