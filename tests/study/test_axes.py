"""The axes of a study's grid: which trials they give, and which values they refuse."""

import itertools
import pathlib
import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from optuna.trial import TrialState

from configs import settings, study
from remem_jax.checks import SettingError
from remem_jax.settings import plain, values
from remem_jax.storage import identity, results
from remem_jax.study import axes, inputs, queue, scheduling, search, space
from remem_jax.study import unused as of_study
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
NEAREST = {"learning_rate": 0.03, "rho": 0.5, "mlp_weight": 0.9}


@pytest.fixture
def config() -> ConfigDict:
    """A study of the bundled teacher and the digits, whose grid has one point in each row."""
    rows = study.rows("scratch", "finetune", "reweight", "remem")
    config = study.make("Digits", rows, {"digits": study.column("Digits")}, base=tiny_run.digits())
    config.grid.update({name: (value,) for name, value in NEAREST.items()})
    config.search.near = ConfigDict(NEAREST)
    return config


def _set(config: ConfigDict, axis: str, values: Any) -> None:
    *groups, last = axis.split(".")
    place = config.grid
    for group in groups:
        place = place[group]
    place[last] = values


def _points(config: ConfigDict, row: str) -> list[dict[str, Any]]:
    return [dict(trial.point) for trial in space.trials(config) if trial.row == row]


def _with(axis: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Lists the points of ReMem with one more axis."""
    return [{**NEAREST, axis: value} for value in values]


def test_the_attention_weight_is_searched_in_rows_that_leave_it_free(config: ConfigDict) -> None:
    config.grid.mlp_weight = (0.8, 0.9)
    config.grid.attention_weight = (0.8, 0.9)

    names = ("mlp_weight", "attention_weight")
    points = sorted(_points(config, "remem"), key=lambda point: [point[name] for name in names])

    expected = [
        {"learning_rate": 0.03, "rho": 0.5, **dict(zip(names, weights, strict=True))}
        for weights in itertools.product((0.8, 0.9), (0.8, 0.9))
    ]
    assert points == expected
    assert len(_points(config, "reweight")) == 4
    assert len(_points(config, "finetune")) == len(_points(config, "scratch")) == 1
    weights = {
        trial.config.teacher.attention_weight
        for trial in space.trials(config)
        if trial.row == "remem"
    }
    assert weights == {0.8, 0.9}


def test_an_axis_without_values_leaves_earlier_trials_as_they_are(config: ConfigDict) -> None:
    """Their keys are those of the same settings, written out."""
    run = config.base.copy_and_resolve_references()
    run.methods = ("remem",)
    run.teacher.learning_rate, run.teacher.rho, run.teacher.mlp_weight = 0.03, 0.5, 0.9
    expected = results.fingerprint(identity.without_additions(identity.described(plain(run))))

    (trial,) = [trial for trial in space.trials(config) if trial.row == "remem"]

    assert trial.key == expected
    assert trial.point == NEAREST
    assert "attention_weight" in config.grid


def test_the_weight_that_the_base_has_is_used_unless_it_is_searched(config: ConfigDict) -> None:
    config.base.teacher.attention_weight = 0.7

    trials = [trial for trial in space.trials(config) if trial.row == "remem"]

    assert [trial.config.teacher.attention_weight for trial in trials] == [0.7]
    of_study.check(config, ["base.teacher.attention_weight"])


def test_a_student_s_setting_is_an_axis_of_every_row(config: ConfigDict) -> None:
    config.grid.student.weight_decay = (1e-4, 1e-3)

    assert _points(config, "scratch") == [
        {"student.weight_decay": 1e-4},
        {"student.weight_decay": 1e-3},
    ]
    assert _points(config, "remem") == _with("student.weight_decay", (1e-4, 1e-3))
    for trial in space.trials(config):
        assert trial.config.student.weight_decay == trial.point["student.weight_decay"]


def test_an_axis_of_distillation_gives_a_row_from_scratch_no_trials(config: ConfigDict) -> None:
    config.grid.student.temperatures = ((1.0,), (2.0, 4.0))

    assert _points(config, "scratch") == [{}]
    assert _points(config, "remem") == _with("student.temperatures", ((1.0,), (2.0, 4.0)))
    of_remem = [trial for trial in space.trials(config) if trial.row == "remem"]
    assert [trial.config.student.temperatures for trial in of_remem] == [(1.0,), (2.0, 4.0)]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("data.augment", ("none", "trivial", "rand")),
        ("data.image_size", (32, 64)),
        ("student.hard_labels", (True, False)),
        ("student.pretrained_learning_rates", ()),
        ("student.flatten", (1.0, 2.0, "calibrated")),
        ("teacher.weight_decay", (0.0, 0.1)),
        ("teacher.steps", ((40,), (40, 120))),
        ("teacher.tuning", ("full", "linear_probe")),
        ("compute_dtype", ("float32", "bfloat16")),
    ],
)
def test_settings_of_any_group_and_type_can_be_axes(
    config: ConfigDict, axis: str, values: tuple[Any, ...]
) -> None:
    _set(config, axis, values)

    space.check(config)

    assert _points(config, "remem") == (_with(axis, values) or [NEAREST])
    tried = [
        dict(_settings(trial.config))[axis]
        for trial in space.trials(config)
        if trial.row == "remem" and values
    ]
    assert tried == list(values)


def _settings(run: ConfigDict) -> list[tuple[str, Any]]:
    """Lists the settings of a run, without those below two groups."""
    of_groups = [
        (f"{group}.{name}", value)
        for group, inner in run.items()
        if isinstance(inner, ConfigDict)
        for name, value in inner.items()
    ]
    return [*run.items(), *of_groups]


def test_an_axis_varies_only_where_another_gives_it_an_effect(config: ConfigDict) -> None:
    config.grid.teacher.tuning = ("full", "lora")
    config.grid.teacher.lora.rank = (4, 8, 16)
    config.grid.student.optimizer = ("sgd", "adamw")
    config.grid.student.momentum = (0.8, 0.9)

    students = [("sgd", 0.8), ("sgd", 0.9), ("adamw", None)]
    teachers = [("full", None), ("lora", 4), ("lora", 8), ("lora", 16)]
    names = ("teacher.tuning", "teacher.lora.rank", "student.optimizer", "student.momentum")
    expected = [
        {name: v for name, v in zip(names, (*t, *s), strict=True) if v is not None}
        for t, s in itertools.product(teachers, students)
    ]
    points = _points(config, "remem")
    assert len(points) == len(expected) == 12
    assert all({**NEAREST, **point} in points for point in expected)
    assert len(_points(config, "scratch")) == len(students)
    assert len({trial.key for trial in space.trials(config)}) == 3 + 3 * 12


def test_a_row_keeps_the_settings_that_it_changes(config: ConfigDict) -> None:
    changes = {"student": {"weight_decay": 0.5}, "teacher": {"rho": 0.25}}
    config.rows.remem.changes = ConfigDict(changes)
    config.grid.student.weight_decay = (1e-4, 1e-3)
    config.grid.rho, config.search.near.rho = (0.05, 0.5), 0.5

    of_remem = [trial for trial in space.trials(config) if trial.row == "remem"]

    assert [trial.config.student.weight_decay for trial in of_remem] == [0.5]
    assert [trial.config.teacher.rho for trial in of_remem] == [0.25]
    assert len(_points(config, "finetune")) == 2


def test_an_axis_without_a_start_begins_at_its_first_value(config: ConfigDict) -> None:
    config.grid.student.weight_decay = (1e-3, 1e-4, 1e-5)
    config.grid.rho = (0.05, 0.5)

    first, *others = _points(config, "remem")

    assert first == {**NEAREST, "student.weight_decay": 1e-3}
    assert others[-1] == {**NEAREST, "rho": 0.05, "student.weight_decay": 1e-5}


def test_an_axis_of_table_6_may_stand_in_its_group_too(config: ConfigDict) -> None:
    config.grid.rho, config.grid.teacher.rho = (), (0.5, 0.05)
    in_group = space.trials(config)
    config.grid.rho, config.grid.teacher.rho = (0.05, 0.5), ()

    assert {trial.key for trial in space.trials(config)} == {trial.key for trial in in_group}
    assert all("teacher.rho" not in trial.point for trial in in_group)


def test_whole_numbers_of_a_real_setting_give_the_same_trials(config: ConfigDict) -> None:
    config.grid.student.weight_decay = (0, 1)
    before = [trial.key for trial in space.trials(config)]

    config.grid.student.weight_decay = (0.0, 1.0)

    assert [trial.key for trial in space.trials(config)] == before


def test_a_grown_axis_keeps_its_trials(config: ConfigDict) -> None:
    before = {trial.key for trial in space.trials(config)}
    config.grid.student.weight_decay = (config.base.student.weight_decay,)
    assert {trial.key for trial in space.trials(config)} == before

    config.grid.student.weight_decay = (config.base.student.weight_decay, 0.1)

    assert before < {trial.key for trial in space.trials(config)}


def test_the_sizes_of_grids_count_every_axis(config: ConfigDict) -> None:
    config.grid.attention_weight = (0.8, 0.9)
    config.grid.student.weight_decay = (1e-4, 1e-3, 1e-2)
    config.grid.student.flatten = (1.0, 2.0)

    grids = space.grid_sizes(config)

    assert grids == {"scratch": 3, "finetune": 3 * 2, "reweight": 3 * 2 * 2, "remem": 3 * 2 * 2}
    config.search.kind, config.search.budget = "halving", 1.0
    halving = search.Search(config.search, space.trials(config), grids)
    full = [cell.rungs[-1].size for cell in halving.cells.values()]
    assert len(set(full)) == 1
    assert [len(cell.trials) for cell in halving.cells.values()] == list(grids.values())


def test_a_column_with_a_smaller_grid_has_no_rung_that_drops_nothing(config: ConfigDict) -> None:
    config.columns.fixed = ConfigDict(study.column("Fixed", student={"weight_decay": 0.0}))
    config.column_order, config.only = ("fixed", "digits"), "finetune"
    config.grid.student.weight_decay = tuple(i / 10 for i in range(8))
    config.search.kind, config.search.reduction, config.search.rungs = "halving", 2, 2
    config.search.budget = 1.0

    grids = space.grid_sizes(config)
    cells = search.Search(config.search, space.trials(config), grids).cells

    assert grids["finetune"] == 8
    assert [(rung.size, len(rung.trials)) for rung in cells["finetune", "fixed", 0].rungs] == [
        (1, 1)
    ]
    assert cells["finetune", "fixed", 0].rungs[0].trials[0].fraction == 1
    assert len(cells["finetune", "digits", 0].rungs) == 2


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("seed", (0, 1), r"grid\.seed cannot be an axis of the grid: config\.seeds has"),
        ("methods", (("remem",),), r"grid\.methods cannot be .*each of config\.rows"),
        ("workflow", ("remem",), r"grid\.workflow cannot be .*all trials of a study share it"),
        ("choose_on_test", (True,), r"grid\.choose_on_test cannot be .*all trials of a study"),
        ("data.refit", (True, False), r"grid\.data\.refit cannot be .*all trials of a study"),
        ("data.group_pattern", ("x",), r"grid\.data\.group_pattern cannot be .*a column of"),
        ("plan_only", (True,), r"grid\.plan_only cannot be .*it changes no result"),
        ("differs", (("x",),), r"grid\.differs cannot be .*it changes no result"),
        ("data.workers", (0, 1), r"grid\.data\.workers cannot be .*it changes no result"),
        ("teacher.mirror", ("x",), r"grid\.teacher\.mirror cannot be .*it changes no result"),
        ("student.seeds", ((0,), (1,)), r"grid\.student\.seeds cannot be .*not selected"),
        ("data.name", ("digits", "dtd"), r"grid\.data\.name cannot be .*a column of"),
        ("data.validation", (0.1, 0.2), r"grid\.data\.validation cannot be .*a column of"),
        ("student.steps", (1.5,), r"grid\.student\.steps must be whole numbers, got \(1\.5,\)"),
        ("student.steps", (True,), r"grid\.student\.steps must be whole numbers"),
        ("student.ema", ("a",), r"grid\.student\.ema must be finite numbers"),
        ("student.ema", (float("inf"),), r"grid\.student\.ema must be finite numbers"),
        ("student.model", (1,), r"grid\.student\.model must be texts"),
        ("student.hard_labels", (1, 0), r"grid\.student\.hard_labels must be True or False"),
        ("student.temperatures", (1.0, 4.0), r"temperatures must hold tuples, .*\(\(1\.0,\),\)"),
        ("student.temperatures", (("a",),), r"grid\.student\.temperatures must be finite numbers"),
        ("student.temperatures", ((1.0,), [1.0]), r"temperatures repeats a value"),
        ("teacher.steps", ((1.5,),), r"grid\.teacher\.steps must be whole numbers"),
        ("student.betas", ((0.9,),), r"grid\.student\.betas must be two numbers"),
        ("student.ema", (0.5, 0.5), r"grid\.student\.ema repeats a value"),
        ("teacher.rho", (0.5,), r"config\.grid\.rho and config\.grid\.teacher\.rho are the same"),
        (
            "student.weight_decay",
            (0.1, -1),
            r"scratch, digits, student\.weight_decay -1: .*least 0",
        ),
        ("data.augment", ("none", "x"), r"scratch, digits, data\.augment x: .*must be one of none"),
        ("teacher.lora", (1,), r"grid\.teacher\.lora must be one of"),
        ("student.wait", (1,), r"config\.grid\.student\.wait must be one of .*weight_decay"),
        (
            "pupil.model",
            ("x",),
            r"config\.grid\.pupil\.model must be one of data, flatness, info.*'pupil'",
        ),
    ],
)
def test_values_that_cannot_be_searched_are_refused_by_name(
    config: ConfigDict, axis: str, values: tuple[Any, ...], message: str
) -> None:
    group, _, name = axis.rpartition(".")
    with config.unlocked(), config.ignore_type():
        place = config.grid
        if group:
            place[group] = place.get(group, ConfigDict())
            place = place[group]
        place[name] = values

    with pytest.raises(SettingError, match=message):
        space.check(config)


def test_a_start_that_an_axis_lacks_is_refused(config: ConfigDict) -> None:
    config.grid.rho, config.grid.teacher.rho = (), (0.05,)

    with pytest.raises(SettingError, match=r"config\.search\.near\.rho must be one of 0\.05"):
        space.check(config)


@pytest.mark.parametrize(
    ("axis", "values", "row", "why"),
    [
        ("attention_weight", (0.8,), "finetune", "the method or a setting of each row or col"),
        ("student.weights", ((0.5,),), "scratch", "the method scratch has no teacher"),
        ("student.init", ("a", "b"), "scratch", "starts from random weights"),
        ("teacher.lora.rank", (4,), "", r"config\.teacher\.tuning is full"),
        ("student.ema_warmup", (True,), "", r"config\.student\.ema is 0"),
        ("student.weight_decay", (0.1,), "remem", r"each of config\.rows sets it"),
    ],
)
def test_an_axis_that_no_trial_varies_is_refused(
    config: ConfigDict, axis: str, values: tuple[Any, ...], row: str, why: str
) -> None:
    config.rows.remem.changes = ConfigDict({"student": {"weight_decay": 0.5}})
    config.row_order = (row,) if row else config.row_order
    _set(config, axis, values)

    with pytest.raises(SettingError, match=rf"config\.grid\.{axis} has no effect: .*{why}"):
        of_study.check(config, [f"grid.{axis}"])


def test_a_setting_of_the_base_that_every_trial_varies_is_refused(config: ConfigDict) -> None:
    config.grid.student.weight_decay = (0.1, 0.2)

    with pytest.raises(SettingError, match=r"base\.student\.weight_decay has no effect: config\.g"):
        of_study.check(config, ["base.student.weight_decay"])

    config.grid.student.weight_decay = ()
    of_study.check(config, ["base.student.weight_decay", "grid.student.weight_decay"])


def test_every_setting_of_a_run_has_an_axis() -> None:
    config = settings.study(settings.run())
    table_6 = {"learning_rate", "rho", "mlp_weight", "attention_weight"}

    names = {name for name, _ in values.leaves(config.grid)}

    assert names - table_6 == {name for name, _ in values.leaves(settings.run())}
    searched = {"learning_rate", "rho", "mlp_weight"}
    assert set(axes.searched(config)) == searched


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
@pytest.mark.parametrize(
    ("argument", "axis", "values"),
    [
        ("attention_weight=(0.8, 0.9)", "attention_weight", (0.8, 0.9)),
        ("rho=()", "rho", None),
        ("student.weight_decay=(1e-4, 1e-3)", "student.weight_decay", (1e-4, 1e-3)),
        ("student.weight_decay=1e-4", "student.weight_decay", (1e-4,)),
        ("student.temperatures=((1.0,), (4.0,))", "student.temperatures", ((1.0,), (4.0,))),
        ("student.scratch_learning_rates=((), (1,))", "student.scratch_learning_rates", ((), (1,))),
        ("data.image_size=(32, 64)", "data.image_size", (32, 64)),
        ("data.augment=('trivial', 'rand')", "data.augment", ("trivial", "rand")),
        ("student.hard_labels=(True, False)", "student.hard_labels", (True, False)),
        ("teacher.lora.rank=(4, 8)", "teacher.lora.rank", (4, 8)),
        ("compute_dtype=('float32', 'bfloat16')", "compute_dtype", ("float32", "bfloat16")),
    ],
)
def test_the_command_line_sets_an_axis(
    monkeypatch: pytest.MonkeyPatch, argument: str, axis: str, values: tuple[Any, ...] | None
) -> None:
    arguments = ["main", "--config=configs/study.py:digits", f"--config.grid.{argument}"]
    monkeypatch.setattr(sys, "argv", arguments)  # ml_collections looks there too.
    monkeypatch.chdir(ROOT)
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=given, lock_config=True)
    given(arguments)

    assert axes.searched(given["config"].value).get(axis) == values


def test_a_storage_keeps_points_of_any_types(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    config.only = "remem"
    _set(config, "data.augment", ("none",))
    _set(config, "student.temperatures", ((1.0,), (2.0, 4.0)))
    _set(config, "student.hard_labels", (True,))
    _set(config, "student.steps", (20,))
    opened = queue.open_queue(
        "sqlite", "mine", folder=tmp_path, heartbeat_seconds=1, grace_seconds=9, attempts=1
    )
    with opened as shared:
        shared.add([scheduling.configuration(trial) for trial in space.trials(config)])
        _set(config, "data.augment", ("none", "trivial"))  # The axis grows.
        shared.add([scheduling.configuration(trial) for trial in space.trials(config)])
        stored = shared._study.get_trials(states=(TrialState.WAITING,))

    assert len(stored) == 4
    assert stored[0].params == {**NEAREST, "student.steps": 20}
    attributes = [trial.user_attrs for trial in stored]
    assert [each["data.augment"] for each in attributes] == ["none"] * 2 + ["trivial"] * 2
    assert [each["student.temperatures"] for each in attributes] == [[1.0], [2.0, 4.0]] * 2
    assert all(each["student.hard_labels"] is True for each in attributes)


def test_inputs_that_an_axis_varies_are_recorded_for_each_value(config: ConfigDict) -> None:
    config.only = "scratch"
    config.grid.data.image_size = (32,)
    identities = []
    for sizes in ((32,), (32, 64)):
        config.grid.data.image_size = sizes
        trials = space.trials(config)
        identities.append(inputs.of_study(config, trials, inputs.read(trials)).inputs["images"])

    before, after = identities
    assert before["digits"].items() < after["digits"].items()
    assert list(after["digits"]) == ["seed 0, data.image_size 32", "seed 0, data.image_size 64"]
