"""The paper's numbers, against those that METHOD.md restores from its text."""

import re
from typing import Any

import pytest

from remem_jax.report import paper


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
def test_cell_is_that_of_the_paper(
    student: str, loss: str, dataset: str, method: str, expected: tuple[int, float, float]
) -> None:
    found = paper.lookup(student=student, loss=loss, dataset=dataset, method=method)

    assert found == paper.Record(*expected)


@pytest.mark.parametrize("method", ["scratch", "finetune", "remem"])
def test_the_lost_table_is_not_made_up(method: str) -> None:
    found = paper.lookup(student="resnet18", loss="kd", dataset="cifar100", method=method)

    assert found is None


def _set_case(results: dict[str, Any], student: str, loss: str, official: bool | None) -> None:
    results["models"]["student"] = student
    results["config"]["student"]["losses"] = [loss]
    for row in results["methods"]:
        row["selected"]["loss"] = loss
    results["data"] |= {"name": "cifar100", "official": official}


def test_records_are_found_for_the_methods_that_the_paper_has(results: dict[str, Any]) -> None:
    _set_case(results, "mobilenet_v2", "kd", official=True)

    found = paper.records(results)

    assert found == {
        "finetune": paper.Record(3, 77.8, 91.0),
        "remem": paper.Record(3, 80.2, 92.5),
    }
    assert "Table 3" in paper.note(results)


def test_kd_of_mixed_images_is_the_papers_patient(results: dict[str, Any]) -> None:
    _set_case(results, "resnet18", "kd", official=True)
    results["config"]["student"]["mixup"] = 0.8

    assert paper.records(results)["remem"] == paper.Record(8, 84.4, 93.0)
    assert "Table 8" in paper.note(results)


def test_loss_is_kd_where_the_settings_name_none(results: dict[str, Any]) -> None:
    _set_case(results, "mobilenet_v2", "kd", official=True)
    results["config"] = {}

    assert paper.records(results)["remem"].table == 3


@pytest.mark.parametrize("official", [None, False])
def test_no_records_off_the_official_data(
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
def test_note_says_why_there_are_no_numbers(
    results: dict[str, Any], student: str, loss: str, official: bool | None, reason: str
) -> None:
    _set_case(results, student, loss, official=official)

    assert re.search(reason, paper.note(results))
