"""What a model says of images, written as it comes.

To standard output rows go as they are made. A file gets its name when it is whole; until then each
image is a line of PATH.partial, from which the same command goes on.
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
from remem_jax.export import command, destinations
from remem_jax.export.predictors import Predictor
from remem_jax.storage import files, results, spreadsheets, streams

FORMATS = ("csv", "json")
COLUMNS = ("file", "rank", "class", "probability")
_KIND = "predictions"
# How a file of ours begins, of either format.
_OURS = re.compile(rf'{",".join(COLUMNS)}\n|\{{\n  "model": ".*",\n  "method": ')

Top = list[tuple[str, float]]  # Classes and their probabilities, likeliest first.


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a student says of images.

    Attributes:
        top: By file, in the order in which the files were given: the likeliest classes.
        failed: By file or folder, why there is nothing to say of it.
        stamps: By file, its size and when it was changed, as they were when it was read.
    """

    top: dict[str, Top]
    failed: dict[str, str]
    stamps: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class Output:
    """Standard output: rows of CSV as they come, JSON in the end."""

    def __init__(self, form: str, model: Predictor) -> None:
        """Nothing is written yet."""
        self._form, self._model = form, model
        self._done = Predictions({}, {})
        self._begun = False

    def known(self, paths: Sequence[pathlib.Path]) -> dict[str, Top]:
        """What an earlier start has left: nothing."""
        del paths
        return {}

    def add(self, new: Predictions) -> None:
        """Takes a batch."""
        if self._form == "csv" and new.top:
            self._write(_csv(new, head=not self._begun))
            self._begun = True
        self._done.top.update(new.top)
        self._done.failed.update(new.failed)

    def finish(self, found: Predictions) -> None:
        """Writes what is left to write."""
        if self._form == "json":
            self._write(_json(found, self._model))

    def stopped(self, error: BaseException, images: int) -> BaseException:
        """What to raise where the work ends early; what was done is written, where it can be."""
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
            f"stopped; {done} of {images} images were written. With --out the same command would "
            "go on.",
            command.exit_code(error),
        )

    def _write(self, text: str) -> None:
        sys.stdout.buffer.write(_encoded(text))
        sys.stdout.flush()


class File:
    """A file, and beside it PATH.partial."""

    def __init__(self, path: pathlib.Path, form: str, model: Predictor, top: int) -> None:
        """Reads what an earlier start of the same command has left.

        Args:
            path: The file.
            form: One of `FORMATS`.
            model: Whose predictions they are.
            top: Classes of each image that are kept.

        Raises:
            SettingError: If something is there that is not of the same command.
        """
        self._path, self._form, self._model = path, form, model
        self._partial = partial_path(path)
        model_key = destinations.digest(pathlib.Path(model.source))
        self._head = {"remem_jax": _KIND, "model": model_key, "top": top}
        self._found = _read_partial(self._partial, self._head)
        self._done = 0
        self._file = -1

    def known(self, paths: Sequence[pathlib.Path]) -> dict[str, Top]:
        """What an earlier start has said of files that are unchanged since."""
        same = [
            str(path)
            for path in paths
            if str(path) in self._found and self._found[str(path)]["stamp"] == stamp(path)
        ]
        self._done = len(same)
        if same:
            streams.print_error(
                f"remem_jax: {len(same)} of {len(paths)} images are taken from {self._partial}."
            )
        return {name: [(one, share) for one, share in self._found[name]["top"]] for name in same}

    def add(self, new: Predictions) -> None:
        """Writes a batch down."""
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

    def finish(self, found: Predictions) -> None:
        """Gives the file its name, and removes the partial one."""
        text = _csv(found, head=True) if self._form == "csv" else _json(found, self._model)
        with destinations.workspace(self._path) as folder:
            whole = folder / "predictions"
            with whole.open("wb") as file:
                file.write(_encoded(text))
                file.flush()
                os.fsync(file.fileno())
            require_writable(self._path)  # Nobody else's may have come there.
            whole.replace(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._partial.unlink(missing_ok=True)

    def stopped(self, error: BaseException, images: int) -> BaseException:
        """What to raise where the work ends early."""
        reason, code = "stopped", 1
        if isinstance(error, OSError):
            reason += f" ({error.strerror or error})"
        else:
            code = command.exit_code(error)
        if not self._done:
            return command.StoppedError(f"{reason}; no image was finished.", code)
        return command.StoppedError(
            f"{reason}; {self._done} of {images} images are in {self._partial}; the same command "
            "goes on.",
            code,
        )


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Where predictions are until the file is whole."""
    return path.with_name(f"{path.name}.partial")


def require_writable(path: pathlib.Path) -> None:
    """Raises `SettingError` unless predictions may be written there; see `destinations`."""
    destinations.require_writable_text(path, lambda head: bool(_OURS.match(head)))


def stamp(path: pathlib.Path) -> list[int] | None:
    """Size of a file and when it was changed, in nanoseconds; None if it cannot be told."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _read_partial(path: pathlib.Path, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Lines of a partial file by image, the last of each; none if there is no file."""
    if not os.path.lexists(path):
        return {}
    try:
        plain = stat.S_ISREG(path.lstat().st_mode)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if plain else []
    except OSError as error:
        raise destinations.unwritable(path, error) from error
    if plain and lines == [""]:
        return {}
    first, *rest = map(_parsed, lines or [""])
    require(
        first.get("remem_jax") == _KIND,
        f"{path} is there and is not of this command: it stays; set --out to another place.",
    )
    require(
        first == head,
        f"{path} holds predictions of another model or --top: remove it, or set --out to another "
        "place.",
    )
    return {line["file"]: line for line in rest if {"file", "stamp", "top"} <= line.keys()}


def _parsed(line: str) -> dict[str, Any]:
    """A line of JSON; nothing of one that a kill has cut."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _open_to_append(path: pathlib.Path) -> int:
    """Opens a file of lines at its end, and ends a line that was cut."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        _write_all(file, b"\n")
    return file


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _csv(found: Predictions, *, head: bool) -> str:
    rows = [
        (path, rank, classes, f"{probability:.6g}")
        for path, top in found.top.items()
        for rank, (classes, probability) in enumerate(top, start=1)
    ]
    return spreadsheets.text([COLUMNS, *rows] if head else rows)


def _json(found: Predictions, model: Predictor) -> str:
    described = model.described
    content = {
        "model": model.source,
        "method": described.method,
        "seed": described.seed,
        "identity": described.identity,
        "run": described.run,
        "images": [
            {"file": path, "top": [{"class": name, "probability": share} for name, share in top]}
            for path, top in found.top.items()
        ],
        "failed": [{"file": path, "reason": why} for path, why in found.failed.items()],
    }
    return json.dumps(results.finite(content), indent=2, allow_nan=False) + "\n"


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # Names on disk may be no UTF-8.
