"""Exports a run's student, or its teacher, and checks what was written against it.

python -m remem_jax.export RUN --format=onnx                    # RUN/export/METHOD_student.onnx
python -m remem_jax.export RUN --format=onnx --fold --precision=int8 --input=uint8
python -m remem_jax.export RUN --format=timm                    # the teacher
"""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
from absl import logging

from remem_jax.checks import SettingError, at_least
from remem_jax.export import checking, description, runs, students, teachers
from remem_jax.export.description import Form


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    try:
        sys.stdout.write(_export(_parser().parse_args(argv)) + "\n")
    except SettingError as error:
        sys.stderr.write(f"remem_jax: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.export",
        description="Exports the student of a run, or its teacher, and checks it on real images.",
    )
    add, known = parser.add_argument, (*description.FORMATS, *teachers.FORMATS)
    add("run", type=pathlib.Path, help="folder of a finished run (its --workdir)")
    add("--format", choices=known, default="onnx", help="the last three are of the teacher")
    add("--out", type=pathlib.Path, help="the file; else in RUN/export")
    add("--method", default="", help="of the run; else the one that is best on validation")
    add("--seed", type=int, help="of the run's students; else the one that is best on validation")
    add("--input", choices=description.INPUTS, default="float", help="-1 to 1, or 0 to 255")
    add("--batch", type=int, default=0, help="images at once; 0 is any number")
    add("--fold", action="store_true", help="fold BatchNorm into the convolutions")
    add("--precision", choices=description.PRECISIONS, default="float32")
    add("--images", type=pathlib.Path, help="folder to check on, instead of the run's data")
    add("--split", choices=runs.SPLITS, default="validation", help="of the run's data")
    add("--check-images", type=int, default=512, help="how many; 0 is all")
    add("--calibration-images", type=int, default=256, help="of training, for int8")
    add(
        "--allowed-difference",
        type=float,
        help="of a logit, as a share of the largest above 1; else by the precision",
    )
    add("--allowed-disagreement", type=float, help="share of the images; else by the precision")
    return parser


def _export(asked: argparse.Namespace) -> str:
    """Does what was asked for; what there is to say of it."""
    at_least("--check-images", asked.check_images, 0)
    at_least("--calibration-images", asked.calibration_images, 1)
    if asked.format in teachers.FORMATS:
        return _teacher(asked)
    form = Form(asked.format, asked.input, asked.batch, asked.fold, asked.precision)
    description.check(form)
    student = runs.open_student(asked.run, method=asked.method, seed=asked.seed)
    size, calibration = student.described.image_size, np.zeros((0, 0, 0, 3), np.uint8)
    if form.precision == "int8":
        calibration = runs.open_images(asked.run, "train", asked.calibration_images).pixels
    path = asked.out or asked.run / "export" / _name(student, form, asked.seed)
    found = students.export(
        student,
        form,
        path,
        _images(asked, size),
        allowed=checking.limits(
            form.precision, asked.allowed_difference, asked.allowed_disagreement
        ),
        calibration=calibration,
    )
    return _told(path, found["check"]) + _told_latency(found)


def _teacher(asked: argparse.Namespace) -> str:
    allowed = checking.limits("float32", asked.allowed_difference, asked.allowed_disagreement)
    teacher = teachers.open_teacher(asked.run, method=asked.method)
    name = f"{teacher.method}_teacher_{asked.format}{teachers.FORMATS[asked.format]}"
    path = asked.out or asked.run / "export" / name
    images = _images(asked, teacher.checkpoint.image_size)
    found = teachers.export(teacher, asked.format, path, images, allowed=allowed)
    return _told(path, found["check"])


def _images(asked: argparse.Namespace, size: int) -> runs.Images:
    if asked.images:
        return runs.read_folder(asked.images, size, asked.check_images)
    return runs.open_images(asked.run, asked.split, asked.check_images)


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
        f"{path}: {checking.size(path):,} bytes",
        f"on {check['images']}: logits differ by at most {check['largest_difference']:.2g} (the "
        f"largest is {check['largest_logit']:.3g}), {100 * check['agreement']:.2f} % get the same "
        "class",
    ]
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
