"""Writes predictions batch by batch.

Rows go to standard output at once. A file gets its name when it is complete; until then, each image
is a line of PATH.partial, from which the same command resumes.
"""

import dataclasses
import json
import os
import pathlib
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.checks import SettingError, require
from remem_jax.export import command, destinations, options
from remem_jax.export.predictors import Predictor
from remem_jax.storage import files, results, spreadsheets, streams

FORMATS = options.PREDICTION_FORMATS
COLUMNS = ("file", "rank", "class", "probability")
_KIND = "predictions"
# The beginning of a file of predictions, in either format.
_BEGINNING = re.compile(rf'{",".join(COLUMNS)}\n|\{{\n  "model": ".*",\n  "method": ')

Top = list[tuple[str, float]]  # Classes and their probabilities, likeliest first.


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for images.

    Attributes:
        top: Likeliest classes by file, in the given order of files.
        failed: Reason by file or folder without a prediction.
        stamps: Result of `stamp` by file, from before it was read.
    """

    top: dict[str, Top]
    failed: dict[str, str]
    stamps: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class Output:
    """Standard output: CSV batch by batch, JSON at the end."""

    def __init__(self, form: str, model: Predictor) -> None:
        """Stores the format and the model; writes nothing yet."""
        self._form, self._model = form, model
        self._done = Predictions({}, {})
        self._begun = False

    def known(self, paths: Sequence[pathlib.Path]) -> dict[str, Top]:
        """Returns no earlier predictions: standard output has none."""
        del paths
        return {}

    def add(self, new: Predictions) -> None:
        """Adds the predictions of a batch."""
        if self._form == "csv" and new.top:
            self._write(_csv(new, head=not self._begun))
            self._begun = True
        self._done.top.update(new.top)
        self._done.failed.update(new.failed)

    def finish(self, predictions: Predictions) -> None:
        """Writes what `add` has not written."""
        if self._form == "json":
            self._write(_json(predictions, self._model))

    def stopped(self, error: BaseException, images: int) -> BaseException:
        """Writes the predictions so far, if possible; returns the error to raise."""
        if isinstance(error, BrokenPipeError):
            return error
        if isinstance(error, OSError):
            streams.abandon(sys.stdout)
            return SettingError(
                f"Standard output cannot be written ({error.strerror or error}): "
                f"{files.advice(error.errno)}, or set --out to a file."
            )
        done = len(self._done.top)
        if done and self._form == "json":
            self.finish(self._done)
        return command.StoppedError(
            f"stopped; {done} of {images} images were written. With --out, the same command could "
            "resume.",
            command.exit_code(error),
        )

    def _write(self, text: str) -> None:
        sys.stdout.buffer.write(_encoded(text))
        sys.stdout.flush()


class File:
    """A file, with PATH.partial until it is complete."""

    def __init__(self, path: pathlib.Path, form: str, model: Predictor, top: int) -> None:
        """Reads the partial file of an earlier start of the same command.

        Args:
            path: Path of the file.
            form: One of `FORMATS`.
            model: Model that makes the predictions.
            top: Number of classes for each image.

        Raises:
            SettingError: If the partial file is of another command.
        """
        self._path, self._form, self._model = path, form, model
        self._partial = partial_path(path)
        model_key = destinations.digest(pathlib.Path(model.source))
        self._head = {"remem_jax": _KIND, "model": model_key, "top": top}
        self._earlier = _read_partial(self._partial, self._head)
        self._done = 0
        self._file = -1

    def known(self, paths: Sequence[pathlib.Path]) -> dict[str, Top]:
        """Returns earlier predictions for files that have not changed since."""
        unchanged = [
            str(path)
            for path in paths
            if str(path) in self._earlier and self._earlier[str(path)]["stamp"] == stamp(path)
        ]
        self._done = len(unchanged)
        if unchanged:
            streams.print_error(
                f"remem_jax: {len(unchanged)} of {len(paths)} predictions are from {self._partial}."
            )
        return {
            name: [(class_name, share) for class_name, share in self._earlier[name]["top"]]
            for name in unchanged
        }

    def add(self, new: Predictions) -> None:
        """Appends the predictions of a batch to the partial file."""
        lines = [
            {"file": name, "stamp": new.stamps.get(name), "top": top}
            for name, top in new.top.items()
        ]
        if not lines:
            return
        if self._file < 0:
            self._file = _open_to_append(self._partial)
            if not os.fstat(self._file).st_size:
                lines = [self._head, *lines]
        _write_all(self._file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        self._done += len(new.top)

    def finish(self, predictions: Predictions) -> None:
        """Writes the complete file, and removes the partial one."""
        text = (
            _csv(predictions, head=True) if self._form == "csv" else _json(predictions, self._model)
        )
        with destinations.workspace(self._path) as folder:
            whole = folder / "predictions"
            with whole.open("wb") as file:
                file.write(_encoded(text))
                file.flush()
                os.fsync(file.fileno())
            require_writable(self._path)  # Another file may have appeared meanwhile.
            whole.replace(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._partial.unlink(missing_ok=True)

    def stopped(self, error: BaseException, images: int) -> BaseException:
        """Returns the error to raise when the work ends early."""
        reason, code = "stopped", 1
        if isinstance(error, OSError):
            reason += f" ({error.strerror or error})"
        else:
            code = command.exit_code(error)
        if not self._done:
            return command.StoppedError(f"{reason}; no image was finished.", code)
        return command.StoppedError(
            f"{reason}; {self._done} of {images} images are in {self._partial}; the same command "
            "resumes.",
            code,
        )


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the partial file."""
    return path.with_name(f"{path.name}.partial")


def require_writable(path: pathlib.Path) -> None:
    """Raises `SettingError` unless predictions may be written to a path; see `destinations`."""
    destinations.require_writable_text(path, lambda head: bool(_BEGINNING.match(head)))


def stamp(path: pathlib.Path) -> list[int] | None:
    """Returns the size of a file and its modification time in nanoseconds; None if unknown."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_partial(path: pathlib.Path, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Reads a partial file; returns the last line of each image, or nothing without a file."""
    if not os.path.lexists(path):
        return {}
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
        text = path.read_text(encoding="utf-8", errors="replace") if is_file else "?"
        lines = text.split("\n")
    except OSError as error:
        raise destinations.unwritable(path, error) from error
    if lines == [""]:
        return {}
    first, *rest = map(_parsed, lines)
    require(
        first.get("remem_jax") == _KIND,
        f"{path} exists and is not of this command, so it is not replaced; set --out to another "
        "place.",
    )
    require(
        first == head,
        f"{path} holds predictions of another model or --top: remove it, or set --out to another "
        "place.",
    )
    return {line["file"]: line for line in rest if {"file", "stamp", "top"} <= line.keys()}


def _parsed(line: str) -> dict[str, Any]:
    """Parses a line of JSON; returns an empty dict for a line that a kill has cut."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _open_to_append(path: pathlib.Path) -> int:
    """Opens a file to append lines, and ends a line that was cut."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        _write_all(file, b"\n")
    return file


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _csv(predictions: Predictions, *, head: bool) -> str:
    rows = [
        (path, rank, class_name, f"{probability:.6g}")
        for path, top in predictions.top.items()
        for rank, (class_name, probability) in enumerate(top, start=1)
    ]
    return spreadsheets.text([COLUMNS, *rows] if head else rows)


def _json(predictions: Predictions, model: Predictor) -> str:
    described = model.described
    content = {
        "model": model.source,
        "method": described.method,
        "seed": described.seed,
        "identity": described.identity,
        "run": described.run,
        "images": [
            {"file": path, "top": [{"class": name, "probability": share} for name, share in top]}
            for path, top in predictions.top.items()
        ],
        "failed": [{"file": path, "reason": reason} for path, reason in predictions.failed.items()],
    }
    return json.dumps(results.finite(content), indent=2, allow_nan=False) + "\n"


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # File names may not be UTF-8.
