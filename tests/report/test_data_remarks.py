"""Remarks of a report on skipped files and unusual classes."""

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
REMARKS = (
    "imgs: 18 files skipped (.jfif: 8, .tif: 10); the classes owl, empty have no image.",
    "imgs: the classes Dog and dog differ only in case or spaces.",
)


def _pages(run: pathlib.Path, results: dict[str, Any]) -> list[str]:
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write(run)
    return [(run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]


def test_remarks_on_the_data_are_in_both_reports(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    results["data"] |= ODD

    for page in _pages(run, results):
        assert all(remark in page.replace("\\", "") for remark in REMARKS)


@pytest.mark.parametrize("is_recorded", [True, False], ids=["nothing", "results of before"])
def test_there_is_no_section_without_remarks(
    run: pathlib.Path, results: dict[str, Any], is_recorded: bool
) -> None:
    nothing = {"passed_over": {}, "empty_classes": [], "warnings": []}
    results["data"] |= nothing if is_recorded else {}

    for page in _pages(run, results):
        assert "Remarks on the data" not in page
