"""What a report says of files that were passed over, and of odd classes."""

import json
import pathlib
from typing import Any

import pytest

from remem_jax import report

ODD = {
    "title": "imgs",
    "passed_over": {".tif": 10, ".jfif": 8},
    "empty_classes": ["owl", "empty"],
    "warnings": ["the classes Dog and dog differ only in case or spaces"],
}
SAID = (
    "imgs: 18 files skipped (.jfif: 8, .tif: 10); the classes owl, empty have no image.",
    "imgs: the classes Dog and dog differ only in case or spaces.",
)


def _pages(run: pathlib.Path, results: dict[str, Any]) -> list[str]:
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write(run)
    return [(run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]


def test_what_was_found_in_the_data_stands_in_both_reports(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    results["data"] |= ODD

    for page in _pages(run, results):
        assert all(said in page.replace("\\", "") for said in SAID)


@pytest.mark.parametrize("there", [True, False], ids=["nothing", "results of before"])
def test_where_there_is_nothing_to_say_nothing_is_said(
    run: pathlib.Path, results: dict[str, Any], there: bool
) -> None:
    nothing = {"passed_over": {}, "empty_classes": [], "warnings": []}
    results["data"] |= nothing if there else {}

    for page in _pages(run, results):
        assert "Remarks on the data" not in page
