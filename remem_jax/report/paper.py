"""The paper's results, by the names that this package uses.

Our text of the paper has all numbers of Tables 3, 8 and 9, and those of Tables 4 and 10 without the
name of the data set. It has no numbers of Table 1 (ResNet-18 with KD on sixteen data sets) and
Table 2.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Record(NamedTuple):
    """A cell of one of the paper's tables, in percent.

    Attributes:
        table: Number of the table.
        student: Test accuracy of the best student.
        teacher: Test accuracy of its teacher, a ViT-B/16.
    """

    table: int
    student: float
    teacher: float


_DATASETS = ("cifar100", "caltech101", "sun397_tfds", "inat2017", "pcam", "imagenet_lt")
_COLUMNS = {
    3: _DATASETS,
    4: ("i1k", "i21k", "augreg"),  # Pretraining of the teacher.
    8: _DATASETS,
    9: _DATASETS,
    # An assumption: the text does not name the data set, and the students' numbers fit SUN397 with
    # TFDS's split.
    10: ("sun397_tfds",),
}

# Table and row, then the accuracies student/teacher in each of the table's columns.
_ROWS = """
3  mobilenet_v2_finetune    77.8/91.0 60.7/90.8 59.5/76.2 34.8/64.9 91.0/91.3 36.1/75.7
3  mobilenet_v2_remem       80.2/92.5 76.7/87.7 61.3/74.7 36.4/58.5 91.2/92.3 38.4/72.1
3  efficientnet_v2_finetune 80.0/89.1 60.0/93.4 65.3/76.2 48.5/64.0 90.0/89.9 39.7/73.2
3  efficientnet_v2_remem    82.7/89.1 78.5/87.2 67.2/78.4 49.7/63.2 91.3/91.1 41.5/75.4
4  finetune                 75.8/84.5 73.2/86.2 74.0/86.7
4  remem                    78.2/85.7 78.3/85.6 78.3/85.7
8  patient_finetune         82.9/94.0 77.2/95.3 64.9/74.5 41.2/65.0 91.1/91.4 44.2/76.2
8  patient_remem            84.4/93.0 86.8/95.0 67.1/74.8 42.6/64.7 91.7/89.7 45.4/71.9
8  dist_finetune            80.7/93.4 57.6/90.2 65.8/77.3 39.4/64.0 91.8/91.5 40.5/75.1
8  dist_remem               82.9/89.3 78.1/88.5 68.0/74.6 41.6/62.9 91.2/91.8 44.3/57.2
9  lora                     82.0/93.1 56.7/96.0 65.5/76.8 42.0/61.2 89.3/89.2 43.1/76.8
9  lora_remem               83.4/91.6 78.8/88.5 67.6/76.5 43.0/59.1 90.7/90.6 46.4/69.6
10 finetune                 63.6/81.1
10 reweight                 65.1/81.3
10 sam                      66.3/81.9
10 remem                    68.1/79.7
"""

_LOST = (
    "Table {} is lost from the text of the paper that we have: its rows and columns are there, but "
    "none of its numbers."
)
_REMARKS = {
    1: _LOST.format(1),
    2: _LOST.format(2) + " Nor is the data set that it is about.",
    4: "Which data set Table 4 is about is lost from the text of the paper that we have. So no "
    "differences to its numbers are given, whatever the data here.",
    10: "Which data set Table 10 is about is lost from the text of the paper that we have. Its "
    "students' numbers fit SUN397 with TFDS's split: an assumption.",
}


def _parse(rows: str) -> dict[tuple[int, str, str], Record]:
    records = {}
    for line in rows.strip().splitlines():
        number, row, *cells = line.split()
        table = int(number)
        for column, numbers in zip(_COLUMNS[table], cells, strict=True):
            records[table, row, column] = Record(table, *map(float, numbers.split("/")))
    return records


_RECORDS = _parse(_ROWS)

# For the student and the loss of a run: the table, and the prefix of its rows' names.
_TABLES = {
    ("mobilenet_v2", "kd"): (3, "mobilenet_v2_"),
    ("efficientnet_v2", "kd"): (3, "efficientnet_v2_"),
    ("resnet18", "patient"): (8, "patient_"),
    ("resnet18", "dist"): (8, "dist_"),
    ("resnet18", "kd"): (9, ""),
}


def cell(table: int, row: str, column: str) -> Record | None:
    """Returns a cell of one of the paper's tables; None if it does not exist or is lost."""
    return _RECORDS.get((table, row, column))


def remark(table: int) -> str:
    """Describes what is lost of a table; empty if nothing is."""
    return _REMARKS.get(table, "")


def is_comparable(table: int) -> bool:
    """Returns whether the data set of the table is known or assumed."""
    return table != 4


def lookup(*, student: str, loss: str, dataset: str, method: str) -> Record | None:
    """Returns the paper's cell for a student, a distillation loss, a data set and a method."""
    if (student, loss) not in _TABLES:
        return None
    table, prefix = _TABLES[student, loss]
    return cell(table, prefix + method, dataset)


def records(results: Mapping[str, Any]) -> dict[str, Record]:
    """Returns the paper's cells by method of a run; none if its data are not the official ones."""
    if results["data"]["official"] is not True:
        return {}
    student, _, dataset = _case(results)
    by_method = {
        row["method"]: lookup(
            student=student,
            loss=_paper_name(results, row["selected"]["loss"] or ""),
            dataset=dataset,
            method=row["method"],
        )
        for row in results["methods"]
    }
    return {method: record for method, record in by_method.items() if record is not None}


def note(results: Mapping[str, Any]) -> str:
    """Names the tables that the paper's numbers come from, or describes why there are none."""
    student, loss, dataset = _case(results)
    case = f"{student} with the loss {loss} on {dataset}"
    lost = (
        "Table 1, which has resnet18 with the loss kd, is lost from the text of the paper that "
        "we have."
    )
    is_lost = (student, loss) == ("resnet18", "kd")
    official = results["data"]["official"]
    if official is None:
        return f"The paper has no numbers to set beside these: {dataset} is not among its data."
    if official is False:
        return (
            "No numbers of the paper are set beside these: it used the official data set, which "
            "this is not."
        )
    used = records(results)
    if used:
        tables = " and ".join(str(table) for table in sorted({r.table for r in used.values()}))
        source = f"Columns headed “Paper”: Table {tables}, where the teacher is a ViT-B/16."
        return f"{source} {lost}" if is_lost else source
    if is_lost:
        return f"There are no numbers of the paper to set beside these: {lost}"
    return f"The paper has no numbers to set beside these: none for {case}."


def _case(results: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the student, the losses (by the paper's names) and the data set of a run."""
    losses = results["config"].get("student", {}).get("losses", ("kd",))
    names = " and ".join(_paper_name(results, loss) for loss in losses)
    return results["models"]["student"], names, results["data"]["name"]


def _paper_name(results: Mapping[str, Any], loss: str) -> str:
    """Returns the paper's name of a loss: KD on images mixed by mixup is "patient"."""
    mixed = results["config"].get("student", {}).get("mixup", 0) > 0
    return "patient" if mixed and loss == "kd" else loss
