"""CSV tables that spreadsheets read as text and numbers, never as formulas."""

import csv
import io
from collections.abc import Iterable
from typing import Any

# Characters that start a formula in spreadsheets, or are skipped before one; full-width ones too.
# Source: owasp.org/www-community/attacks/CSV_Injection.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def text(rows: Iterable[Iterable[Any]]) -> str:
    """Formats rows as CSV with line feeds; cells are escaped by `cell`."""
    return "".join(map(_line, rows))


def cell(value: Any) -> Any:
    """Escapes a cell: text that would be a formula gets an apostrophe before it.

    Numbers, also as text ("-0.5"), are not changed.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _line(row: Iterable[Any]) -> str:
    file = io.StringIO(newline="")
    # The csv module quotes cells with characters of the line terminator, so it includes \r.
    csv.writer(file, lineterminator="\r\n").writerow([cell(value) for value in row])
    return file.getvalue().removesuffix("\r\n") + "\n"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value.isascii() and value == value.strip()
