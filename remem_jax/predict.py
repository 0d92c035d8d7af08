"""Classifies images with a run's student or an export of it.

remem predict RUN photographs/ > classes.csv
remem predict RUN photographs/ --out=classes.csv    # resumes if stopped
remem predict RUN/export/remem_student.onnx 'photographs/**/*.jpg' --format=json
"""

from remem_jax.export import command

if __name__ == "__main__":
    command.begin()  # Before imports that take seconds.

import argparse
import sys
from collections import Counter

from absl import logging

from remem_jax import display
from remem_jax.checks import at_least, printable, require
from remem_jax.export import options
from remem_jax.storage import streams


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    return command.run(
        lambda: _predict(_parser().parse_args(argv)), stopped="stopped before the first image"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remem predict",
        description="Classifies images with the student of a run, or with an export of it.",
    )
    add = parser.add_argument
    add("model", type=command.path, help="folder of a finished run, or an export")
    add("images", nargs="+", help="files, folders (searched recursively) and patterns")
    add("--top", type=int, default=5, help="number of classes for each image (default: 5)")
    add("--format", choices=options.PREDICTION_FORMATS, default="csv", help="default: csv")
    add("--out", type=command.path, help="output file (default: standard output)")
    add(
        "--batch_size",
        "--batch-size",
        type=int,
        default=options.BATCH_SIZE,
        help=f"default: {options.BATCH_SIZE}; ignored by an export with a fixed batch size",
    )
    add("--method", default="", help="method of the run (default: the best on validation)")
    add("--seed", type=int, help="student seed of the run (default: the best on validation)")
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    with display.opened():
        _classify(arguments)


def _classify(arguments: argparse.Namespace) -> None:
    at_least("--top", arguments.top, 1)
    at_least("--batch_size", arguments.batch_size, 1)
    command.require_model(arguments.model)
    # Imported after the checks, because they take seconds.
    from remem_jax.data.custom import walk
    from remem_jax.export import images, inference, predictions, predictors

    if arguments.out is not None:
        predictions.require_writable(arguments.out)
    skipped: Counter[str] = Counter()
    paths, empty = images.find(arguments.images, skipped)
    if walk.is_remarkable(skipped):
        streams.print_error(f"remem_jax: {walk.describe_skipped(skipped, ())}")
    model = predictors.open_any(arguments.model, method=arguments.method, seed=arguments.seed)
    logging.set_verbosity(logging.INFO)  # For the progress; opening a model would log more.
    if arguments.out is not None or not sys.stdout.isatty():  # Else, predictions are shown there.
        display.use_terminal()
    output = (
        predictions.Output(arguments.format, model)
        if arguments.out is None
        else predictions.File(arguments.out, arguments.format, model, arguments.top)
    )
    try:
        new = inference.predict(
            model,
            paths,
            top=arguments.top,
            batch_size=arguments.batch_size,
            known=output.known(paths),
            keep=output.add,
        )
        predicted = predictions.Predictions(new.top, empty | new.failed)
        reasons = "".join(
            f"\n  {printable(path)} {reason}" for path, reason in predicted.failed.items()
        )
        if reasons:
            streams.print_error(f"remem_jax: skipped ({len(predicted.failed)}):{reasons}")
        require(len(predicted.top) > 0, "None of the images can be read: give others.")
        output.finish(predicted)
    except (KeyboardInterrupt, OSError) as error:
        raise output.stopped(error, len(paths)) from error


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # Avoids absl's warning about flags that are not parsed.
    logging.use_absl_handler()
    sys.exit(main())
