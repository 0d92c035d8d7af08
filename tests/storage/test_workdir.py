"""Working directories of runs and studies: claims, configs and inputs."""

import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import results, workdir
from remem_jax.storage.identity import TRAINING, Identity

CONFIG: dict[str, Any] = {"seed": 0, "teacher": {"rho": 0.5, "steps": (1, 2)}, "student": {}}


def _claim(directory: pathlib.Path, config: dict[str, Any]) -> None:
    with workdir.claimed(directory, config):
        workdir.begin(directory, config, Identity(config, {}))


def _begin(directory: pathlib.Path, **inputs: Any) -> None:
    workdir.begin(directory, CONFIG, Identity(CONFIG, inputs))


def test_a_folder_is_created_with_its_parents(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path / "a" / "b", CONFIG)

    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_records_its_config(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, {"seed": 0, "teacher": {"rho": 0.5}})

    assert results.read(tmp_path / "config.json") == {"seed": 0, "teacher": {"rho": 0.5}}


def test_a_folder_may_be_claimed_again_with_the_same_config(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, CONFIG)

    _claim(tmp_path, CONFIG)  # JSON has turned a tuple into a list, which is accepted.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"teacher": {"rho": 0.1, "steps": (1, 2)}}, "teacher.rho was 0.5, is 0.1"),
        ({"teacher": {"rho": 0.5, "steps": (1, 3)}}, "teacher.steps was [1, 2], is [1, 3]"),
        ({"new": True}, "new was None, is True"),
        ({"teacher": {"steps": (1, 2)}}, "teacher.rho was 0.5, is None"),
    ],
)
def test_a_folder_with_another_config_is_refused_naming_the_changed_settings(
    tmp_path: pathlib.Path, changed: dict[str, Any], message: str
) -> None:
    _claim(tmp_path, CONFIG)

    with pytest.raises(SettingError, match=re.escape(f"another config: {message}. ")):
        _claim(tmp_path, CONFIG | changed)


def test_a_refused_config_does_not_replace_the_recorded_one(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, CONFIG)
    with pytest.raises(SettingError):
        _claim(tmp_path, CONFIG | {"seed": 1})

    _claim(tmp_path, CONFIG)


def test_many_changed_settings_are_counted(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, dict.fromkeys("abcdefgh", 0))

    with pytest.raises(SettingError, match=r"a was 0, is 1; .*e was 0, is 1 and 3 more"):
        _claim(tmp_path, dict.fromkeys("abcdefgh", 1))


def test_a_folder_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    with (
        workdir.claimed(tmp_path, CONFIG),
        pytest.raises(SettingError, match=r"Another process.*--workdir"),
    ):
        _claim(tmp_path, CONFIG)


def test_a_folder_is_free_after_its_process_was_killed(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, pathlib, sys; from remem_jax.storage import workdir\n"
        "with workdir.claimed(pathlib.Path(sys.argv[1]), {}):\n"
        "    print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        with pytest.raises(SettingError, match="Another process"):
            _claim(tmp_path, {})
        process.kill()

    _claim(tmp_path, {})


def test_a_folder_is_free_after_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError), workdir.claimed(tmp_path, CONFIG):
        raise KeyError

    _claim(tmp_path, CONFIG)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_is_not_writable_is_refused(tmp_path: pathlib.Path, below: str) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(SettingError, match=r"Cannot write to .*file.*set --workdir"):
        _claim(tmp_path / "file" / below, CONFIG)


INPUTS = {"data": "c0ffee", "teacher": "decade"}


def test_the_same_inputs_are_accepted(tmp_path: pathlib.Path) -> None:
    _begin(tmp_path, **INPUTS)

    _begin(tmp_path, **INPUTS)


def test_the_error_names_inputs_that_changed(tmp_path: pathlib.Path) -> None:
    _begin(tmp_path, **INPUTS)

    with pytest.raises(SettingError, match="have changed: data was c0ffee, is facade"):
        _begin(tmp_path, **INPUTS | {"data": "facade"})


def test_digests_missing_from_an_older_version_are_added(tmp_path: pathlib.Path) -> None:
    _begin(tmp_path, **INPUTS)

    _begin(tmp_path, **INPUTS, classes="beef")

    with pytest.raises(SettingError, match="classes was beef, is feed"):
        _begin(tmp_path, **INPUTS, classes="feed")


@pytest.mark.parametrize("recorded", [{"code": 1}, {}], ids=["recorded", "not recorded"])
def test_a_run_of_another_code_version_is_not_resumed(
    tmp_path: pathlib.Path, recorded: dict[str, int]
) -> None:
    results.write(tmp_path / "inputs.json", INPUTS | recorded)

    with pytest.raises(
        SettingError,
        match=rf"version 1 of training; .* version {TRAINING}\): finish it .* --workdir to a new",
    ):
        _begin(tmp_path, **INPUTS)


def test_a_run_of_an_earlier_version_with_a_loss_that_has_changed_does_not_go_on(
    tmp_path: pathlib.Path,
) -> None:
    config = {"methods": ["finetune"], "student": {"losses": ["kd_standardised"]}}
    results.write(tmp_path / "config.json", config)
    results.write(tmp_path / "inputs.json", INPUTS | {"code": TRAINING})

    with pytest.raises(SettingError, match=r"version 2 of training; this is version 3"):
        workdir.begin(tmp_path, config, Identity(config, INPUTS))


PLACED = {"workflow": "remem", "data": {"name": "folder", "path": "here", "dir": ""}, "seed": 0}
MOVED = {"workflow": "remem", "data": {"name": "folder", "path": "there", "dir": ""}, "seed": 0}


def test_a_run_resumes_after_its_images_were_moved(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, PLACED)

    _claim(tmp_path, MOVED)

    assert results.read(tmp_path / "config.json") == MOVED


STUDY = {
    "workflow": "study",
    "name": "mine",
    "grid": {"rho": [0.5]},
    "columns": {"a": {"changes": {"data": {"name": "folder", "path": "here"}}}},
    "base": PLACED,
}


def _share(directory: pathlib.Path, config: dict[str, Any], **inputs: Any) -> None:
    workdir.share(directory, config)
    workdir.begin(directory, config, Identity({}, inputs))


def test_workers_share_the_folder_of_a_study(tmp_path: pathlib.Path) -> None:
    _share(tmp_path, STUDY)

    _share(tmp_path, STUDY)


@pytest.mark.parametrize(
    "change",
    [
        {"grid": {"rho": [0.5, 0.05]}},
        {"columns": STUDY["columns"] | {"b": {"changes": {"data": {"name": "digits"}}}}},
        {"columns": {"a": {"changes": {"data": {"name": "folder", "path": "there"}}}}},
        {"base": MOVED | {"log_every": 3}},
        {"seeds": [0, 1], "only": "a", "storage": "journal"},
    ],
    ids=["grid", "column", "moved", "base moved", "seeds"],
)
def test_a_study_may_grow_and_move(tmp_path: pathlib.Path, change: dict[str, Any]) -> None:
    _share(tmp_path, STUDY)

    _share(tmp_path, STUDY | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "yours"}, "name was mine, is yours"),
        ({"base": PLACED | {"seed": 3}}, r"base\.seed was 0, is 3"),
        (
            {"columns": {"a": {"changes": {"data": {"name": "digits"}}}}},
            r"columns\.a\.changes\.data\.name was folder, is digits",
        ),
    ],
)
def test_another_study_is_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    _share(tmp_path, STUDY)

    with pytest.raises(SettingError, match=message):
        _share(tmp_path, STUDY | change)


def test_a_study_whose_images_have_changed_is_refused(tmp_path: pathlib.Path) -> None:
    _share(tmp_path, STUDY, images={"a": {"seed 0": {"data": "c0ffee"}}})

    with pytest.raises(SettingError, match=r"images\.a\.seed 0\.data was c0ffee, is facade"):
        _share(tmp_path, STUDY, images={"a": {"seed 0": {"data": "facade"}}})


def test_a_study_remembers_inputs_that_it_no_longer_reads(
    tmp_path: pathlib.Path,
) -> None:
    _share(tmp_path, STUDY, images={"a": {"seed 0": {"data": "c0ffee"}}})
    _share(tmp_path, STUDY, images={"b": {"seed 0": {"data": "decade"}}})

    with pytest.raises(SettingError, match="c0ffee, is facade"):
        _share(tmp_path, STUDY, images={"a": {"seed 0": {"data": "facade"}}})


def test_the_folder_of_a_run_is_refused_for_a_study(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, PLACED)

    with pytest.raises(SettingError, match=r"is the folder of a run; set --workdir.*study"):
        _share(tmp_path, STUDY)

    assert results.read(tmp_path / "config.json") == PLACED


def test_the_folder_of_a_study_is_refused_for_a_run(tmp_path: pathlib.Path) -> None:
    _share(tmp_path, STUDY)

    with pytest.raises(SettingError, match=r"is the folder of a study; set --workdir.*run"):
        _claim(tmp_path, PLACED)


def test_a_study_folder_of_an_older_version_is_recognised(tmp_path: pathlib.Path) -> None:
    results.write(tmp_path / "config.json", STUDY)
    (tmp_path / "trials").mkdir()
    (tmp_path / "study.db").touch()

    _share(tmp_path, STUDY)


FOREIGN = ("config.json", "lock", "report.html", "selected", "table.csv", "trials", "inputs.json")


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("claim", [_claim, _share])
def test_a_folder_with_foreign_files_that_would_be_replaced_is_refused(
    tmp_path: pathlib.Path, name: str, claim: Any
) -> None:
    (tmp_path / name).write_text('{"thesis": 1}')

    with pytest.raises(SettingError, match=rf"holds {name}, which no run .* set --workdir"):
        claim(tmp_path, STUDY if claim is _share else PLACED)

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"thesis": 1}'


@pytest.mark.parametrize("content", ["{", "[]", '{"workflow": "remem", "data": '])
def test_an_unreadable_config_is_refused(tmp_path: pathlib.Path, content: str) -> None:
    _claim(tmp_path, PLACED)
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(SettingError, match=r"config\.json cannot be read.*--workdir"):
        _claim(tmp_path, PLACED)


def test_other_files_are_accepted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.txt").write_text("of a scheduler")

    _claim(tmp_path, PLACED)

    assert (tmp_path / "log.txt").read_text() == "of a scheduler"


def test_a_refused_start_releases_the_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError), workdir.claimed(tmp_path, CONFIG):
        raise SettingError("The folder of images is empty.")

    _claim(tmp_path, CONFIG | {"seed": 1})
