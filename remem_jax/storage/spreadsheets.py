"""Tables as CSV that spreadsheets take for text and numbers, never for formulas."""

import csv
import io
from collections.abc import Iterable
from typing import Any

# What a spreadsheet takes for the beginning of a formula, or skips before one; full-width letters
# too. Source: owasp.org/www-community/attacks/CSV_Injection.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV, lines ended by a line feed; each cell as `cell` has it."""
    return "".join(map(_line, rows))


def cell(value: Any) -> Any:
    """A value as a cell: a text that would be a formula gets an apostrophe before it.

    Numbers stay as they are, also those that are texts ("-0.5").
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _line(row: Iterable[Any]) -> str:
    file = io.StringIO(newline="")
    # Only what ends a line is quoted: a carriage return within a cell must be, too.
    csv.writer(file, lineterminator="\r\n").writerow([cell(value) for value in row])
    return file.getvalue().removesuffix("\r\n") + "\n"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value.isascii() and value == value.strip()
