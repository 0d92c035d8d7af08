"""The cost of a study, compared with a count of its steps one by one."""

import json
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import study
from remem_jax import workflow
from remem_jax.study import cost as study_cost
from remem_jax.study import search, space
from remem_jax.workflow import context
from remem_jax.workflow.remem import cost
from tests import tiny_run

# Powers of two, so that sums are exact.
TEACHER, TEACHER_FORWARD, STUDENT = (
    cost.Step(64.0, 0.5),
    cost.Step(8.0, 0.25),
    cost.Step(16.0, 0.125),
)
SPEED = cost.Speed(TEACHER, TEACHER_FORWARD, STUDENT)


@pytest.fixture
def config() -> ConfigDict:
    """A study of the bundled teacher and the digits."""
    base = tiny_run.digits()
    base.teacher.steps, base.student.steps = (64, 128), 64
    base.student.losses, base.student.weights = ("kd", "dist"), (0.5, 0.9)
    base.student.seeds = (0, 1)
    rows = study.rows("scratch", "finetune", "remem")
    config = study.make("Digits", rows, {"digits": study.column("Digits")}, base=base)
    config.grid = ConfigDict(
        {"learning_rate": (0.01, 0.03, 0.1), "rho": (0.05, 0.5), "mlp_weight": (0.8, 0.9)}
    )
    config.search.near = ConfigDict()
    return config


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[ConfigDict]:
    """Replaces measuring; lists the configs whose speed would be measured."""
    configs: list[ConfigDict] = []

    def measure(config: ConfigDict) -> cost.Speed:
        configs.append(config)
        return SPEED

    monkeypatch.setattr(workflow, "measure_speed", measure)
    return configs


def _trials(config: ConfigDict, *rows: str) -> list[space.Trial]:
    return [trial for trial in space.trials(config) if trial.row in rows]


def _counted(config: ConfigDict) -> list[cost.Step]:
    """Lists every step of a run: of the teacher, its forward passes, and of each student."""
    scratch = config.methods == ("scratch",)
    steps = [TEACHER for _ in range(0 if scratch else 128)]
    for _ in (None,) if scratch else (64, 128):
        for _ in range(64):
            steps += [TEACHER_FORWARD, *(STUDENT for _ in _students(scratch=scratch))]
    return steps


def _students(*, scratch: bool) -> list[Any]:
    """Lists the students of one teacher; there is one temperature, and DIST has none."""
    rates, weights, seeds = (0.05, 0.1), (0.5, 0.9), (0, 1)
    losses = (None,) if scratch else ("kd", "dist")
    return [
        (loss, rate, weight, seed)
        for loss in losses
        for rate in rates
        for weight in (weights if loss else (None,))
        for seed in seeds
    ]


@pytest.mark.parametrize("row", ["scratch", "finetune", "remem"])
def test_the_cost_of_a_run_is_the_sum_over_its_steps(config: ConfigDict, row: str) -> None:
    run = _trials(config, row)[0].config
    expected = _counted(run)

    run_cost = cost.of_run(run, SPEED._replace(teacher=None) if row == "scratch" else SPEED)

    assert run_cost.operations == sum(step.operations for step in expected)
    assert run_cost.seconds == sum(step.seconds for step in expected)
    assert run_cost.teacher_steps == expected.count(TEACHER)
    assert run_cost.student_steps == expected.count(STUDENT)
    assert run_cost.students == run_cost.student_steps / 64


@pytest.mark.slow
@pytest.mark.usefixtures("mixed_dtypes")
def test_sam_takes_twice_the_operations_of_a_teacher(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_seconds", lambda step, state: 0.0)  # Avoids compiling.
    monkeypatch.setattr(cost, "_of_students", lambda *others: SPEED._replace(teacher=others[-1]))
    teachers = []

    for method in ("finetune", "remem"):
        small_run.config.methods = (method,)
        teachers.append(cost.measure(small_run).teacher)

    plain, sam = (teacher.operations for teacher in teachers if teacher)
    # Two gradients instead of one; re-weighting costs almost nothing.
    assert sam == pytest.approx(2 * plain, rel=0.01)


def test_the_cost_of_a_study_is_the_sum_over_its_trials(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    trials = _trials(config, "finetune", "remem")

    total = study_cost.of_trials(trials, tmp_path)

    steps = [step for trial in trials for step in _counted(trial.config)]
    assert total.trials == len(trials) == 3 + 12
    assert total.operations == sum(step.operations for step in steps)
    assert total.hours == pytest.approx(sum(step.seconds for step in steps) / 3600)
    assert (total.teacher_steps, total.students) == (15 * 128, 15 * 2 * 16)
    assert total.student_steps == total.students * 64


def test_the_cost_of_a_study_counts_the_values_of_every_axis(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    config.grid = ConfigDict(
        {"attention_weight": (0.8, 0.9), "student": {"steps": (16, 64), "weight_decay": (0.0, 0.1)}}
    )

    total = study_cost.of_trials(_trials(config, "scratch", "finetune", "remem"), tmp_path)

    # Two rates and two seeds from scratch; with a teacher, besides: two steps, losses and weights.
    from_scratch, of_remem = 4, 4 * 2 * 2 * 2
    assert total.trials == 4 + 4 + 8
    assert total.students == 4 * from_scratch + 12 * of_remem
    assert total.student_steps == 2 * (16 + 64) * from_scratch + 6 * (16 + 64) * of_remem
    # Trials that differ in their students alone share a teacher.
    assert total.teacher_steps == 3 * 128


def test_teachers_of_other_weights_and_images_are_counted(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    changes = {
        "first": {"teacher": {"init": "first.npz"}},
        "second": {"teacher": {"init": "second.npz"}},
        "images": {"teacher": {"init": "first.npz"}, "data": {"path": "images"}},
        "unlabelled": {"teacher": {"init": "first.npz"}, "data": {"unlabelled": "more_images"}},
    }
    config.columns = ConfigDict(
        {name: study.column(name, **each) for name, each in changes.items()}
    )
    config.column_order = tuple(changes)

    trials = _trials(config, "finetune")
    total = study_cost.of_trials(trials, tmp_path)

    # Teachers never see images without labels.
    assert (len(trials), total.teacher_steps) == (4 * 3, 3 * 3 * 128)


def test_a_speed_is_measured_once(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    trials = space.trials(config)
    first = study_cost.of_trials(trials, tmp_path)
    before = len(measured)

    again = study_cost.of_trials(trials, tmp_path)

    assert again == first
    assert len(measured) == before
    assert len(json.loads((tmp_path / "speeds.json").read_text())) == before


def test_stored_speeds_keep_the_names_of_earlier_versions(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    """A study that an earlier version has begun is continued without measuring again."""
    study_cost.of_trials(space.trials(config), tmp_path)

    stored = json.loads((tmp_path / "speeds.json").read_text())

    assert {name for speed in stored.values() for name in speed} == {"teacher", "answer", "student"}
    step = {"operations": 6.0, "seconds": 0.5}
    old = {kind: dict.fromkeys(("teacher", "answer", "student"), step) for kind in stored}
    (tmp_path / "speeds.json").write_text(json.dumps(old))
    before = len(measured)
    assert study_cost.of_trials(space.trials(config), tmp_path).hours > 0
    assert len(measured) == before


def test_points_of_a_grid_share_a_measurement(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    study_cost.of_trials(space.trials(config), tmp_path)

    assert [config.methods for config in measured] == [("scratch",), ("finetune",), ("remem",)]


def test_columns_of_images_of_one_size_share_a_measurement(
    config: ConfigDict, measured: list[ConfigDict], tmp_path: pathlib.Path
) -> None:
    others = {"pets": {"name": "pets"}, "large": {"name": "dtd", "image_size": 64}}
    for name, data in others.items():
        config.columns[name] = ConfigDict(study.column(name, data=data))
    config.column_order = ("digits", "pets", "large")

    study_cost.of_trials(_trials(config, "finetune"), tmp_path)

    assert [config.data.name for config in measured] == ["digits", "dtd"]


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"model": "mobilenet_v2"}},
        {"student": {"batch_size": 32}},
        {"student": {"losses": ("kd",)}},
        {"teacher": {"variant": "S/16", "init": "augreg:S/16"}},
        {"teacher": {"tuning": "lora"}},
        {"compute_dtype": "bfloat16"},
    ],
)
def test_a_row_whose_steps_are_others_is_measured(
    config: ConfigDict,
    measured: list[ConfigDict],
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
) -> None:
    config.rows.other = ConfigDict(study.row("Another", "finetune", **changes))
    config.row_order = ("scratch", "finetune", "remem", "other")

    study_cost.of_trials(_trials(config, "finetune", "other"), tmp_path)

    assert len(measured) == 2


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("budget", [0.2, 0.5, 1.0])
def test_halving_costs_no_more_than_its_share_of_the_grid(
    config: ConfigDict, tmp_path: pathlib.Path, budget: float
) -> None:
    trials = _trials(config, "remem")
    config.search.kind, config.search.budget = "halving", budget
    planned = search.Search(config.search, trials).planned

    operations = study_cost.of_trials(planned, tmp_path).operations

    full_grid = study_cost.of_trials(trials, tmp_path).operations
    assert 0 < operations <= budget * full_grid
