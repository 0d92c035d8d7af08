"""Says which classes images are of, by a run's student or by an export of it.

python -m remem_jax.predict RUN photographs/ > found.csv
python -m remem_jax.predict RUN photographs/ --out=found.csv    # goes on where it was stopped
python -m remem_jax.predict RUN/export/remem_student.onnx 'photographs/**/*.jpg' --format=json
"""

from remem_jax.export import command

if __name__ == "__main__":
    command.begin()  # Before what takes seconds to import.

import argparse
import contextlib
import glob
import logging as python_logging
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from absl import flags, logging
from scipy import special

from remem_jax.checks import SettingError, at_least, require
from remem_jax.data.custom import walk
from remem_jax.data.images import formats
from remem_jax.export import predictions, predictors, runs
from remem_jax.export.predictions import Predictions
from remem_jax.export.predictors import Predictor
from remem_jax.storage import logs, streams


class _Image(NamedTuple):
    """An image that was read.

    Attributes:
        path: Its file.
        pixels: As the model sees it, or why there are none.
        stamp: See `predictions.stamp`; taken before it was read.
    """

    path: str
    pixels: np.ndarray | str
    stamp: list[int] | None


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    return command.run(
        lambda: _predict(_parser().parse_args(argv)), stopped="stopped before the first image"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remem_jax.predict",
        description="Classifies images by the student of a run, or by an export of it.",
    )
    add = parser.add_argument
    add("model", type=command.path, help="folder of a finished run, or what an export wrote")
    add("images", nargs="+", help="files, folders with all that is in them, and patterns")
    add("--top", type=int, default=5, help="classes of each image; at most all")
    add("--format", choices=predictions.FORMATS, default="csv")
    add("--out", type=command.path, help="the file; else standard output")
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
    if asked.out is not None:
        predictions.require_writable(asked.out)
    skipped_files: Counter[str] = Counter()
    paths, empty = find(asked.images, skipped_files)
    if walk.is_remarkable(skipped_files):
        streams.print_error(f"remem_jax: {walk.describe_skipped(skipped_files, ())}")
    model = predictors.open_any(asked.model, method=asked.method, seed=asked.seed)
    logging.set_verbosity(logging.INFO)  # Of the progress; what opens a model says more.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # Of devices there are not.
    to = (
        predictions.Output(asked.format, model)
        if asked.out is None
        else predictions.File(asked.out, asked.format, model, asked.top)
    )
    try:
        found = predict(
            model,
            paths,
            top=asked.top,
            batch_size=asked.batch_size,
            known=to.known(paths),
            keep=to.add,
        )
        found = Predictions(found.top, empty | found.failed)
        told = "".join(f"\n  {_printable(path)} {why}" for path, why in found.failed.items())
        if told:
            streams.print_error(f"remem_jax: left out ({len(found.failed)}):{told}")
        require(len(found.top) > 0, "There is no image that can be read: give others.")
        to.finish(found)
    except (KeyboardInterrupt, OSError) as error:
        raise to.stopped(error, len(paths)) from error


def find(
    given: Sequence[str], skipped_files: Counter[str] | None = None
) -> tuple[list[pathlib.Path], dict[str, str]]:
    """Files of images, each of them once.

    Args:
        given: Files; folders, of which all images are taken, also those in folders of theirs;
            patterns of either, with "**" for any number of folders.
        skipped_files: Counts what is not taken of folders, by kind.

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
        here = [one for place in places for one in _files(place, skipped_files)]
        if not here:
            empty[name] = f"holds no images ({formats.suffix_list()})."
        for one in here:
            # Path.resolve raises of links in a circle.
            found.setdefault(os.path.realpath(one), one)
    return list(found.values()), empty


def _files(path: pathlib.Path, skipped_files: Counter[str] | None) -> list[pathlib.Path]:
    return runs.image_paths(path, skipped_files) if path.is_dir() else [path]


def predict(
    model: Predictor,
    paths: Sequence[pathlib.Path],
    *,
    top: int,
    batch_size: int,
    known: Mapping[str, predictions.Top] | None = None,
    keep: Callable[[Predictions], None] | None = None,
) -> Predictions:
    """Looks at images that students see as in evaluation; the next are read while it looks.

    Args:
        model: From `predictors.open_any`.
        paths: Files of images. What cannot be read is noted, and passed over.
        top: Likeliest classes that are kept of each; at most all.
        batch_size: Images at once; an export of a fixed batch has that one.
        known: What an earlier start has said of some of the files, which are not read again.
        keep: Is given what is new of each batch, as it comes.
    """
    found, known = Predictions({}, {}), known or {}
    left = [path for path in paths if str(path) not in known]
    batch_size = model.described.form.batch or min(batch_size, max(len(left), 1))
    progress = logs.Progress("predict", first_step=len(known), steps=len(paths), unit="image")
    with contextlib.closing(progress):
        for batch in _batches(model, left, batch_size):
            new = _looked_at(model, batch, top=top, batch_size=batch_size)
            if keep is not None:
                keep(new)
            found.top.update(new.top)
            found.failed.update(new.failed)
            progress(len(known) + len(found.top) + len(found.failed))
    said = {**known, **found.top}
    top_of = {str(one): said[str(one)] for one in paths if str(one) in said}
    return Predictions(top_of, found.failed)


def _looked_at(
    model: Predictor, batch: Sequence[_Image], *, top: int, batch_size: int
) -> Predictions:
    new = Predictions({}, {})
    new.stamps.update((one.path, one.stamp) for one in batch if one.stamp)
    new.failed.update((one.path, one.pixels) for one in batch if isinstance(one.pixels, str))
    pixels = {one.path: one.pixels for one in batch if not isinstance(one.pixels, str)}
    if pixels:
        logits = model.predict(np.stack(list(pixels.values())), at_once=batch_size)
        new.top.update(zip(pixels, _likeliest(logits, model.classes, top), strict=True))
    return new


def _batches(
    model: Predictor, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[list[_Image]]:
    """Files and their pixels, or why there are none; in threads, one batch ahead."""
    steps = model.described.preprocessing

    def read(path: pathlib.Path) -> _Image:
        stamp = predictions.stamp(path)
        try:
            return _Image(str(path), runs.read_image(path, steps), stamp)
        except SettingError as error:
            return _Image(str(path), str(error).removeprefix(f"{path} "), stamp)

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


def _printable(text: str) -> str:
    """A name that a terminal takes for nothing but a name."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Or the log begins with a warning that they are not.
    logging.use_absl_handler()
    sys.exit(main())
