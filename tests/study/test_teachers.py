"""Which trials of a study share a teacher, and which of them a worker may claim."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import study
from remem_jax.study import copies, queue, scheduling, search, space, teachers, worker
from remem_jax.study.inputs import Inputs
from remem_jax.study.space import Trial

STUDENTS = {
    "small": {"student": {"model": "resnet18"}},
    "large": {"student": {"model": "resnet50"}},
}


class Fixed(Inputs):
    """Digests of inputs that depend on the seed, as those of a split do."""

    def of(self, config: ConfigDict) -> dict[str, Any]:
        student = {"student": "weights of the student"}
        return {"data": f"split {config.seed}", "classes": "names", "teacher": "weights", **student}


@pytest.fixture
def config() -> ConfigDict:
    base = study.get_config("cifar100").base
    rows = {
        **study.rows("scratch", "finetune", "sam", "remem"),
        "halved": study.row("Logits halved", "finetune", student={"flatten": 2.0}),
        "lora": study.row("LoRA", "finetune", teacher={"tuning": "lora"}),
        "measured": study.row("Measured", "finetune", information={"seeds": (0,)}),
    }
    columns = {name: study.column(name, **changes) for name, changes in STUDENTS.items()}
    config = study.make("Sharing: a study", rows, columns, base=base)
    config.grid.update({"learning_rate": (), "rho": (), "mlp_weight": ()})
    config.seeds = (0, 1)
    return config


def _by_place(config: ConfigDict) -> dict[tuple[str, str, int], Trial]:
    return {trial.cell: trial for trial in space.trials(config)}


def _teachers(folder: pathlib.Path, url: str = "") -> teachers.Teachers:
    return teachers.Teachers(folder, Fixed({}), copies.open_copies(url))


def test_trials_share_a_teacher_unless_its_settings_or_its_seed_differ(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    of_study = _teachers(tmp_path)
    trials = _by_place(config)

    folders = {place: of_study.folder(trial) for place, trial in trials.items()}

    first = folders["finetune", "small", 0]
    shared = [place for place, folder in folders.items() if folder == first]
    rows = ("finetune", "halved", "measured")
    assert sorted(shared) == sorted((row, column, 0) for row in rows for column in STUDENTS)
    # Fine-tuning, SAM, ReMem and LoRA, with two seeds each.
    assert len(set(folders.values()) - {None}) == 4 * 2
    assert folders["scratch", "small", 0] is None


def test_a_worker_does_not_claim_a_trial_whose_teacher_another_one_trains(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    of_study, trials = _teachers(tmp_path), _by_place(config)
    by_key = {trial.key: trial for trial in trials.values()}
    running, other = (trials["finetune", name, 0] for name in STUDENTS)
    states = {running.key: "running"}
    everywhere = of_study.free(by_key, states)
    folder = of_study.folder(running)
    assert folder is not None

    (folder / "float32_0" / "teachers" / "finetune").mkdir(parents=True)
    training = of_study.free(by_key, states)
    (folder / "float32_0" / "teachers" / "finetune" / "result.json").touch()
    finished = of_study.free(by_key, states)

    assert everywhere == finished == list(by_key)  # Its worker may not have this folder.
    assert set(by_key) - set(training) == {
        trial.key for trial in by_key.values() if of_study.folder(trial) == folder
    }
    assert other.key in set(by_key) - set(training)


def test_workers_with_copies_wait_for_a_teacher_until_it_is_copied(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    url = f"file://{tmp_path / 'store'}"
    here, there = (_teachers(tmp_path / name, url) for name in ("here", "there"))
    trials = _by_place(config)
    by_key = {trial.key: trial for trial in trials.values()}
    running, other = (trials["finetune", name, 0] for name in STUDENTS)
    states = {running.key: "running"}
    folder = there.folder(running)
    assert folder is not None
    assert other.key not in here.free(by_key, states)

    stage = folder / "float32_0" / "teachers" / "finetune"
    stage.mkdir(parents=True)
    (stage / "result.json").write_text("{}")
    copies.open_copies(url).conclude(folder)

    assert other.key in here.free(by_key, states)


def test_the_weights_of_a_teacher_are_removed_when_no_trial_needs_them(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    of_study, trials = _teachers(tmp_path), _by_place(config)
    done, other = (trials["finetune", name, 0] for name in STUDENTS)
    folder = of_study.folder(done)
    assert folder is not None
    for name in ("teachers", "information"):
        (folder / "float32_0" / name).mkdir(parents=True)

    assert not of_study.remove_unneeded([done], [other])
    assert (folder / "float32_0" / "teachers").exists()
    assert of_study.remove_unneeded([done], [trials["finetune", "small", 1]]) == [folder]
    assert not (folder / "float32_0" / "teachers").exists()
    assert (folder / "float32_0" / "information").exists()
    assert not of_study.remove_unneeded([done], [])  # There is nothing left to remove.


def test_weights_stay_while_another_command_has_trials_that_this_one_does_not_know(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    config.only, config.seeds = "", (0,)
    of_study, trials = _teachers(tmp_path), space.trials(config)
    folders = {folder for trial in trials if (folder := of_study.folder(trial))}
    for folder in folders:
        (folder / "float32_0" / "teachers").mkdir(parents=True)
    unknown = scheduling.Configuration("unknown", {}, {})

    with queue.open_queue(
        "sqlite", "x", folder=tmp_path, heartbeat_seconds=1, grace_seconds=60, attempts=1
    ) as shared:
        made: Any = {name: None for name in worker.Study._fields}
        made |= {"config": config, "search": search.Search(config.search, trials)}
        here = worker.Study(**made | {"teachers": of_study, "queue": shared})
        shared.add([scheduling.configuration(trial) for trial in trials] + [unknown])
        keys = [trial.key for trial in trials]
        while claim := shared.claim(keys):
            with claim.working():
                claim.done(0.5, {})

        kept = worker._remove_teachers(here)
        claim = shared.claim(["unknown"])
        assert claim is not None
        with claim.working():
            claim.done(0.5, {})
        removed = worker._remove_teachers(here)

    assert (kept, set(removed)) == ([], folders)
