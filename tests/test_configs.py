"""The files of configs/ and their use from the command line."""

import importlib
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import analysis, evidence, quickstart, remem, rivals, study
from configs.tables import table1
from remem_jax.data import registry
from remem_jax.models import vit
from remem_jax.report import paper
from remem_jax.settings import analysis as checks_of_analysis
from remem_jax.study import space, teachers
from remem_jax.weights import catalog

ROOT = pathlib.Path(__file__).parents[1]
# Variants without published weights: the user gives a file, or the package contains it.
UNPUBLISHED = {"So400m/14", "g/14", "G/14"}
TABLES = sorted(path.stem for path in (ROOT / "configs" / "tables").glob("*.py"))
FIGURES = sorted(path.stem for path in (ROOT / "configs" / "figures").glob("*.py"))
DEFAULTS = {"settings"}  # The defaults from which all configs start.
NAMES = [
    *sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - DEFAULTS),
    *(f"tables.{name}" for name in TABLES),
    *(f"figures.{name}" for name in FIGURES),
]


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        leaves |= _leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return leaves


def test_there_are_configs() -> None:
    assert {"own", "quickstart", "remem", "study", "analysis"} <= set(NAMES)
    assert set(FIGURES) == {f"figure{number}" for number in range(1, 16)}
    assert {f"table{number}" for number in (1, 2, 3, 4, 8, 9, 10)} <= set(TABLES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_names_its_workflow(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()

    assert config.workflow in ("distil", "remem", "study", "analysis")


@pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)  # Raised by ml_collections.
@pytest.mark.parametrize("name", NAMES)
def test_every_setting_can_be_given_on_the_command_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _leaves(importlib.import_module(f"configs.{name}").get_config())
    overrides = [f"--config.{setting}={value}" for setting, value in expected.items()]
    arguments = ["main", f"--config={ROOT / 'configs' / name.replace('.', '/')}.py", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # ml_collections reads it too.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)

    values(arguments)

    assert _leaves(values["config"].value) == expected


def test_quickstart_and_the_paper_have_the_same_settings() -> None:
    assert _leaves(quickstart.get_config()).keys() == _leaves(remem.get_config()).keys()


def test_quickstart_and_the_paper_have_settings_of_the_same_types() -> None:
    first, second = (_leaves(config.get_config()) for config in (quickstart, remem))

    assert {name: type(value) for name, value in first.items()} == {
        name: type(value) for name, value in second.items()
    }


def test_the_first_word_of_the_spec_is_the_data_set() -> None:
    assert remem.get_config("flowers102").data.name == "flowers102"


@pytest.mark.parametrize("variant", ["Ti/16", "L/16"])
def test_the_spec_may_name_a_teacher(variant: str) -> None:
    assert remem.get_config(f"folder,variant={variant}").teacher.variant == variant


def test_the_weights_of_a_teacher_are_those_of_its_variant() -> None:
    assert remem.get_config("folder,variant=Ti/16").teacher.init == "augreg:Ti/16"


@pytest.mark.parametrize("variant", sorted(set(vit.VARIANTS) - UNPUBLISHED))
def test_the_weights_of_a_published_teacher_are_known(variant: str) -> None:
    init = remem.get_config(f"folder,variant={variant}").teacher.init

    assert catalog.find(init).variant == variant


def test_the_spec_may_name_a_student() -> None:
    assert remem.get_config("folder,student=resnet50").student.model == "resnet50"


def test_the_spec_may_hold_two_options() -> None:
    config = remem.get_config("folder,student=resnet50,variant=S/16")

    assert (config.student.model, config.teacher.variant) == ("resnet50", "S/16")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'width'; known: variant, student, loss"):
        remem.get_config("folder,width=3")


def test_changes_to_a_config_do_not_affect_the_next_one() -> None:
    remem.get_config().teacher.rho = 7.0

    assert remem.get_config().teacher.rho == 0.5


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remem_jax.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )


def _require_one_line(done: subprocess.CompletedProcess[str], wanted: str) -> None:
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("remem_jax: ")
    assert wanted in lines[0]
    assert "Traceback" not in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--config=configs/quickstart.py", "--config.teacher.rho=-1"], "config.teacher.rho"),
        (["--config=configs/remem.py:imagenet"], "'imagenet'"),
    ],
    ids=["bad value", "unknown data set"],
)
def test_an_invalid_setting_ends_in_one_line(
    tmp_path: pathlib.Path, arguments: list[str], wanted: str
) -> None:
    done = _run(*arguments, f"--workdir={tmp_path / 'run'}")

    _require_one_line(done, wanted)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--config=configs/quickstart.py", "--config.teacher.rhoo=1"], 'Did you mean "rho"'),
        (["--config=configs/quickstart.py", "--config.teachr.rho=1"], 'Did you mean "teacher"'),
        (["--config=configs/quickstart.py", "--config.teacher.zzz=1"], "no setting 'zzz'."),
        (["--config=configs/quickstart.py", "--config.student.steps=many"], "config.student.steps"),
        (["--config=configs/quickstart.py", "--workdirr=x"], "workdirr"),
        (["--config=configs/quickstart.py", "teacher.rho=1"], "teacher.rho=1"),
        (["--config=configs/remem.py:cifar100,width=3"], "no option 'width'"),
        (["--config=configs/remem.py:cifar100,loss=mse"], "kd, dist, patient, features; got 'mse'"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        ([], "--config"),
    ],
    ids=[
        "misspelt",
        "misspelt group",
        "unknown",
        "wrong type",
        "unknown flag",
        "no flag",
        "unknown option",
        "unknown loss",
        "no file",
        "no config",
    ],
)
def test_a_misspelt_setting_ends_in_one_line(
    tmp_path: pathlib.Path, arguments: list[str], wanted: str
) -> None:
    done = _run(*arguments, f"--workdir={tmp_path / 'run'}")

    _require_one_line(done, wanted)


def test_a_run_without_a_folder_ends_in_one_line() -> None:
    _require_one_line(_run("--config=configs/quickstart.py"), "--workdir")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("spec", ["", "mini"])
def test_a_table_is_a_valid_study(name: str, spec: str) -> None:
    config = importlib.import_module(f"configs.tables.{name}").get_config(spec)

    space.check(config)

    assert name == f"table{config.table}"
    assert ("mini" in config.title.lower(), bool(config.mini)) == (bool(spec), bool(spec))


@pytest.mark.parametrize("spec", ["caltech101", "caltech101,variant=Ti/16,loss=dist"])
def test_each_rival_is_a_row_of_a_valid_study(spec: str) -> None:
    config = rivals.get_config(spec)

    space.check(config)

    assert {trial.row for trial in space.trials(config)} == set(config.row_order)
    config.base.teacher.steps, config.base.teacher.warmup_steps = (400,), 40
    teachers_of = {trial.row: trial.config.teacher for trial in space.trials(config)}
    assert teachers_of["early"].steps == (40,)
    assert teachers_of["probed_finetuned"].probe_steps == 80
    wanted = {"probed", "probed_finetuned", "early", "smoothing", "mcmi", "lora", "calibrated"}
    assert wanted <= set(config.row_order)


@pytest.mark.parametrize("spec", ["caltech101", "caltech101+flowers102,small"])
def test_students_of_the_evidence_share_its_teachers(spec: str) -> None:
    config = evidence.get_config(spec)

    space.check(config)

    trials = space.trials(config)
    datasets = {trial.config.data.name for trial in trials}
    cells = len(datasets) * len(config.seeds)
    # Fine-tuned, probed, two re-weighted, three with SAM and six with both.
    teacher_keys = {teachers.settings_key(trial.config) for trial in trials} - {""}
    assert len(teacher_keys) == (1 + 1 + 2 + 3 + 6) * cells
    # Besides: no teacher, three other losses with the fine-tuned one, and two with those of ReMem.
    assert len(trials) == (13 + 1 + 3 + 2 * 6) * cells * len(evidence.STUDENTS)
    alone = {trial.config.methods for trial in trials if trial.row == "alone"}
    assert alone == {("alone",), ("scratch",)}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_cell_for_each_of_the_papers_numbers(name: str) -> None:
    config = importlib.import_module(f"configs.tables.{name}").get_config()
    published = {key for key in paper._RECORDS if key[0] == config.table}

    cells = {(config.table, row, column) for row in config.rows for column in config.columns}

    assert published <= cells
    assert published in (cells, set())


@pytest.mark.parametrize("name", TABLES)
def test_a_mini_table_keeps_the_layout_of_the_table(name: str) -> None:
    module = importlib.import_module(f"configs.tables.{name}")
    full, mini = module.get_config(), module.get_config("mini")

    assert mini.row_order == full.row_order
    assert set(mini.column_order) >= set(full.column_order)
    assert {trial.row for trial in space.trials(mini)} == set(full.row_order)
    assert "Ti/16" in {trial.config.teacher.variant for trial in space.trials(mini)}


def test_the_columns_of_table_1_are_the_data_sets_of_the_registry() -> None:
    assert set(table1.get_config().column_order) == set(registry.RECORDS)


def test_an_unknown_option_of_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny"):
        table1.get_config("tiny")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("spec", ["", "mini"])
def test_a_figure_has_a_valid_config(name: str, spec: str) -> None:
    config = importlib.import_module(f"configs.figures.{name}").get_config(spec)

    if config.workflow == "study":
        space.check(config)
        trials = [trial.config for trial in space.trials(config)]
        assert all(trial.information.seeds for trial in trials)
        assert bool(config.mini) == bool(spec)
    else:
        checks_of_analysis.check(config)
        trials = [model for _, model in checks_of_analysis.of_models(config)]

    number = config.title.partition(":")[0].removesuffix(" (mini)")
    assert number == f"Figure {name.removeprefix('figure')}"
    inits = {trial.teacher.init for trial in trials}
    assert {catalog.find(init).variant for init in inits} == {"Ti/16" if spec else "B/16"}


def test_an_unknown_option_of_a_figure_is_refused() -> None:
    for name in ("figure1", "figure5", "figure7"):
        with pytest.raises(ValueError, match="tiny"):
            importlib.import_module(f"configs.figures.{name}").get_config("tiny")


def test_teachers_are_pruned_from_none_to_all_of_their_blocks() -> None:
    config = importlib.import_module("configs.figures.figure4").get_config()

    pruned = {
        (trial.config.teacher.pruned_mlp, trial.config.teacher.pruned_attention)
        for trial in space.trials(config)
    }

    assert pruned == {(count, 0) for count in range(13)} | {(0, count) for count in range(13)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), ["i1k", "i21k", "augreg"]), (("augreg", "i1k"), ["i1k", "augreg"])],
)
def test_columns_of_strengths_start_with_the_weakest(
    names: tuple[str, ...], expected: list[str]
) -> None:
    columns = study.strengths("caltech101", *names, spec="")

    assert list(columns) == [f"caltech101_{name}" for name in expected]
    for name, column in zip(expected, columns.values(), strict=True):
        assert column["changes"]["data"] == {"name": "caltech101"}
        assert column["changes"]["teacher"]["init"] == analysis.STRENGTHS[name][1]


def test_an_analysis_may_have_several_checkpoints() -> None:
    config = analysis.get_config("flowers102,init=augreg:Ti/16|x/mine.npz,analyses=expertness")

    assert (config.data.name, config.analyses) == ("flowers102", ("expertness",))
    models = [(entry.title, merged.teacher.init) for entry, merged in _models(config)]
    assert models == [("augreg:Ti/16", "augreg:Ti/16"), ("mine", "x/mine.npz")]


def test_checkpoints_with_the_same_file_name_are_distinguished_by_folder() -> None:
    config = analysis.get_config("digits,init=a/teacher.npz|b/teacher.npz")

    assert [entry.title for entry, _ in _models(config)] == ["a/teacher.npz", "b/teacher.npz"]


def test_a_checkpoint_from_the_hub_has_its_whole_name_as_title() -> None:
    inits = ["timm/vit_large_patch16_dinov3.lvd1689m", "timm/vit_large_patch16_dinov3.sat493m"]

    config = analysis.get_config(f"digits,init={'|'.join(inits)}")

    assert [entry.title for entry, _ in _models(config)] == inits


def _models(config: ConfigDict) -> list[tuple[ConfigDict, ConfigDict]]:
    """Returns the entry of each model in the config, and its merged settings."""
    return [(config.models[name], merged) for name, merged in checks_of_analysis.of_models(config)]


def test_an_analysis_with_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'inits'; known: init, analyses"):
        analysis.get_config("digits,inits=a.npz")
