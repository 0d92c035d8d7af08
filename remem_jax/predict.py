"""Says which classes images are of, by a run's student or by an export of it.

python -m remem_jax.predict RUN photographs/ > found.csv
python -m remem_jax.predict RUN/export/remem_student.onnx 'photographs/**/*.jpg' --format=json
"""

import argparse
import contextlib
import csv
import glob
import io
import json
import logging as python_logging
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from scipy import special

from remem_jax.checks import SettingError, at_least, require
from remem_jax.data import formats, walk
from remem_jax.export import predictors, runs
from remem_jax.export.predictors import Predictor
from remem_jax.storage import files, logs, results

FORMATS = ("csv", "json")
COLUMNS = ("file", "rank", "class", "probability")


class Predictions(NamedTuple):
    """What a student says of images.

    Attributes:
        top: By file, in the order in which the files were given: the likeliest classes and their
            probabilities, likeliest first.
        failed: By file or folder, why there is nothing to say of it.
    """

    top: dict[str, list[tuple[str, float]]]
    failed: dict[str, str]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    asked = _parser().parse_args(argv)
    try:
        _predict(asked)
    except SettingError as error:
        sys.stderr.write(f"remem_jax: {error}\n")
        return 1
    except BrokenPipeError:  # Who reads has seen enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.predict",
        description="Classifies images by the student of a run, or by an export of it.",
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="folder of a finished run, or what an export wrote")
    add("images", nargs="+", help="files, folders with all that is in them, and patterns")
    add("--top", type=int, default=5, help="classes of each image; at most all")
    add("--format", choices=FORMATS, default="csv")
    add("--out", type=pathlib.Path, help="the file; else standard output")
    add(
        "--batch_size",
        "--batch-size",
        type=int,
        default=predictors.AT_ONCE,
        help="images at once; an export of a fixed batch has that one",
    )
    add("--method", default="", help="of the run; else the one that is best on validation")
    add("--seed", type=int, help="of the run's students; else the one that is best on validation")
    return parser


def _predict(asked: argparse.Namespace) -> None:
    at_least("--top", asked.top, 1)
    at_least("--batch_size", asked.batch_size, 1)
    if asked.out:
        _require_writable(asked.out)
    passed_over: Counter[str] = Counter()
    paths, empty = find(asked.images, passed_over)
    if walk.is_remarkable(passed_over):
        sys.stderr.write(f"remem_jax: {walk.told(passed_over, ())}\n")
    model = predictors.open_any(asked.model, method=asked.method, seed=asked.seed)
    logging.set_verbosity(logging.INFO)  # Of the progress; what opens a model says more.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # Of devices there are not.
    found = predict(model, paths, top=asked.top, batch_size=asked.batch_size)
    found = found._replace(failed=empty | found.failed)
    told = "".join(f"  {_printable(path)} {why}\n" for path, why in found.failed.items())
    if told:
        sys.stderr.write(f"remem_jax: left out ({len(found.failed)}):\n{told}")
    require(len(found.top) > 0, "There is no image that can be read: give others.")
    _write(asked.out, _csv(found) if asked.format == "csv" else _json(found, model))


def find(
    given: Sequence[str], passed_over: Counter[str] | None = None
) -> tuple[list[pathlib.Path], dict[str, str]]:
    """Files of images, each of them once.

    Args:
        given: Files; folders, of which all images are taken, also those in folders of theirs;
            patterns of either, with "**" for any number of folders.
        passed_over: Counts what is not taken of folders, by kind.

    Returns:
        The files in the order in which they were given, those of a folder or a pattern sorted;
        and, by folder or pattern that gave none, the reason.
    """
    found: dict[str, pathlib.Path] = {}
    empty: dict[str, str] = {}
    for name in given:
        path = pathlib.Path(name).expanduser()
        places = [path]
        if not path.exists() and glob.has_magic(name):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Absolute too.
            places = list(map(pathlib.Path, matches))
        here = [one for place in places for one in _files(place, passed_over)]
        if not here:
            empty[name] = f"holds no images ({formats.told()})."
        for one in here:
            # Path.resolve raises of links in a circle.
            found.setdefault(os.path.realpath(one), one)
    return list(found.values()), empty


def _files(path: pathlib.Path, passed_over: Counter[str] | None) -> list[pathlib.Path]:
    return runs.image_paths(path, passed_over) if path.is_dir() else [path]


def predict(
    model: Predictor, paths: Sequence[pathlib.Path], *, top: int, batch_size: int
) -> Predictions:
    """Looks at images that students see as in evaluation; the next are read while it looks.

    Args:
        model: From `predictors.open_any`.
        paths: Files of images. What cannot be read is noted, and passed over.
        top: Likeliest classes that are kept of each; at most all.
        batch_size: Images at once; an export of a fixed batch has that one.
    """
    found = Predictions({}, {})
    batch_size = model.described.form.batch or min(batch_size, max(len(paths), 1))
    progress = logs.Progress("predict", first_step=0, steps=len(paths), unit="image")
    with contextlib.closing(progress):
        for batch in _batches(model, paths, batch_size):
            pixels = {path: image for path, image in batch if not isinstance(image, str)}
            found.failed.update((path, image) for path, image in batch if isinstance(image, str))
            if pixels:
                logits = model.predict(np.stack(list(pixels.values())), at_once=batch_size)
                found.top.update(zip(pixels, _likeliest(logits, model.classes, top), strict=True))
            progress(len(found.top) + len(found.failed))
    return found


def _batches(
    model: Predictor, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[list[tuple[str, Any]]]:
    """Files and their pixels, or why there are none; in threads, one batch ahead."""
    described = model.described

    def read(path: pathlib.Path) -> tuple[str, Any]:
        try:
            size, stored_size = described.image_size, described.stored_size
            return str(path), runs.read_image(path, size, stored_size=stored_size)
        except SettingError as error:
            return str(path), str(error).removeprefix(f"{path} ")

    starts = range(0, len(paths), batch_size)
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ahead = pool.map(read, paths[:batch_size])
        for start in starts:
            batch = list(ahead)
            ahead = pool.map(read, paths[start + batch_size : start + 2 * batch_size])
            yield batch


def _likeliest(
    logits: np.ndarray, classes: tuple[str, ...], top: int
) -> Iterator[list[tuple[str, float]]]:
    """The likeliest classes of each image; of equal ones, that of the lower index first."""
    probabilities = special.softmax(logits.astype(np.float64), axis=-1)
    for row in probabilities:
        order = np.argsort(-row, kind="stable")[:top].tolist()
        yield [(classes[i], float(row[i])) for i in order]


def _csv(found: Predictions) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path, top in found.top.items():
        for rank, (klass, probability) in enumerate(top, start=1):
            writer.writerow((path, rank, klass, f"{probability:.6g}"))
    return text.getvalue()


def _json(found: Predictions, model: Predictor) -> str:
    described = model.described
    content = {
        "model": model.source,
        "method": described.method,
        "seed": described.seed,
        "images": [
            {"file": path, "top": [{"class": name, "probability": share} for name, share in top]}
            for path, top in found.top.items()
        ],
        "failed": [{"file": path, "reason": why} for path, why in found.failed.items()],
    }
    return json.dumps(results.finite(content), indent=2, allow_nan=False) + "\n"


def _require_writable(path: pathlib.Path) -> None:
    """Raises `SettingError` where no file can be written, before any work is done."""
    require(not path.is_dir(), f"{path} is a folder; set --out to a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    writable = os.access(path.parent, os.W_OK)
    require(writable, f"{path.parent} may not be written to; set --out to another place.")


def _unwritable(path: pathlib.Path, error: OSError) -> SettingError:
    return SettingError(
        f"{path} cannot be written ({error.strerror or error}): make room there, or set --out."
    )


def _write(path: pathlib.Path | None, text: str) -> None:
    encoded = text.encode(errors="backslashreplace")  # Names on disk may be no UTF-8.
    if path is None:
        sys.stdout.buffer.write(encoded)
        sys.stdout.flush()
        return
    try:
        with files.replacing(path) as file:
            file.write(encoded)
    except OSError as error:
        raise _unwritable(path, error) from error


def _printable(text: str) -> str:
    """A name that a terminal takes for nothing but a name."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Or the log begins with a warning that they are not.
    logging.use_absl_handler()
    sys.exit(main())
