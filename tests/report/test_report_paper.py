"""The paper's numbers agree with those that METHOD.md restores from its text."""

import pathlib
import re
from typing import Any

import pytest

from remem_jax.report import paper

_SIX = ("cifar100", "caltech101", "sun397_tfds", "inat2017", "pcam", "imagenet_lt")
_ROWS = {
    "MobileNetV2, fine-tune": "mobilenet_v2_finetune",
    "MobileNetV2, ReMem": "mobilenet_v2_remem",
    "EfficientNetV2, fine-tune": "efficientnet_v2_finetune",
    "EfficientNetV2, ReMem": "efficientnet_v2_remem",
    "Patient, fine-tune": "patient_finetune",
    "Patient, ReMem": "patient_remem",
    "DIST, fine-tune": "dist_finetune",
    "DIST, ReMem": "dist_remem",
    "LoRA": "lora",
    "LoRA + ReMem": "lora_remem",
}
_PAIR = r"(\d+\.\d)/(\d+\.\d)"


def _pairs(text: str) -> list[tuple[float, float]]:
    return [(float(student), float(teacher)) for student, teacher in re.findall(_PAIR, text)]


def _cells_of(table: int, row: str, columns: tuple[str, ...]) -> list[tuple[float, float]]:
    cells = [paper.cell(table, row, column) for column in columns]
    return [(cell.student, cell.teacher) for cell in cells if cell is not None]


def test_cells_of_six_data_sets_match_the_paper(shared: pathlib.Path) -> None:
    text = (shared / "paper/METHOD.md").read_text(encoding="utf-8")
    lines = re.findall(rf"^\| (\d+) \| ([^|]+) \|((?: {_PAIR} \|){{6}})$", text, re.MULTILINE)

    actual = [_cells_of(int(table), _ROWS[row], _SIX) for table, row, *_ in lines]

    assert len(actual) == 10
    assert actual == [_pairs(cells) for _, _, cells, *_ in lines]


def test_cells_of_table_4_match_the_paper(shared: pathlib.Path) -> None:
    text = (shared / "paper/METHOD.md").read_text(encoding="utf-8")
    (part,) = re.findall(r"Table 4 \(dataset lost\).*?(?=Table 10)", text, re.DOTALL)
    expected = _pairs(part)

    actual = [_cells_of(4, row, ("i1k", "i21k", "augreg")) for row in ("finetune", "remem")]

    assert len(expected) == 6
    assert actual == [expected[:3], expected[3:]]


def test_cells_of_table_10_match_the_paper(shared: pathlib.Path) -> None:
    text = (shared / "paper/METHOD.md").read_text(encoding="utf-8")
    (part,) = re.findall(r"Table 10: baseline.*", text)

    rows = ("finetune", "reweight", "sam", "remem")
    actual = [pair for row in rows for pair in _cells_of(10, row, ("sun397_tfds",))]

    assert len(actual) == 4
    assert actual == _pairs(part)


@pytest.mark.parametrize("table", [1, 2])
def test_a_lost_table_has_a_remark_and_no_cells(table: int) -> None:
    assert paper.cell(table, "remem", "cifar100") is None
    assert f"Table {table} is lost" in paper.remark(table)


def test_there_are_no_differences_for_an_unknown_data_set() -> None:
    comparable = [table for table in (3, 4, 8, 9, 10) if paper.is_comparable(table)]

    assert comparable == [3, 8, 9, 10]
    assert "no differences" in paper.remark(4)
    assert "assumption" in paper.remark(10)


@pytest.mark.parametrize(
    ("student", "loss", "dataset", "method", "expected"),
    [
        ("mobilenet_v2", "kd", "cifar100", "finetune", (3, 77.8, 91.0)),
        ("mobilenet_v2", "kd", "imagenet_lt", "remem", (3, 38.4, 72.1)),
        ("efficientnet_v2", "kd", "caltech101", "finetune", (3, 60.0, 93.4)),
        ("efficientnet_v2", "kd", "sun397_tfds", "remem", (3, 67.2, 78.4)),
        ("resnet18", "patient", "inat2017", "finetune", (8, 41.2, 65.0)),
        ("resnet18", "patient", "pcam", "remem", (8, 91.7, 89.7)),
        ("resnet18", "dist", "cifar100", "finetune", (8, 80.7, 93.4)),
        ("resnet18", "dist", "imagenet_lt", "remem", (8, 44.3, 57.2)),
        ("resnet18", "kd", "caltech101", "lora", (9, 56.7, 96.0)),
        ("resnet18", "kd", "inat2017", "lora_remem", (9, 43.0, 59.1)),
    ],
)
def test_a_cell_matches_the_paper(
    student: str, loss: str, dataset: str, method: str, expected: tuple[int, float, float]
) -> None:
    actual = paper.lookup(student=student, loss=loss, dataset=dataset, method=method)

    assert actual == paper.Record(*expected)


@pytest.mark.parametrize("method", ["scratch", "finetune", "remem"])
def test_no_numbers_are_invented_for_the_lost_table(method: str) -> None:
    actual = paper.lookup(student="resnet18", loss="kd", dataset="cifar100", method=method)

    assert actual is None


def _set_case(results: dict[str, Any], student: str, loss: str, official: bool | None) -> None:
    results["models"]["student"] = student
    results["config"]["student"]["losses"] = [loss]
    for row in results["methods"]:
        row["selected"]["loss"] = loss
    results["data"] |= {"name": "cifar100", "official": official}


def test_records_are_found_for_the_methods_that_the_paper_has(results: dict[str, Any]) -> None:
    _set_case(results, "mobilenet_v2", "kd", official=True)

    actual = paper.records(results)

    assert actual == {
        "finetune": paper.Record(3, 77.8, 91.0),
        "remem": paper.Record(3, 80.2, 92.5),
    }
    assert "Table 3" in paper.note(results)


def test_kd_with_mixup_is_the_papers_patient_distillation(results: dict[str, Any]) -> None:
    _set_case(results, "resnet18", "kd", official=True)
    results["config"]["student"]["mixup"] = 0.8

    assert paper.records(results)["remem"] == paper.Record(8, 84.4, 93.0)
    assert "Table 8" in paper.note(results)


def test_the_default_loss_is_kd(results: dict[str, Any]) -> None:
    _set_case(results, "mobilenet_v2", "kd", official=True)
    results["config"] = {}

    assert paper.records(results)["remem"].table == 3


@pytest.mark.parametrize("official", [None, False])
def test_unofficial_data_have_no_records(
    results: dict[str, Any],
    official: bool | None,
) -> None:
    _set_case(results, "mobilenet_v2", "kd", official=official)

    assert paper.records(results) == {}


@pytest.mark.parametrize(
    ("student", "loss", "official", "reason"),
    [
        ("resnet18", "kd", None, "not among its data"),
        ("resnet18", "kd", False, "this is not"),
        ("resnet18", "kd", True, "Table 1, .* is lost"),
        ("mobilenet_v2", "dist", True, "none for mobilenet_v2 with the loss dist on cifar100"),
    ],
)
def test_the_note_explains_why_there_are_no_numbers(
    results: dict[str, Any], student: str, loss: str, official: bool | None, reason: str
) -> None:
    _set_case(results, student, loss, official=official)

    assert re.search(reason, paper.note(results))
