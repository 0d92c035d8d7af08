"""The trials of a study, and those that its search schedules."""

import collections
import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import study
from configs.tables import table8, table10
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.settings import plain
from remem_jax.storage import identity, results
from remem_jax.study import search, space
from tests import tiny_run


@pytest.fixture
def config() -> ConfigDict:
    """A study of the bundled teacher and the digits."""
    rows = study.rows("scratch", "finetune", "reweight", "sam", "remem")
    config = study.make("Digits", rows, {"digits": study.column("Digits")}, base=tiny_run.digits())
    config.grid = ConfigDict(
        {"learning_rate": (0.01, 0.03, 0.1), "rho": (0.05, 0.5), "mlp_weight": (0.8, 0.9)}
    )
    config.search.near = ConfigDict({"learning_rate": 0.03, "rho": 0.5, "mlp_weight": 0.9})
    return config


def _by_row(trials: list[space.Trial]) -> dict[str, int]:
    return dict(collections.Counter(trial.row for trial in trials))


def test_the_paper_s_grid_has_54_teachers_of_remem_and_9_of_fine_tuning() -> None:
    trials = space.trials(table10.get_config())

    assert _by_row(trials) == {"finetune": 9, "reweight": 18, "sam": 27, "remem": 54}


def test_a_row_varies_no_setting_that_its_method_fixes(config: ConfigDict) -> None:
    trials = space.trials(config)

    assert _by_row(trials) == {"scratch": 1, "finetune": 3, "reweight": 6, "sam": 6, "remem": 12}
    for trial in trials:
        assert not set(METHODS[trial.row].fixed) & set(trial.point)


def test_a_row_that_changes_what_its_method_fixes_is_refused(config: ConfigDict) -> None:
    config.rows.own = ConfigDict(study.row("SAM 0.1", "finetune", teacher={"rho": 0.1}))
    config.row_order = (*config.row_order, "own")

    message = r"config\.rows\.own\.changes\.teacher\.rho is 0\.1, but the method finetune sets"
    with pytest.raises(SettingError, match=message):
        space.check(config)
    config.rows.own = ConfigDict(study.row("SAM 0.1", "sam", teacher={"rho": 0.1}))
    space.check(config)


def test_cells_with_the_same_settings_share_a_trial_that_is_run_once(config: ConfigDict) -> None:
    def identify(run: ConfigDict) -> str:
        (method,) = run.methods  # A student without a teacher reads none.
        init = run.teacher.init if METHODS[method].has_teacher else ""
        return results.fingerprint([identity.deciding(plain(run)), init])

    changes = {name: {"teacher": {"init": f"{name}.npz"}} for name in ("first", "second")}
    config.columns = ConfigDict(
        {name: study.column(name, **each) for name, each in changes.items()}
    )
    config.column_order = tuple(changes)
    config.only = "scratch,finetune"

    trials = space.trials(config, identify)

    assert _by_row(trials) == {"scratch": 2, "finetune": 6}
    from_scratch = {trial.column: trial.key for trial in trials if trial.row == "scratch"}
    assert from_scratch["first"] == from_scratch["second"]
    found = search.Search(config.search, trials, space.grid_sizes(config))
    assert len(found.by_key) == len(found.planned) == 7
    assert {trial.cell for trial in found.schedule({}).trials} == {t.cell for t in trials}


def test_a_run_has_the_settings_that_its_method_fixes(config: ConfigDict) -> None:
    (trial, *_) = [trial for trial in space.trials(config) if trial.row == "finetune"]

    teacher = trial.config.teacher
    assert (teacher.rho, teacher.mlp_weight, teacher.attention_weight) == (0.0, 1.0, 1.0)
    assert trial.config.methods == ("finetune",)


def test_a_search_starts_in_the_paper_s_best_region(config: ConfigDict) -> None:
    remem = [trial for trial in space.trials(config) if trial.row == "remem"]

    assert remem[0].point == {"learning_rate": 0.03, "rho": 0.5, "mlp_weight": 0.9}
    assert remem[-1].point["rho"] == 0.05


def test_every_seed_has_all_trials(config: ConfigDict) -> None:
    alone = space.trials(config)

    config.seeds = (0, 5)

    two_seeds = space.trials(config)
    assert {trial.key for trial in alone} < {trial.key for trial in two_seeds}
    assert len(two_seeds) == 2 * len(alone)
    assert {trial.config.seed for trial in two_seeds} == {0, 5}


def test_rows_and_columns_can_be_selected_by_name() -> None:
    config = table8.get_config()

    config.only = "dist_remem, pcam"

    assert {trial.cell for trial in space.trials(config)} == {("dist_remem", "pcam", 0)}


def test_an_extended_study_keeps_its_trials() -> None:
    config = table8.get_config()
    config.only = "cifar100"
    before = {trial.key for trial in space.trials(config)}

    config.only = "cifar100,pcam"

    assert before < {trial.key for trial in space.trials(config)}


def test_settings_without_influence_on_results_do_not_change_keys(config: ConfigDict) -> None:
    before = [trial.key for trial in space.trials(config)]

    config.base.data.cache = "elsewhere"
    config.base.save_every = 7

    assert [trial.key for trial in space.trials(config)] == before


@pytest.mark.parametrize("setting", ["student.steps", "teacher.batch_size", "seed"])
def test_settings_that_influence_results_change_keys(config: ConfigDict, setting: str) -> None:
    before = {trial.key for trial in space.trials(config)}

    if setting == "seed":
        config.seeds = (3,)
    else:
        group, name = setting.split(".")
        config.base[group][name] += 1

    assert before.isdisjoint(trial.key for trial in space.trials(config))


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("rows", {"student": {"stepz": 3}}, r"config\.rows\.remem\.changes\.student.*stepz"),
        ("columns", {"datas": {}}, r"config\.columns\.digits\.changes.*datas"),
    ],
)
def test_a_change_of_an_unknown_setting_is_refused(
    config: ConfigDict, group: str, changes: dict[str, Any], message: str
) -> None:
    config[group][{"rows": "remem", "columns": "digits"}[group]].changes = ConfigDict(changes)

    with pytest.raises(SettingError, match=message):
        space.check(config)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("only", "nothing", r"config\.only must be one of"),
        ("seeds", (), r"config\.seeds"),
        ("seeds", (0, 0), r"config\.seeds repeats a value"),
        ("seeds", (2**32,), r"config\.seeds must be a whole number"),
        ("grid.rho", (0.5, 0.5), r"config\.grid\.rho repeats a value"),
        ("grid.rho", (float("nan"),), r"config\.grid\.rho must be finite"),
        ("name", "", r"config\.name"),
        ("row_order", ("remem",), r"config\.row_order must list all names in config\.rows"),
        ("grace_seconds", 1.0, r"config\.grace_seconds must be at least"),
        ("attempts", 0, r"config\.attempts"),
        ("margin", -0.5, r"config\.margin must be at least 0"),
        ("baseline", "nothing", r"config\.baseline must be one of , scratch, finetune"),
        ("search.kind", "random", r"config\.search\.kind"),
        ("search.reduction", 1, r"config\.search\.reduction"),
        ("search.budget", 1.5, r"config\.search\.budget"),
        ("search.near.rho", 0.3, r"config\.search\.near\.rho"),
        ("grid.rho", 0.5, r"config\.grid\.rho must be a tuple of the values to search, got 0\.5"),
        ("grid.radius", (0.1,), r"config\.grid\.radius must be one of"),
        ("base.teacher.batch_size", 0, r"scratch, digits: config\.teacher\.batch_size"),
        (
            "grid.mlp_weight",
            (0.9, 2.0),
            r"reweight, digits, learning rate 0\.03, mlp weight 2: config\.teacher\.mlp_weight",
        ),
    ],
)
def test_invalid_settings_are_named(
    config: ConfigDict, setting: str, value: Any, message: str
) -> None:
    *groups, name = setting.split(".")
    where = config
    for group in groups:
        where = where[group]
    with config.ignore_type():
        where[name] = value

    with pytest.raises(SettingError, match=message):
        space.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": "nothing"}, r"config\.claims\.helps\.row must be one of scratch, finetune"),
        ({"baseline": "nothing"}, r"config\.claims\.helps\.baseline must be one of scratch"),
        ({"baseline": "remem"}, r"config\.claims\.helps compares the row remem with itself"),
        ({"title": ""}, r"config\.claims\.helps must have a title, a row and a baseline"),
        ({"rows": ""}, r"config\.claims\.helps must have a title, a row and a baseline"),
    ],
)
def test_an_invalid_claim_is_named(
    config: ConfigDict, changes: dict[str, str], message: str
) -> None:
    claim = {"title": "ReMem helps", "row": "remem", "baseline": "finetune"}
    config.claims.helps = ConfigDict(claim)
    space.check(config)

    config.claims.helps = ConfigDict(claim | changes)

    with pytest.raises(SettingError, match=message):
        space.check(config)


def test_what_is_compared_may_change_in_a_study_that_has_begun(config: ConfigDict) -> None:
    before = identity.deciding_of_study(plain(config))
    keys = [trial.key for trial in space.trials(config)]

    config.baseline, config.margin = "scratch", 2.0
    claim = {"title": "ReMem helps", "row": "remem", "baseline": "finetune"}
    config.claims.helps = ConfigDict(claim)

    assert identity.deciding_of_study(plain(config)) == before
    assert [trial.key for trial in space.trials(config)] == keys


def test_titles_may_change_in_a_study_that_has_begun(config: ConfigDict) -> None:
    before = identity.deciding_of_study(plain(config))
    keys = [trial.key for trial in space.trials(config)]

    for named in (*config.rows.values(), *config.columns.values()):
        named.title += " (renamed)"
    next(iter(config.rows.values())).group = "Ours"

    assert identity.deciding_of_study(plain(config)) == before
    assert [trial.key for trial in space.trials(config)] == keys


def test_a_scaled_trial_has_a_fraction_of_all_steps() -> None:
    (trial, *_) = [trial for trial in space.trials(table10.get_config()) if trial.row == "remem"]

    short = space.scaled(trial, 1 / 4).config

    assert short.teacher.steps == (125, 175, 250, 750, 1250, 1750, 2500)
    assert (short.teacher.warmup_steps, short.student.steps) == (125, 5000)
    assert (short.student.warmup_steps, short.teacher.batch_size) == (125, 512)


def test_a_scaled_trial_has_valid_settings(config: ConfigDict) -> None:
    trial = space.trials(config)[-1]

    for fraction in (1 / 4, 1 / 64, 1 / 1000):
        space.check_remem(space.scaled(trial, fraction).config)


def test_a_row_may_have_a_part_of_the_steps_of_others(config: ConfigDict) -> None:
    parts = {"steps": 0.1, "warmup_steps": 0.05}
    rows = {
        **study.rows("finetune"),
        "early": study.row("Early stopped", "finetune", parts=parts),
        "probed": study.row("Probed first", "finetune", parts={"probe_steps": 0.2}),
    }
    config.rows, config.row_order = ConfigDict(rows), tuple(rows)
    config.base.teacher.update({"steps": (100, 400), "warmup_steps": 40})
    config.grid.learning_rate = ()

    space.check(config)

    settings = {trial.row: trial.config.teacher for trial in space.trials(config)}
    found = {row: (t.steps, t.warmup_steps, t.probe_steps) for row, t in settings.items()}
    assert found == {
        "finetune": ((100, 400), 40, 0),
        "early": ((40,), 20, 0),
        "probed": ((100, 400), 40, 80),
    }
    (probed,) = [trial for trial in space.trials(config) if trial.row == "probed"]
    short = space.scaled(probed, 1 / 16)
    assert (short.config.teacher.steps, short.config.teacher.probe_steps) == ((6, 25), 5)
    space.check_remem(short.config)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"batch_size": 0.1}, r"config\.rows\.early\.parts must be one of steps, probe_steps"),
        ({"steps": 1.5}, r"config\.rows\.early\.parts\.steps must be from 0 to 1, got 1\.5"),
    ],
)
def test_an_invalid_part_of_the_steps_is_named(
    config: ConfigDict, parts: dict[str, float], message: str
) -> None:
    rows = {"early": study.row("Early stopped", "finetune", parts=parts)}
    config.rows, config.row_order = ConfigDict(rows), tuple(rows)

    with pytest.raises(SettingError, match=message):
        space.check(config)


def _search(kind: str = "halving", **settings: Any) -> ConfigDict:
    defaults = {"kind": kind, "seeds": (), "reduction": 4, "rungs": 3, "budget": 0.2, "near": {}}
    return ConfigDict({**defaults, **settings})


GRIDS = st.lists(st.integers(1, 60), min_size=1, max_size=5)
SEARCH_OPTIONS = st.fixed_dictionaries(
    {
        "reduction": st.integers(2, 5),
        "rungs": st.integers(1, 4),
        "budget": st.floats(0.05, 1.0),
    }
)


@given(grids=GRIDS, options=SEARCH_OPTIONS)
def test_rows_have_equally_many_full_trials_or_their_whole_grid(
    grids: list[int], options: dict[str, Any]
) -> None:
    sizes = _sizes(grids, options)

    full = [size[1.0] for size in sizes]
    most = max(full)
    assert all(size in (most, grid) for size, grid in zip(full, grids, strict=True))
    for size, grid in zip(sizes, grids, strict=True):
        numbers = list(size.values())
        assert list(size) == sorted(size)
        assert grid >= numbers[0]
        assert all(above < below for below, above in itertools.pairwise(numbers))


@given(grids=GRIDS, options=SEARCH_OPTIONS)
def test_rungs_use_the_budget_and_no_more(grids: list[int], options: dict[str, Any]) -> None:
    sizes = _sizes(grids, options)
    pairs = [(size, grid) for size, grid in zip(sizes, grids, strict=True) if grid > 1]
    held = options["budget"] * sum(grid for _, grid in pairs) + 1e-9

    begun = [max(size.values()) for size, _ in pairs]
    spent = sum(fraction * number for size, _ in pairs for fraction, number in size.items())
    left_out = [size for size, grid in pairs if max(size.values()) < grid]

    assert spent <= held
    if left_out:  # One more setting of each would exceed the budget.
        assert len({max(size.values()) for size in left_out}) == 1
        assert max(begun) == max(left_out[0].values())
        lowest = options["reduction"] ** (1.0 - options["rungs"])
        assert (
            spent + lowest * len(left_out) > held
            or options["rungs"] == 1
            or (any(lowest not in size for size in left_out))
        )


def _sizes(grids: list[int], options: dict[str, Any]) -> list[dict[float, int]]:
    """Returns the rungs of rows with these grids; rejects examples that exceed the budget."""
    settings = _search(**options)
    rows = {str(number): grid for number, grid in enumerate(grids)}
    searched = [grid for grid in grids if grid > 1]
    assume(len(searched) <= settings.budget * sum(searched))
    return list(space.halving_sizes(rows, settings).values())


def test_a_budget_below_one_trial_of_each_row_is_refused() -> None:
    with pytest.raises(SettingError, match=r"config\.search\.budget .* grids of 4, 1: raise it"):
        space.halving_sizes({"remem": 4, "scratch": 1}, _search())


def test_rows_left_out_by_only_count_for_the_rungs_of_others(config: ConfigDict) -> None:
    config.search = _search(budget=0.5)
    grids = space.grid_sizes(config)
    complete = search.Search(config.search, space.trials(config), grids)
    config.only = "remem"

    alone = search.Search(config.search, space.trials(config), space.grid_sizes(config))

    (cell,) = alone.cells
    sizes = [[rung.size for rung in either.cells[cell].rungs] for either in (alone, complete)]
    assert sizes[0] == sizes[1]


def test_rows_of_a_study_run_equally_many_full_trials(config: ConfigDict) -> None:
    trials = space.trials(config)

    done = _run(_search(budget=0.6, rungs=2), trials, _hashed, random.Random(0))

    full = collections.Counter(trial.row for trial in trials if trial.key in done)
    assert full == {"scratch": 1, "finetune": 2, "reweight": 2, "sam": 2, "remem": 2}


def _run(
    settings: ConfigDict, trials: list[space.Trial], value: Any, order: random.Random
) -> dict[str, float]:
    """Runs the scheduled trials one at a time, in random order, until all are done."""
    values: dict[str, float] = {}
    complete = search.Search(settings, trials)
    while True:
        scheduled = complete.schedule(values)
        left = [trial for trial in scheduled.trials if trial.key not in values]
        if not left:
            assert not scheduled.more
            return values
        trial = order.choice(left)
        values[trial.key] = value(trial)


def _quality(trial: space.Trial) -> float:
    """Returns a value that is best at the end of the grid farthest from the start of the search."""
    point = trial.point
    return 10 * point["learning_rate"] - point["rho"] - point["mlp_weight"] + trial.fraction


def test_a_grid_search_schedules_every_trial_at_once(config: ConfigDict) -> None:
    trials = space.trials(config)

    scheduled = search.Search(_search("grid"), trials).schedule({})

    assert {trial.key for trial in scheduled.trials} == {trial.key for trial in trials}
    assert not scheduled.more


def test_a_cell_of_one_trial_is_run_with_all_steps_by_any_search(config: ConfigDict) -> None:
    trials = [trial for trial in space.trials(config) if trial.row == "scratch"]

    halving = search.Search(_search(), trials)

    assert halving.schedule({}) == search.Schedule(trials, more=False)


def test_halving_finds_the_best_trial_if_short_runs_rank_like_long_ones(
    config: ConfigDict,
) -> None:
    trials = [trial for trial in space.trials(config) if trial.row == "remem"]
    settings = _search(budget=1.0)

    done = _run(settings, trials, _quality, random.Random(0))

    best = max(trials, key=_quality)
    assert best.key in done
    assert sum(trial.key in done for trial in trials) == 1


@pytest.mark.parametrize("seed", range(1, 6))
def test_halving_schedules_the_same_trials_in_any_order_of_results(
    config: ConfigDict, seed: int
) -> None:
    trials = [trial for trial in space.trials(config) if trial.row in ("remem", "sam")]
    settings = _search(rungs=2, budget=0.5)

    values = _run(settings, trials, _hashed, random.Random(seed))

    assert values == _run(settings, trials, _hashed, random.Random(0))


def test_the_planned_number_of_trials_is_run(config: ConfigDict) -> None:
    trials = [trial for trial in space.trials(config) if trial.row in ("remem", "sam")]
    settings = _search(rungs=2, budget=0.5)

    done = _run(settings, trials, _hashed, random.Random(0))

    planned = search.Search(settings, trials).planned
    full = {trial.key for trial in trials}
    assert len(planned) == len(done)
    assert sum(trial.fraction for trial in planned) == sum(
        1.0 if key in full else 0.25 for key in done
    )


def _hashed(trial: space.Trial) -> float:
    return int(trial.key, 16) / 16**16


def test_a_failed_trial_does_not_go_on(config: ConfigDict) -> None:
    trials = [trial for trial in space.trials(config) if trial.row == "remem"]
    settings = _search(budget=1.0, rungs=2)
    failing = {space.scaled(trial, 1 / 4).key for trial in trials if _quality(trial) < 0.5}

    done = _run(
        settings,
        trials,
        lambda trial: float("-inf") if trial.key in failing else -_quality(trial),
        random.Random(0),
    )

    promoted = [trial for trial in trials if trial.key in done]
    assert len(promoted) == 3
    assert all(_quality(trial) >= 0.5 for trial in promoted)


def test_each_cell_has_its_own_search(config: ConfigDict) -> None:
    config.seeds = (0, 1)
    trials = [trial for trial in space.trials(config) if trial.row in ("remem", "sam")]

    done = _run(_search(budget=1.0), trials, _hashed, random.Random(0))

    full = [trial.cell for trial in trials if trial.key in done]
    assert sorted(full) == sorted(
        (row, "digits", seed) for row, seed in itertools.product(("remem", "sam"), (0, 1))
    )


@pytest.mark.parametrize("kind", ["grid", "halving"])
def test_other_seeds_repeat_the_best_trial_of_the_seed_that_is_searched(
    config: ConfigDict, kind: str
) -> None:
    config.seeds = (0, 1, 2)
    trials = [trial for trial in space.trials(config) if trial.row in ("remem", "sam")]
    settings = _search(kind, budget=1.0, seeds=(1,))

    done = _run(settings, trials, _hashed, random.Random(0))

    for row in ("remem", "sam"):
        full = {
            seed: [t for t in trials if t.cell == (row, "digits", seed) and t.key in done]
            for seed in config.seeds
        }
        best = max(full[1], key=_hashed)
        assert [[t.point for t in full[seed]] for seed in (0, 2)] == [[best.point]] * 2
    planned = search.Search(settings, trials).planned
    assert len(planned) == len(done)


def test_other_seeds_repeat_the_trial_with_the_highest_mean_over_the_seeds_searched(
    config: ConfigDict,
) -> None:
    config.seeds = (0, 1, 2)
    trials = [trial for trial in space.trials(config) if trial.row == "sam"]
    # The best point of each seed is bad with the other, and another point failed with one.
    first, second, third, *_ = [trial.point for trial in trials if trial.seed == 0]
    values = {(0, str(first)): 0.9, (1, str(first)): 0.1, (0, str(second)): 0.2}
    values |= {(1, str(second)): 0.8, (0, str(third)): 0.7, (1, str(third)): 0.6}

    def value(trial: space.Trial) -> float:
        return values.get((trial.seed, str(trial.point)), -math.inf if trial.seed else 1.0)

    done = _run(_search("grid", seeds=(0, 1)), trials, value, random.Random(0))

    assert [t.point for t in trials if t.seed == 2 and t.key in done] == [third]


def test_a_trial_to_repeat_is_only_known_at_the_end_of_the_search(config: ConfigDict) -> None:
    config.seeds = (0, 1)
    trials = [trial for trial in space.trials(config) if trial.row == "sam"]
    complete = search.Search(_search("grid", seeds=(0,)), trials)
    (last, *before) = [trial for trial in trials if trial.seed == 0]

    started = complete.schedule({trial.key: 0.5 for trial in before})
    ended = complete.schedule({**{trial.key: 0.5 for trial in before}, last.key: 0.6})

    assert started.more
    assert not [trial for trial in started.trials if trial.seed == 1]
    assert [trial.key for trial in started.repeats] == [t.key for t in trials if t.seed == 1]
    assert (ended.more, ended.repeats) == (False, ())
    (repeat,) = [trial for trial in ended.trials if trial.seed == 1]
    assert repeat.point == last.point


def test_a_row_of_one_setting_does_not_wait_for_the_search(config: ConfigDict) -> None:
    config.seeds = (0, 1)
    trials = [trial for trial in space.trials(config) if trial.row == "scratch"]

    scheduled = search.Search(_search("grid", seeds=(0,)), trials).schedule({})

    assert scheduled == search.Schedule(trials, more=False)


def test_only_seeds_of_the_study_can_be_searched(config: ConfigDict) -> None:
    config.seeds, config.search.seeds = (0, 1), (2,)

    with pytest.raises(SettingError, match=r"config\.search\.seeds must be one of 0, 1; got 2"):
        space.check(config)
