"""Opens users' images listed in a CSV file or a file of JSON lines."""

import csv
import decimal
import io
import json
import os
import pathlib
import re
import stat
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data.custom import folders, group_names, split_names, walk
from remem_jax.data.sources import TRAIN, Source

LISTS = (".csv", ".jsonl", ".ndjson")
_WHOLE = re.compile("-?[0-9]+")


def listing(
    path: str,
    root: str = "",
    *,
    enough: bool = True,
    find_groups: group_names.Finder | None = None,
) -> Source:
    """Opens a list of images with their classes and, optionally, splits.

    The first line of a CSV names its columns: `path`, `label` and optionally `split` and `group`,
    in any order, among others. JSON lines are objects with these keys. Paths are relative to the
    list, or to `root` if that is given, or begin with ~. Labels are names of classes as they are
    written: 1 and 01 are two classes. They are sorted as numbers if all are whole numbers, else as
    text. Splits are train, validation and test, by the names of `split_names`. Images of one group
    are held out together. Repeated lines count once.

    Args:
        path: The list.
        root: Folder of the relative paths; empty for that of the list.
        enough: Whether each class must have enough images to train on.
        find_groups: Finds groups in the paths as they are listed; None if there are none, or the
            list has them.

    Raises:
        SettingError: If there is no such list, a line is invalid or contradicts another, a file
            is missing, or classes are ambiguous, cannot be stored or have too few images.
    """
    place = pathlib.Path(os.path.expanduser(path))  # noqa: PTH111  expanduser() of pathlib raises for unknown users.
    if not path or not place.is_file():
        raise SettingError(
            f"There is no file {path!r}; set config.data.path to a list ({', '.join(LISTS)})."
        )
    checks.require(
        place.suffix.lower() in LISTS,
        f"{path} must be a list that ends in {', '.join(LISTS)}; set config.data.path.",
    )
    base = pathlib.Path(os.path.expanduser(root)) if root else place.parent  # noqa: PTH111
    checks.require(
        base.is_dir(),
        f"There is no folder {root!r} of the images in {path}; set config.data.root.",
    )
    rows = [*_rows(path, place)]
    checks.require(len(rows) > 0, f"{path} lists no images; mend it, or set config.data.path.")
    checks.require(
        find_groups is None or not any(row.group for row in rows),
        f"config.data.group_pattern finds groups in paths, but {path} has a column of groups: "
        "leave the setting empty, or remove the column.",
    )
    by_split: dict[str, list[folders.File]] = {}
    first: dict[Hashable, _Listed] = {}
    for row in rows:
        listed, key = _listed(path, base, row, rows[0])
        before = first.setdefault(key, listed)
        if before is listed:
            by_split.setdefault(listed.split, []).append(listed.file)
        else:
            _require_consistent(path, before, listed)
    checks.require(
        TRAIN in by_split,
        f"{path} lists no images of the train split; mend it, or config.data.path.",
    )
    if enough:
        folders.require_enough(by_split)
    by_split, unmatched = folders.grouped(by_split, find_groups)
    repeated = len(rows) - len(first)
    return folders.of_files(
        place.stem,
        base,
        by_split,
        _sorted({row.label for row in rows}),
        where=path,
        skipped_files={walk.REPEATED: repeated} if repeated else {},
        warnings=unmatched,
    )


def _sorted(names: set[str]) -> list[str]:
    """Sorts as numbers, of any length, if all are whole numbers; else as text."""
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (decimal.Decimal(name), name))
    return sorted(names)


class _Row(NamedTuple):
    """A line of a list; `split` and `group` are "" if it has none."""

    line: int
    path: str
    label: str
    split: str
    group: str


class _Listed(NamedTuple):
    """A line of a list, with the split and file that it names."""

    row: _Row
    split: str
    file: folders.File


class _Number(str):
    """A whole number of JSON, as it is written, of any length."""

    __slots__ = ()


def _rows(path: str, place: pathlib.Path) -> Iterator[_Row]:
    """Yields the rows of a list, before they are compared with each other."""
    try:
        text = place.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"{path} cannot be read as UTF-8 text ({error}); set config.data.path."
        ) from error
    records = _csv(path, text) if place.suffix.lower() == ".csv" else _json_lines(path, text)
    for line, record in records:
        split, group = record.get("split"), record.get("group")
        yield _Row(
            line,
            _field(path, line, record, "path"),
            _field(path, line, record, "label").strip(),
            "" if split is None else str(split).strip(),
            "" if group is None else str(group).strip(),
        )


def _field(path: str, line: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    number = name == "path" and isinstance(value, _Number)
    if number or not isinstance(value, str) or not value.strip():
        expected = "text" if name == "path" else "a class name or a whole number"
        given = "none" if value is None else _short(value)
        raise _wrong(path, line, f"{name} must be {expected}, got {given}")
    return str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _wrong(path: str, line: int, problem: str) -> SettingError:
    return SettingError(f"{path}, line {line}: {problem}; mend the list, or set config.data.path.")


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
        for name in ("path", "label", "split", "group"):
            if header.count(name) > 1:
                raise _wrong(path, 1, f"two columns have the name {name}")
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
    # Not splitlines(): JSON may contain Unicode's other line separators.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, parse_int=_number)
        except (ValueError, RecursionError) as error:
            raise _wrong(path, line, f"no JSON ({error})") from error
        if not isinstance(record, dict):
            raise _wrong(path, line, "expected an object with path and label")
        yield line, record


def _number(text: str) -> _Number:
    return _Number("0" if text == "-0" else text)


def _require_consistent(path: str, before: _Listed, listed: _Listed) -> None:
    """Checks that two lines of one file do not contradict each other."""
    by = "" if before.row.path == listed.row.path else f" as {before.row.path!r}"
    for name, earlier, later in (
        ("labels", before.row.label, listed.row.label),
        ("splits", before.split, listed.split),
        ("groups", before.row.group, listed.row.group),
    ):
        if earlier != later:
            raise _wrong(
                path,
                listed.row.line,
                f"{listed.row.path!r} has two {name}, {_short(later)} and, on line "
                f"{before.row.line}{by}, {_short(earlier)}",
            )


def _split_of(path: str, row: _Row, first: _Row) -> str:
    """Returns the split of a row; train if the list has no splits."""
    if not row.split and not first.split:
        return TRAIN
    split = split_names.split_of(row.split)
    if split in (None, split_names.UNCLEAR):
        raise _wrong(
            path,
            row.line,
            f"split must be one of {split_names.known_names()}; got {_short(row.split)}",
        )
    if not first.split:
        raise _wrong(path, first.line, "no split, though other lines have one")
    return split


def _listed(path: str, root: pathlib.Path, row: _Row, first: _Row) -> tuple[_Listed, Hashable]:
    """Returns the split and file of a row, and a key that is equal for all rows of one file."""
    split = _split_of(path, row, first)
    name = os.path.expanduser(row.path)  # noqa: PTH111  expanduser() of pathlib raises for unknown users.
    place = os.path.join(root, name)  # noqa: PTH118
    try:
        status = os.stat(place)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError if the path contains a NUL.
        raise _wrong(path, row.line, f"there is no file {row.path!r}") from None
    if not stat.S_ISREG(status.st_mode):
        raise _wrong(path, row.line, f"{row.path!r} is not a file")
    file = folders.File(name, row.label, status, row.group)
    return _Listed(row, split, file), folders.identity(status, place)
