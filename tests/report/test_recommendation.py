"""A report begins with the model to use, what it costs, and the commands that come next."""

import copy
import math
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from remem_jax import paired
from remem_jax.export import __main__ as export_command
from remem_jax.report.run import choice, recommendation
from remem_jax.report.run.choice import BATCH, ONE_IMAGE, SIZE, STUDENT, TEACHER
from tests.report.conftest import LABELS, WRONG

IMAGES = len(LABELS)
RUN = pathlib.Path("runs/look")
Change = Callable[..., None]


@pytest.fixture
def change(results: dict[str, Any]) -> Change:
    """Returns a function that sets the costs of the student, and the images it classifies wrongly.

    The teacher has 10 million parameters, takes 10 and 100 ms, and has 16 wrong of 400.
    """
    results["methods"] = [row for row in results["methods"] if row["method"] == "finetune"]

    def set_student(
        *, size: float, one_image: float, batch: float, wrong: range = range(16)
    ) -> None:
        sides = ((STUDENT, (size, one_image, batch)), (TEACHER, (10.0, 10.0, 100.0)))
        for role, (millions, first, second) in sides:
            results["inference"][role] |= {
                "parameters": round(1e6 * millions),
                "milliseconds": {"1": first, "32": second},
            }
        _set_wrong(results["methods"][0], [*wrong])

    return set_student


def _set_wrong(row: dict[str, Any], wrong: list[int]) -> None:
    """Sets the test images that a row's student classifies wrongly."""
    correct = np.ones(IMAGES, bool)
    correct[wrong] = False
    row["test_correct"]["students"] = [paired.pack(correct)]
    row["student"]["test"]["top1"] = float(correct.mean())


EQUAL, BETTER, WORSE = range(16), range(0), range(60)
CHEAP = {"size": 5.0, "one_image": 5.0, "batch": 50.0}
SAME = {"size": 9.5, "one_image": 10.5, "batch": 100.0}  # Within the tolerance.
DEAR = {"size": 20.0, "one_image": 20.0, "batch": 200.0}
# The example of an 11.2 M student beside its 5.5 M teacher, faster for one image.
MIXED = {"size": 20.0, "one_image": 5.0, "batch": 200.0}


CASES = [
    (CHEAP, BETTER, STUDENT, (SIZE, ONE_IMAGE, BATCH), ()),
    (CHEAP, EQUAL, STUDENT, (SIZE, ONE_IMAGE, BATCH), ()),
    (CHEAP, WORSE, STUDENT, (SIZE, ONE_IMAGE, BATCH), ()),
    (SAME, BETTER, STUDENT, (), ()),
    (SAME, EQUAL, STUDENT, (), ()),
    (SAME, WORSE, TEACHER, (), ()),
    (DEAR, BETTER, STUDENT, (), (SIZE, ONE_IMAGE, BATCH)),
    (DEAR, EQUAL, TEACHER, (SIZE, ONE_IMAGE, BATCH), ()),
    (DEAR, WORSE, TEACHER, (SIZE, ONE_IMAGE, BATCH), ()),
    (MIXED, BETTER, STUDENT, (ONE_IMAGE,), (SIZE, BATCH)),
    (MIXED, WORSE, TEACHER, (SIZE, BATCH), (ONE_IMAGE,)),
]


@pytest.mark.parametrize(("costs", "wrong", "expected"), [(*case[:2], case[2:]) for case in CASES])
def test_the_better_model_is_chosen_and_the_student_in_a_trade(
    results: dict[str, Any],
    change: Change,
    costs: dict[str, float],
    wrong: range,
    expected: tuple[Any, ...],
) -> None:
    change(**costs, wrong=wrong)

    chosen = choice.choose(results)

    assert (chosen.model.role, chosen.better, chosen.worse) == expected
    gap = (len(wrong) - 16) / IMAGES  # Of the teacher over the student.
    assert chosen.accuracy is not None
    sign = 1 if chosen.model.role == TEACHER else -1
    assert chosen.accuracy.difference == pytest.approx(sign * gap)


def test_the_best_on_validation_are_compared(results: dict[str, Any]) -> None:
    results["methods"][0]["student"]["test"]["top1"] = 1.0  # The test split selects nothing.

    chosen = choice.choose(results)

    compared = {model.role: model.row["method"] for model in (chosen.model, chosen.other) if model}
    assert compared == {"student": "remem", "teacher": "finetune"}


def test_a_teacher_that_leads_is_recommended_in_words_and_numbers(results: dict[str, Any]) -> None:
    student, teacher = (
        set(WRONG["remem", "students"]),
        set(WRONG["finetune", "teacher"]),
    )
    better, worse = len(student - teacher), len(teacher - student)
    error = math.sqrt(better + worse - (better - worse) ** 2 / IMAGES) / IMAGES
    p = stats.binomtest(worse, better + worse).pvalue

    advice = recommendation.recommend(results, RUN)

    assert advice.sentence == "The student is not worth it here: use the teacher (Fine-tuning)."
    assert advice.reasons.startswith(
        "Compared with the student (ReMem), it is smaller (1.9 against 11.2 million parameters), "
        "faster (40 against 80 ms for a batch of 32) and 3.50 points more accurate on test (96.00 "
        f"against 92.50 %; standard error of the difference {100 * error:.2f}, p = {p:.2g}), but "
        "slower (5 against 4 ms for one image). Use the student (ReMem) where the latency of "
        "single images matters more. To serve something smaller, distil"
    )
    assert advice.file == "runs/look/selected/finetune_teacher.npz"
    assert advice.commands == ("remem export runs/look --method=finetune --format=timm",)


def test_a_trade_names_when_the_teacher_is_worth_it(
    results: dict[str, Any], change: Change
) -> None:
    change(**CHEAP, wrong=WORSE)

    advice = recommendation.recommend(results, RUN)

    assert advice.sentence == "Use the student (Fine-tuning)."
    assert ", but 11.00 points less accurate on test (85.00 against 96.00 %" in advice.reasons
    assert "Use the teacher (Fine-tuning) where accuracy matters more." in advice.reasons


def test_equal_accuracies_are_not_called_a_gain(results: dict[str, Any], change: Change) -> None:
    change(**CHEAP, wrong=range(1, 18))

    advice = recommendation.recommend(results, RUN)

    assert "as accurate, as far as the test images can tell (95.75 against 96.00 %" in (
        advice.reasons
    )
    assert "matters more" not in advice.reasons


@pytest.mark.parametrize(("wrong", "added"), [([*range(40)], True), ([*range(29)], False)])
def test_a_teacher_that_adds_nothing_is_called_so(
    results: dict[str, Any], wrong: list[int], *, added: bool
) -> None:
    results["models"]["student_init"] = {"init": "resnet18.safetensors"}
    row = copy.deepcopy(results["methods"][0])
    row["method"] = "alone"
    results["methods"].insert(1, row)
    _set_wrong(row, [*range(10), *range(250, 290)] if added else wrong)

    reasons = recommendation.recommend(results, RUN).reasons

    sentence = (
        "The teacher added nothing to the student (ReMem) that the test images can show: the same "
        "student without a teacher reaches 92.75 %."
    )
    assert (sentence in reasons) == (not added)


def test_the_table_has_the_costs_and_the_standard_errors(results: dict[str, Any]) -> None:
    errors = [100 * math.sqrt(share * (1 - share) / IMAGES) for share in (0.925, 0.96)]

    table = recommendation.recommend(results, RUN).table

    assert table.rows == (
        (
            *("Student (ReMem)", "selected/remem_student.safetensors", "11,227,812", "45", "0.225"),
            *("4", "80", f"92.50 ± {errors[0]:.2f}"),
        ),
        (
            "Teacher (Fine-tuning), recommended",
            *("selected/finetune_teacher.npz", "1,900,000", "7.6", "0.038"),
            *("5", "40", f"96.00 ± {errors[1]:.2f}"),
        ),
    )


def test_of_several_seeds_the_saved_student_is_compared(results: dict[str, Any]) -> None:
    row = results["methods"][2]
    other = np.zeros(IMAGES, bool)
    row["test_correct"]["students"].append(paired.pack(other))
    row["seeds"] = [
        {"seed": seed, "validation": {"top1": share}, "test": {"top1": share}}
        for seed, share in enumerate((0.925, 0.0))
    ]
    row["student"]["test"]["top1"] = 0.4625  # The mean over seeds.

    table = recommendation.recommend(results, RUN).table

    assert table.rows[0][-1].startswith("92.50 ± 1.3")


def test_a_teacher_without_a_file_is_not_recommended(results: dict[str, Any]) -> None:
    for row in results["methods"]:
        row["files"]["teacher"] = None
    results["inference"]["teacher"] = None

    advice = recommendation.recommend(results, RUN)

    assert advice.sentence == "Use the student (ReMem)."
    assert "it has adapters" in advice.reasons


def test_a_run_without_teachers_recommends_its_student(results: dict[str, Any]) -> None:
    results["methods"] = results["methods"][:1]
    results["inference"]["teacher"] = None

    advice = recommendation.recommend(results, RUN)

    assert advice.sentence == "Use the student (From scratch)."
    share = 100 * results["methods"][0]["student"]["test"]["top1"]
    assert advice.reasons == f"It is the only model that was trained, with {share:.2f} % on test."
    assert len(advice.table.rows) == 1


def test_a_run_without_time_for_a_teacher_says_so_with_the_hours_that_suffice(
    results: dict[str, Any],
) -> None:
    results["methods"] = [row for row in results["methods"] if row["teacher"] is None]
    (row,) = results["methods"]
    results["config"]["methods"] = [row["method"], "finetune", "remem"]
    results["budget"] = {"hours": 0.1, "left_out": {"finetune": 0.2, "remem": 0.45}}

    reasons = recommendation.recommend(results, RUN).reasons

    share = 100 * row["student"]["test"]["top1"]
    assert reasons == (
        f"It is the only model that was trained, with {share:.2f} % on test. Left out, because "
        "teacher and student would have too few steps: Fine-tuning (needs --hours=0.2), ReMem "
        "(needs --hours=0.45)."
    )


def test_older_results_are_compared_in_what_they_have(older: dict[str, Any]) -> None:
    advice = recommendation.recommend(older, RUN)

    assert advice.sentence == "The student is not worth it here: use the teacher (Fine-tuning)."
    assert "3.50 points more accurate on test (96.00 against 92.50 %)" in advice.reasons
    assert "The latency was not measured." in advice.table.note
    assert advice.table.rows[0][3:7] == ("–",) * 4  # noqa: RUF001


@pytest.mark.parametrize("folder", ["runs/look", "my runs/it's $HOME; ls", "/a/b\nc"])
def test_the_commands_are_read_by_the_command_line_as_written(
    results: dict[str, Any], folder: str
) -> None:
    results["inference"] |= {"student": results["inference"]["teacher"]}
    _set_wrong(results["methods"][2], [])

    export, predict = recommendation.recommend(results, pathlib.Path(folder)).commands

    program, command, *arguments = shlex.split(export)
    parsed = export_command._parser().parse_args(arguments)
    assert (program, command) == ("remem", "export")
    assert re.sub(r"\s", " ", str(parsed.run)) == re.sub(r"\s", " ", folder)
    assert (parsed.method, parsed.format) == ("remem", "onnx")
    assert shlex.split(predict)[:2] == ["remem", "predict"]
