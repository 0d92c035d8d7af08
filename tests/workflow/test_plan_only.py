"""The memory estimated before a run agrees with the sizes of its arrays."""

import logging

import jax
import pytest

from remem_jax import workflow
from remem_jax.checks import SettingError
from remem_jax.data.loaders import resident
from remem_jax.methods import SCRATCH
from remem_jax.workflow import context, memory_plan
from remem_jax.workflow.remem import (
    finetune,
    plan_only,
    student_grid,
    student_groups,
    student_setup,
    teacher_training,
)
from tests import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mixed_dtypes")]


def test_a_run_needs_memory_for_its_states_and_is_rejected_with_less(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run
    caplog.set_level(logging.INFO, "absl")
    pretrained = finetune.read_pretrained(run)
    setup = student_setup.make(run, pretrained)

    teacher, students = plan_only.show(run, pretrained, setup)

    # SGD with momentum stores two arrays per parameter; an image of 8 x 8 pixels has 192 bytes.
    params = sum(
        leaf.nbytes
        for leaf in jax.tree.leaves(teacher_training.start(run, pretrained, "finetune").trainable)
    )
    assert teacher.at_rest == pytest.approx(
        2 * params + run.config.teacher.batch_size * 192, rel=1e-3
    )
    student = sum(leaf.nbytes for leaf in jax.tree.leaves(setup.first(0)["params"]))
    assert students.at_rest == pytest.approx(2 * 2 * student + params, rel=0.02)  # With statistics.
    assert min(teacher.running, students.running) > 0
    assert students.models == 2
    assert run.dataset.resident_bytes == 1797 * 192
    listed = [line for line in caplog.messages if " x operations" in line]
    assert [line.rpartition(": ")[0] for line in listed] == [
        f"Fine-tuning: teacher, a step that {plan}"
        for plan in (
            "stores all activations",
            "recomputes elementwise operations",
            "recomputes blocks",
        )
    ]
    assert [line.endswith("(chosen).") for line in listed] == [True, False, False]

    # Other plans were listed above and take long to compile.
    monkeypatch.setattr(memory_plan, "RECOMPUTED", ("blocks",))
    # As many students as fit are trained at once; if too few fit, the run is rejected.
    both = students.at_rest + students.running
    monkeypatch.setattr(resident, "memory", lambda: both)  # The data set needs a part of it.
    assert [need.models for need in plan_only.show(run, pretrained, setup)] == [1, 1]
    run.config.student.group = 2
    with pytest.raises(
        SettingError, match=r"Fine-tuning: students and the data set take.*batch_size"
    ):
        plan_only.show(run, pretrained, setup)
    run.config.student.group = 0
    monkeypatch.setattr(resident, "memory", lambda: students.held)
    with pytest.raises(SettingError, match=r"A student of Fine-tuning: students does not fit"):
        plan_only.show(run, pretrained, setup)


def test_the_students_that_fit_are_trained_at_once_even_after_a_restart(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run
    run.config.methods = ("scratch",)
    run.config.student.learning_rates = (0.1, 0.2, 0.3)
    setup = student_setup.make(run, None)
    grid = student_grid.label_grid(run, SCRATCH)
    assert student_groups.size(run, setup, grid) == 3

    need = student_groups.need(run, setup, grid)
    data_set = run.dataset.resident_bytes
    available = data_set + need.held + need.running + 2 * need.each
    monkeypatch.setattr(resident, "memory", lambda: available)
    assert student_groups.size(run, setup, grid) == 2

    monkeypatch.setattr(resident, "memory", lambda: 10 * available)
    assert student_groups.size(run, setup, grid) == 2
    run.config.student.group = 1
    assert student_groups.size(run, setup, grid) == 1


def test_a_plan_of_a_study_s_trial_has_a_dtype_that_models_know(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a run's, whose "auto" is resolved; students without a teacher read it first."""
    caplog.set_level(logging.INFO, "absl")
    config = tiny_run.get_config()
    config.methods, config.compute_dtype = (SCRATCH,), "auto"
    config.student.batch_size = 8

    workflow.show_plan(config)

    assert "From scratch" in caplog.text
