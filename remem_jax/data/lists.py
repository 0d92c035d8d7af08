"""A user's own images that a CSV or a file of JSON lines lists."""

import csv
import io
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import own
from remem_jax.data.sources import TRAIN, Source

LISTS = (".csv", ".jsonl", ".ndjson")
_WHOLE = re.compile("-?[0-9]+")


def listing(path: str) -> Source:
    """Images that a CSV or a file of JSON lines lists, with their classes and, maybe, splits.

    A CSV starts with the names of its columns, `path` and `label` and maybe `split`, in any order,
    among others; JSON lines are objects with these keys. Paths are relative to the list. Labels
    are names of classes, which are sorted, or all of them whole numbers, which are sorted as such.
    Splits are train, validation (val, valid) and test; where the list names no test images, a
    stratified fifth of train becomes the test split. Lines that say the same again count once.

    Raises:
        SettingError: If there is no such list, a line cannot be understood or contradicts another,
            or a file is missing.
    """
    place = pathlib.Path(path).expanduser()
    if not path or not place.is_file():
        raise SettingError(
            f"There is no file {path!r}; set config.data.path to a list ({', '.join(LISTS)})."
        )
    checks.require(
        place.suffix.lower() in LISTS,
        f"{path} must be a list that ends in {', '.join(LISTS)}; set config.data.path.",
    )
    rows = _distinct(path, _rows(path, place))
    checks.require(len(rows) > 0, f"{path} lists no images; mend it, or set config.data.path.")
    found: dict[str, list[own.File]] = {}
    for row in rows:
        found.setdefault(_split_of(path, row, rows[0]), []).append(_listed(path, place.parent, row))
    checks.require(
        TRAIN in found, f"{path} lists no images of the train split; mend it, or config.data.path."
    )
    names = {row.label for row in rows}
    numbered = all(_WHOLE.fullmatch(name) for name in names)
    classes = sorted(names, key=int) if numbered else sorted(names)
    return own.of_files(place.stem, place.parent, own.with_test(found), classes)


class _Row(NamedTuple):
    """A line of a list; `split` is empty where it has none."""

    line: int
    path: str
    label: str
    split: str


def _rows(path: str, place: pathlib.Path) -> Iterator[_Row]:
    """Rows of a list, not compared with each other yet."""
    try:
        text = place.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"{path} cannot be read as UTF-8 text ({error}); set config.data.path."
        ) from error
    records = _csv(path, text) if place.suffix.lower() == ".csv" else _json_lines(path, text)
    for line, record in records:
        split = record.get("split")
        yield _Row(
            line,
            _field(path, line, record, "path"),
            _label(_field(path, line, record, "label").strip()),
            "" if split is None else str(split).strip(),
        )


def _label(text: str) -> str:
    """A class name; of a whole number, the one way to write it."""
    return str(int(text)) if _WHOLE.fullmatch(text) else text


def _field(path: str, line: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    whole = name == "label" and isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (isinstance(value, str) and value.strip())):
        wanted = "text" if name == "path" else "a class name or a whole number"
        came = "none" if value is None else repr(value)
        raise _wrong(path, line, f"{name} must be {wanted}, got {came}")
    return str(value)


def _wrong(path: str, line: int, what: str) -> SettingError:
    return SettingError(f"{path}, line {line}: {what}; mend the list, or set config.data.path.")


def _csv(path: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("path", "label") if name not in header]
        if missing:
            raise _wrong(
                path,
                1,
                f"the first line must name the columns path, label and maybe split, parted by "
                f"commas; lacks {' and '.join(missing)}",
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise _wrong(
                    path, reader.line_num, f"expected {len(header)} fields, got {len(cells)}"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"no CSV ({error})") from error


def _json_lines(path: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): JSON may hold Unicode's other ends of lines as they are.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except ValueError as error:
            raise _wrong(path, line, f"no JSON ({error})") from error
        if not isinstance(record, dict):
            raise _wrong(path, line, "expected an object with path and label")
        yield line, record


def _distinct(path: str, rows: Iterator[_Row]) -> list[_Row]:
    """Rows that name different files."""
    first: dict[str, _Row] = {}
    repeated = 0
    for row in rows:
        same = first.setdefault(os.path.normpath(row.path), row)
        if same is row:
            continue
        repeated += 1
        for name, one, other in (
            ("labels", same.label, row.label),
            ("splits", same.split, row.split),
        ):
            if one != other:
                raise _wrong(
                    path,
                    row.line,
                    f"{row.path!r} has two {name}, {other!r} and, on line {same.line}, {one!r}",
                )
    if repeated:
        logging.warning("%s: %d lines repeat others and count once.", path, repeated)
    return list(first.values())


def _split_of(path: str, row: _Row, first: _Row) -> str:
    """The split of a row; train where the list has no splits."""
    if not row.split and not first.split:
        return TRAIN
    if row.split.lower() not in own.SPLITS:
        raise _wrong(
            path, row.line, f"split must be one of {', '.join(own.SPLITS)}; got {row.split!r}"
        )
    if not first.split:
        raise _wrong(path, first.line, "no split, though other lines have one")
    return own.SPLITS[row.split.lower()]


def _listed(path: str, root: pathlib.Path, row: _Row) -> own.File:
    try:
        found = (root / row.path).stat()
    except (OSError, ValueError):  # The latter of a NUL.
        raise _wrong(path, row.line, f"there is no file {row.path!r}") from None
    if not stat.S_ISREG(found.st_mode):
        raise _wrong(path, row.line, f"{row.path!r} is not a file")
    return own.File(row.path, row.label, found.st_size, found.st_mtime_ns)
