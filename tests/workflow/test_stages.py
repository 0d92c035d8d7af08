"""Titles of stages, and the plan of a run."""

import pytest

from configs import remem
from remem_jax.workflow import stages


@pytest.mark.parametrize(
    ("stage", "title"),
    [
        ("teachers/finetune", "Fine-tuning: teacher"),
        ("teachers/remem/retry_1", "ReMem: teacher, retry 1"),
        ("students/scratch", "From scratch: students"),
        ("students/remem/step_300", "ReMem: students of step 300"),
        (
            "students/remem/step_300/students_0_to_3",
            "ReMem: students of step 300, 0 to 3",
        ),
        ("students/remem/rung/step_300", "ReMem: students, learning rates, step 300"),
        ("students/alone/longer_2", "Pretrained, no teacher: students, for longer"),
        ("information/sam", "SAM only: information"),
        ("information/rate_0.001_aligned", "Information: rate 0.001 aligned"),
    ],
)
def test_a_stage_has_a_title(stage: str, title: str) -> None:
    assert stages.title(stage) == title


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        ("teachers/remem/retry_1", "ReMem: teacher"),
        ("students/remem/step_300", "ReMem: student"),
    ],
)
def test_the_results_of_a_method_are_those_of_its_models(stage: str, model: str) -> None:
    assert stages.model(stage) == model


def test_a_plan_lists_the_stages_of_a_run_in_their_order() -> None:
    config = remem.get_config("pets")
    config.teacher.steps, config.student.steps = (10, 40), 7
    config.information.seeds = (0,)

    planned = stages.planned(config, ["scratch", "remem"])

    assert [(stage.title, stage.work) for stage in planned] == [
        ("From scratch: students", 7),
        ("ReMem: teacher", 40),
        ("ReMem: students of step 10", 7),
        ("ReMem: students of step 40", 7),
        ("ReMem: information", config.information.steps),
    ]


def test_stages_of_one_kind_are_equally_fast() -> None:
    config = remem.get_config("pets")
    config.information.seeds, config.teacher.steps = (), (10,)

    def kinds() -> list[str]:
        return [stage.kind for stage in stages.planned(config, ["finetune", "reweight", "sam"])]

    assert kinds() == ["SGD", "students", "SGD", "students", "SAM", "students"]
    config.teacher.rho = 0.0
    assert kinds() == ["SGD", "students"] * 3
