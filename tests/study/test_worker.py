"""Workers of a study as processes: alone, together, killed, stopped and started again.

All but one are forked from a process that has imported JAX.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from optuna.trial import TrialState

from configs import study
from remem_jax import settings, signals, workflow
from remem_jax.checks import SettingError
from remem_jax.storage import results, workdir
from remem_jax.storage.identity import Identity
from remem_jax.study import copies, queue, worker
from remem_jax.train import loop
from remem_jax.workflow.remem import cost
from tests import forking, tiny_run

pytestmark = pytest.mark.timeout(900)  # Several whole studies; a busy machine may take minutes.
ROOT = pathlib.Path(__file__).parents[2]
# So small that start-up and compilation take almost all of the time.
CONFIG = """
from ml_collections import ConfigDict

from configs import study
from tests import forking, tiny_run


def get_config():
    from remem_jax.study import copies

    copies.POLL_SECONDS = 0.02
    base = tiny_run.get_config()
    base.log_every, base.save_every = 1, 4
    base.teacher.init = {init!r}
    base.teacher.steps, base.teacher.warmup_steps = (8,), 2
    base.teacher.batch_size = base.student.batch_size = 8
    base.student.steps, base.student.warmup_steps = 4, 2
    base.student.learning_rates, base.student.evaluations = (0.05,), 1
    rows = study.rows("finetune", "remem")
    config = study.make("Tiny: a study", rows, {{"digits": study.column("Digits")}}, base=base)
    config.heartbeat_seconds, config.grace_seconds = 0.5, 30.0
    config.grid.update({{"learning_rate": (0.05,), "rho": (0.05, 0.5), "mlp_weight": ()}})
    config.search.near = ConfigDict()
    return config
"""
# A teacher with the first learning rate has a NaN loss after a step or two.
FAILS_FIRST = ("--config.only=finetune", "--config.grid.learning_rate=(1e38, 0.05)")
SPEED = cost.Speed(cost.Step(4e6, 1e-3), cost.Step(1e6, 1e-3), cost.Step(2e6, 1e-3))


class Worker(NamedTuple):
    """A worker process and its log."""

    process: subprocess.Popen[bytes] | forking.Child
    path: pathlib.Path

    @property
    def log(self) -> str:
        return self.path.read_text()

    def ends(self, status: int) -> None:
        self.process.wait()
        assert self.process.returncode == status, self.log


class Workers:
    """Starts workers, which share a cache."""

    def __init__(self, server: forking.Server, scratch: pathlib.Path) -> None:
        self.file, self._scratch, self._started = scratch / "tiny.py", scratch, 0
        self._server, self._environment = server, {"REMEM_CACHE": str(scratch / "cache")}
        init = tiny_run.save_teacher(scratch / "teacher.npz")
        self.file.write_text(CONFIG.format(init=str(init)))

    def folder(self, name: str) -> pathlib.Path:
        return self._scratch / name

    def start(self, name: str) -> Worker:
        """Starts a worker by its command."""
        log, arguments = self._next(name)
        with log.open("wb") as written:
            process = subprocess.Popen(
                [sys.executable, "-m", "remem_jax.main", *arguments],
                cwd=ROOT,
                env=os.environ | self._environment,
                stdout=subprocess.DEVNULL,
                stderr=written,
            )
        return Worker(process, log)

    def fork(self, name: str, *flags: str, **environment: str) -> Worker:
        """Starts a worker in a process that need not import JAX."""
        log, arguments = self._next(name)
        process = self._server.start(
            "tests.forking:run_command",
            [*arguments, *flags],
            self._environment | environment,
            stderr=log,
        )
        return Worker(process, log)

    def srun(self, name: str, *flags: str) -> list[Worker]:
        """Starts two workers with the variables that `srun --ntasks=2` sets."""
        shared = {
            "SLURM_JOB_ID": str(os.getpid()),  # JAX derives a port from it.
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2",
        }
        return [
            self.fork(name, *flags, **shared, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
            for i in range(2)
        ]

    def _next(self, name: str) -> tuple[pathlib.Path, list[str]]:
        """Returns the next log and the arguments of the command."""
        self._started += 1
        arguments = [f"--config={self.file}", f"--workdir={self.folder(name)}"]
        return self._scratch / f"{self._started}.log", arguments

    def copy_speeds(self, name: str, other: str) -> None:
        """Gives a study the speeds measured in another, to save time."""
        self.folder(name).mkdir()
        for file in (".remem_jax", "speeds.json"):
            shutil.copy(self.folder(other) / file, self.folder(name))


class Killed(NamedTuple):
    """A study finished by two workers of srun, one of which was killed in the middle of a trial."""

    folder: pathlib.Path
    key: str
    pid: int
    logs: list[str]


class Relayed(NamedTuple):
    """A trial that three workers without a shared folder ran one after another.

    Attributes:
        key: Key of the trial.
        folders: Folders of the study, one for each worker.
        logs: Logs of the workers. The first was stopped in the teacher's training, the second was
            killed after it.
        store: Folder of the copies.
    """

    key: str
    folders: list[pathlib.Path]
    logs: list[str]
    store: pathlib.Path


class Stopped(NamedTuple):
    """A study that was stopped in the middle of a trial, with its state then, and resumed."""

    folder: pathlib.Path
    first: Worker
    report: dict[str, Any]
    trials: list[optuna.trial.FrozenTrial]
    second: Worker


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with forking.Server(*forking.OF_COMMAND) as server:
        yield Workers(server, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def alone(workers: Workers) -> tuple[pathlib.Path, str]:
    """A study run by one undisturbed worker, and its log."""
    started = workers.start("alone")
    started.ends(0)
    return workers.folder("alone"), started.log


@pytest.fixture(scope="module")
def killed(workers: Workers, alone: tuple[pathlib.Path, str]) -> Killed:
    workers.copy_speeds("pair", alone[0].name)
    folder = workers.folder("pair")
    pair = workers.srun("pair")
    _saved(folder, pair)
    key, owner = _training(folder)
    dies, lives = sorted(pair, key=lambda worker: worker.process.pid != owner)
    dies.process.send_signal(signal.SIGKILL)
    dies.ends(-signal.SIGKILL)
    lives.ends(0)
    return Killed(folder, key, owner, [worker.log for worker in pair])


@pytest.fixture(scope="module")
def stopped(workers: Workers, alone: tuple[pathlib.Path, str]) -> Stopped:
    workers.copy_speeds("stopped", alone[0].name)
    folder = workers.folder("stopped")
    first = workers.fork("stopped", *FAILS_FIRST)
    _saved(folder, [first])
    first.process.send_signal(signal.SIGTERM)
    first.process.wait()
    then = _report(folder), _trials(folder)
    second = workers.fork("stopped", *FAILS_FIRST)
    second.process.wait()
    return Stopped(folder, first, *then, second)


@pytest.fixture(scope="module")
def relayed(workers: Workers, alone: tuple[pathlib.Path, str]) -> Relayed:
    names = ["relay_0", "relay_1", "relay_2"]
    folders = [workers.folder(name) for name in names]
    store = workers.folder("store")
    flags = (
        "--config.only=finetune",
        f"--config.storage=journal:{workers.folder('relay.journal')}",
        f"--config.artifacts=file://{store}",
    )
    for name in names:
        workers.copy_speeds(name, alone[0].name)
    first = workers.fork(names[0], *flags)
    _saved(folders[0], [first])
    first.process.send_signal(signal.SIGTERM)
    first.ends(signals.STOPPED)
    (trial,) = (store / "trials").iterdir()
    (teacher,) = (store / "teachers").iterdir()
    second = workers.fork(names[1], *flags)
    while not any("teachers/finetune/result.json" in text for text in _manifests(teacher)):
        assert second.process.poll() is None, second.log
        time.sleep(0.01)
    second.process.send_signal(signal.SIGKILL)
    second.ends(-signal.SIGKILL)
    third = workers.fork(names[2], *flags)
    third.ends(0)
    return Relayed(trial.name, folders, [each.log for each in (first, second, third)], store)


def _manifests(copies: pathlib.Path) -> Iterator[str]:
    """Yields the manifests of a folder's copies that are not removed meanwhile."""
    for path in copies.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            yield path.read_text()


def _saved(folder: pathlib.Path, workers: list[Worker]) -> None:
    """Waits for the first checkpoint of any teacher."""
    while True:
        if list(folder.glob("teachers/*/*/teachers/*/checkpoints/4")):
            return
        assert all(worker.process.poll() is None for worker in workers), workers[0].log
        time.sleep(0.01)


def _training(folder: pathlib.Path) -> tuple[str, int]:
    """Returns a trial that trains a teacher with a checkpoint, and the process of its worker."""
    (saved, *_) = folder.glob("teachers/*/*/teachers/*/checkpoints/4")
    key = json.loads((saved.parents[1] / "trainer.json").read_text())["run"]
    (owner,) = [
        trial.user_attrs["worker"]["pid"]
        for trial in _trials(folder)
        if (trial.state, trial.user_attrs["key"]) == (TrialState.RUNNING, key)
    ]
    return key, owner


def _report(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


def _trials(folder: pathlib.Path) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials in the storage."""
    with queue.open_queue(
        "sqlite", "tiny", folder=folder, heartbeat_seconds=1, grace_seconds=3, attempts=1
    ) as shared:
        return shared._study.get_trials()


def _done(folder: pathlib.Path) -> list[str]:
    trials = _trials(folder)
    return sorted(t.user_attrs["key"] for t in trials if t.state == TrialState.COMPLETE)


def _reproducible(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the report without the fields that depend on the worker, place and speed."""
    report = _report(folder)
    report["cost"] = {k: v for k, v in report["cost"].items() if not k.endswith("hours")}
    for trial in report["trials"]:
        trial.update(seconds=None, folder=None, number=None)  # Workers that race leave gaps.
    return report


@pytest.mark.slow
def test_one_worker_fills_every_cell(alone: tuple[pathlib.Path, str]) -> None:
    report = _report(alone[0])

    cells = {(cell["row"], cell["column"], cell["choice"]) for cell in report["cells"]}
    assert cells == {(row, "digits", "validation") for row in ("finetune", "remem")}
    assert report["missing"] == []
    assert [trial["state"] for trial in report["trials"]] == ["done"] * 3


@pytest.mark.slow
def test_a_study_writes_a_report_in_each_format(alone: tuple[pathlib.Path, str]) -> None:
    reports = {name: (alone[0] / name).read_text() for name in ("study.md", "study.html")}

    assert all("ReMem" in text and "Fine-tuning" in text for text in reports.values())
    assert len((alone[0] / "table.csv").read_text().splitlines()) == 3
    assert len((alone[0] / "trials.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_report_keeps_finished_trials_of_rows_that_are_left_out(
    workers: Workers, alone: tuple[pathlib.Path, str]
) -> None:
    folder = workers.folder("selected")
    shutil.copytree(alone[0], folder)

    done = workers.fork("selected", "--config.only=finetune")
    done.ends(0)

    assert "Tiny: a study: 1 trials" in done.log
    before, after = _report(alone[0]), _report(folder)
    assert after["trials"] == before["trials"]
    assert after["cells"] == before["cells"]
    assert after["missing"] == []
    assert (before["cost"]["spent_trials"], after["cost"]["spent_trials"]) == (3, 1)
    assert (folder / "trials.csv").read_text() == (alone[0] / "trials.csv").read_text()


@pytest.mark.slow
def test_a_trial_has_one_number_in_log_report_and_dashboard(
    alone: tuple[pathlib.Path, str],
) -> None:
    reported = {trial["number"]: trial["trial"] for trial in _report(alone[0])["trials"]}
    logged = re.findall(r"Trial (\d+) \((\d) of 3 done\): (\w+), digits", alone[1])

    assert {trial.number: trial.user_attrs["key"] for trial in _trials(alone[0])} == reported
    rows = {str(trial["number"]): trial["row"] for trial in _report(alone[0])["trials"]}
    assert [done for _, done, _ in logged] == ["0", "1", "2"]
    assert {number: row for number, _, row in logged} == rows


@pytest.mark.slow
def test_the_page_links_to_the_report_of_each_trial(alone: tuple[pathlib.Path, str]) -> None:
    page, text = ((alone[0] / name).read_text() for name in ("study.html", "study.md"))

    keys = [trial["trial"] for trial in _report(alone[0])["trials"]]
    places = [f"trials/{key}/report.html" for key in keys]
    assert sorted(re.findall(r'<a href="([^"]*)">', page)) == sorted(places)
    assert sorted(re.findall(r"\]\(([^)]*)\)", text)) == sorted(places)
    assert all((alone[0] / place).exists() for place in places)


@pytest.mark.slow
def test_a_study_searches_axes_of_several_groups_and_reports_them(
    workers: Workers, alone: tuple[pathlib.Path, str]
) -> None:
    workers.copy_speeds("axes", alone[0].name)
    axes = {"attention_weight": "(0.9,)", "student.weight_decay": "(1e-4, 1e-3)"}
    flags = [f"--config.grid.{name}={values}" for name, values in axes.items()]

    done = workers.fork("axes", "--config.only=remem", "--config.grid.rho=(0.5,)", *flags)
    done.ends(0)

    folder = workers.folder("axes")
    report, text = _report(folder), (folder / "study.md").read_text()
    tried = {(s["attention_weight"], s["student.weight_decay"]) for s in _settings(report)}
    assert tried == {(0.9, 1e-4), (0.9, 1e-3)}
    paths = folder.glob("trials/*/results.json")
    used = [json.loads(path.read_text())["config"] for path in paths]
    assert tried == {
        (run["teacher"]["attention_weight"], run["student"]["weight_decay"]) for run in used
    }
    assert "attention_weight 0.9; learning_rate 0.05; rho 0.5" in text
    assert "| student.weight_decay 0.0001, 0.001 |" in text
    assert "The study searches student.weight_decay over 0.0001, 0.001; the paper's grid" in text
    # Both trials have the same teacher.
    assert "Tiny: a study: 2 trials, 8 teacher steps" in done.log
    (trained,) = folder.glob("teachers/*/*/metrics.jsonl")
    assert {json.loads(line)["part"] for line in trained.read_text().splitlines()} == {
        "teachers/remem"
    }
    for trial in folder.glob("trials/*"):
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["part"] == "teachers/remem"][-1] == 8
    hours = report["cost"]["spent_hours"] * 3600
    seconds = [
        json.loads(path.read_text())["seconds"] for path in folder.glob("trials/*/results.json")
    ]
    assert sum("teachers/remem" in of_trial for of_trial in seconds) == 1
    assert hours == pytest.approx(sum(sum(of_trial.values()) for of_trial in seconds))
    # The columns that config.only leaves out may need the weights.
    assert list(folder.glob("teachers/*/*/teachers"))


def _settings(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial["settings"] for trial in report["trials"]]


@pytest.mark.slow
def test_every_trial_is_done_once(alone: tuple[pathlib.Path, str]) -> None:
    keys = sorted(trial["trial"] for trial in _report(alone[0])["trials"])

    assert _done(alone[0]) == keys
    assert len(_trials(alone[0])) == 3


@pytest.mark.slow
def test_only_the_selected_weights_of_a_trial_are_kept(alone: tuple[pathlib.Path, str]) -> None:
    for folder in (alone[0] / "trials").iterdir():
        assert {path.suffix for path in (folder / "selected").iterdir()} >= {".safetensors", ".npz"}
        assert not [name for name in ("teachers", "students") if (folder / name).exists()]
    assert [*alone[0].glob("teachers/*/*")]
    assert not [*alone[0].glob("teachers/*/*/teachers")]


@pytest.mark.slow
def test_a_worker_logs_the_cost_of_the_study_first(alone: tuple[pathlib.Path, str]) -> None:
    logged = re.search(
        r"Tiny: a study: 3 trials, 24 teacher steps, 12 steps of 3 students, \S+ operations; "
        r"about \d+ (s|min|h)( \d+ min)? of training",
        alone[1],
    )

    assert logged
    assert logged.start() < alone[1].index("Trial 0 (0 of 3 done): finetune, digits, seed 0")


@pytest.mark.slow
def test_a_study_with_a_killed_worker_has_the_same_table(
    killed: Killed, alone: tuple[pathlib.Path, str]
) -> None:
    table = (killed.folder / "table.csv").read_text()

    assert _reproducible(killed.folder) == _reproducible(alone[0])
    assert table == (alone[0] / "table.csv").read_text()


@pytest.mark.slow
def test_another_worker_finishes_the_trial_of_a_killed_one(killed: Killed) -> None:
    trials = [trial for trial in _trials(killed.folder) if trial.user_attrs["key"] == killed.key]

    assert len(_done(killed.folder)) == len(set(_done(killed.folder))) == 3
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["reason"].startswith(f"lost with process {killed.pid} on ")
    assert trials[1].user_attrs["worker"]["pid"] != killed.pid


@pytest.mark.slow
def test_a_trial_taken_over_resumes_from_its_checkpoint(killed: Killed) -> None:
    lines = (killed.folder / "trials" / killed.key / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]

    steps = [row["step"] for row in rows if row["part"].startswith("teachers/") and "loss" in row]
    assert steps[:4] == [1, 2, 3, 4]
    assert set(steps) == set(range(1, 9))
    assert min(steps[4:]) == 5  # None of the first four steps was repeated.


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    return safetensors.numpy.load_file(path)  # Its header has no fixed order.


@pytest.mark.slow
def test_a_trial_taken_over_without_its_folder_equals_an_undisturbed_one(
    relayed: Relayed, alone: tuple[pathlib.Path, str]
) -> None:
    ours, expected = (path / "trials" / relayed.key for path in (relayed.folders[2], alone[0]))

    for name in ("finetune_student.safetensors", "finetune_teacher.npz"):
        arrays = [_arrays(path / "selected" / name) for path in (ours, expected)]
        assert arrays[0].keys() == arrays[1].keys()
        for key, array in arrays[0].items():
            assert array.tobytes() == arrays[1][key].tobytes(), key
    records = [json.loads((path / "results.json").read_text()) for path in (ours, expected)]
    for field in ("teachers", "students", "data", "models"):
        assert records[0][field] == records[1][field]


@pytest.mark.slow
def test_a_trial_taken_over_without_its_folder_repeats_nothing(relayed: Relayed) -> None:
    (log,) = relayed.folders[2].glob("teachers/*/*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]

    steps = [row["step"] for row in rows if row["part"].startswith("teachers/") and "loss" in row]
    assert steps == [*range(1, 9)]
    for log in relayed.logs[1:]:
        assert f"Fetched file://{relayed.store}/trials/{relayed.key}" in log
        assert f"Fetched file://{relayed.store}/teachers/" in log


@pytest.mark.slow
def test_the_copy_of_a_finished_trial_has_its_report_and_selected_weights(
    relayed: Relayed,
) -> None:
    trial = relayed.store / "trials" / relayed.key
    assert [path.name for path in trial.glob("*.json")] == ["final.json"]
    found = {
        path.relative_to(trial / "final").as_posix()
        for path in (trial / "final").rglob("*")
        if path.is_file()
    }

    assert found >= {"report.html", "results.json", "selected/finetune_student.safetensors"}
    assert not [name for name in found if name.startswith(("teachers/", "students/", "lock"))]
    (entry,) = _report(relayed.folders[2])["trials"]
    assert entry["copy"] == f"file://{trial}/final"
    assert not [*relayed.folders[2].glob("*/.*.copy")]


def test_copies_that_fail_are_a_warning_and_the_study_goes_on(
    config: ConfigDict,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(trial: ConfigDict, folder: pathlib.Path, **rest: object) -> None:
        del rest
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "store").write_text("no folder any more")
        _write_results(trial, folder)

    config.only = "finetune"
    config.artifacts = str(tmp_path / "store")
    monkeypatch.setattr(copies, "_END_SECONDS", 0.1)
    monkeypatch.setattr(workflow, "run", run)
    monkeypatch.setattr(worker.report, "write_study", lambda directory: None)

    worker.run(config, tmp_path / "study")

    assert [trial.state.name for trial in _trials(tmp_path / "study")] == ["COMPLETE"]
    warnings = [text for text in caplog.messages if text.startswith("A copy cannot be stored: ")]
    assert len(warnings) == 1
    assert [text for text in caplog.messages if text.startswith("There is no final copy of ")]


def test_a_study_whose_copies_cannot_be_stored_does_not_start(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    config.artifacts = "file:///proc/no/where"

    with pytest.raises(SettingError, match=r"config\.artifacts cannot be used"):
        worker.run(config, tmp_path)


@pytest.mark.slow
def test_a_stopped_worker_says_how_to_resume(stopped: Stopped) -> None:
    log = stopped.first.log

    assert stopped.first.process.returncode == signals.STOPPED, log
    assert "Traceback" not in log
    assert re.fullmatch(
        r"remem_jax: stopped after step \d+ of \d+, which is saved; the same command goes on .*",
        log.splitlines()[-1],
    )


@pytest.mark.slow
def test_a_stopped_worker_gives_its_trial_back_without_a_failed_attempt(
    stopped: Stopped,
) -> None:
    by_rate = {trial.params["learning_rate"]: trial.user_attrs for trial in stopped.trials}

    assert by_rate[0.05]["strike"] is False
    assert by_rate[0.05]["reason"].startswith("StoppedError")


@pytest.mark.slow
def test_a_stopped_worker_writes_a_report(stopped: Stopped) -> None:
    states = {
        entry["settings"]["learning_rate"]: entry["state"] for entry in stopped.report["trials"]
    }

    assert states == {1e38: "failed", 0.05: "waiting"}
    assert [entry["why"] for entry in stopped.report["missing"]] == ["not run yet"]


@pytest.mark.slow
def test_the_same_command_finishes_a_stopped_study(
    stopped: Stopped, alone: tuple[pathlib.Path, str]
) -> None:
    assert stopped.second.process.returncode == 0, stopped.second.log

    ((cell,), missing) = (_report(stopped.folder)[name] for name in ("cells", "missing"))
    assert missing == []
    assert cell == _report(alone[0])["cells"][0]


@pytest.mark.slow
def test_a_trial_with_a_nan_loss_is_reported_and_the_others_run(stopped: Stopped) -> None:
    by_state = {entry["state"]: entry for entry in _report(stopped.folder)["trials"]}

    assert by_state.keys() == {"failed", "done"}
    assert re.search(
        r"Fine-tuning: teacher, the loss is nan at step \d", by_state["failed"]["reason"]
    )
    assert "the loss is nan" in (stopped.folder / "study.md").read_text()


@pytest.mark.slow
def test_the_processes_of_srun_are_workers_of_their_own(killed: Killed) -> None:
    for i, log in enumerate(killed.logs):
        assert f"Worker {i + 1} of 2, started by Slurm" in log


@pytest.mark.slow
def test_the_processes_of_srun_are_joined_to_one_worker_if_asked(workers: Workers) -> None:
    started = workers.srun("joined", "--workers=joined")

    while "One worker of 2 processes." not in started[0].log:
        assert all(each.process.poll() is None for each in started), started[0].log
        time.sleep(0.01)
    for each in started:
        each.process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_separate_workers_on_several_hosts_need_a_storage_for_them(workers: Workers) -> None:
    started = workers.fork(
        "hosts",
        SLURM_JOB_ID="1",
        SLURM_NTASKS="2",
        SLURM_NNODES="2",
        SLURM_STEP_NODELIST="node[1-2]",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
    )

    started.ends(1)

    assert "config.storage is sqlite, which is not safe for workers on several hosts" in started.log


@pytest.fixture
def config(workers: Workers, resnet4: str, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """The study, for a worker in this process, without measuring or compiling."""
    del resnet4  # The config uses it.
    monkeypatch.setattr(workflow, "measure_speed", lambda config: SPEED)
    return runpy.run_path(str(workers.file))["get_config"]()


def _raising(error: Exception) -> Callable[..., None]:
    """Returns a run that raises an error."""

    def run(*args: object, **kwargs: object) -> None:
        del args, kwargs
        raise error

    return run


def test_a_plan_logs_the_cost_and_runs_no_trial(
    config: ConfigDict,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.plan_only = True
    caplog.set_level(logging.INFO, "absl")
    planned: list[ConfigDict] = []
    monkeypatch.setattr(workflow, "show_plan", planned.append)

    worker.run(config, tmp_path)

    # 24 steps of 4e6 operations, 12 teacher forward passes of 1e6, and 12 steps of 2e6.
    assert "24 teacher steps, 12 steps of 3 students, 1.32e+08 operations" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {".remem_jax", "speeds.json"}
    # Trials of one kind need the same memory, so only the first of each is planned.
    assert [(entry.methods, entry.data.name) for entry in planned] == [
        (("finetune",), "digits"),
        (("remem",), "digits"),
    ]


@pytest.mark.slow
def test_a_finished_study_is_not_run_again(
    alone: tuple[pathlib.Path, str],
    config: ConfigDict,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = tmp_path / "again"
    shutil.copytree(alone[0], again, ignore=shutil.ignore_patterns("trials"))
    monkeypatch.setattr(workflow, "run", _raising(AssertionError("run again")))

    worker.run(config, again)

    assert len(_trials(again)) == 3
    assert _report(again)["cells"] == _report(alone[0])["cells"]


def test_a_worker_stopped_between_two_trials_writes_a_report(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(loop.StoppedError, match="between two trials"):
        worker.run(config, tmp_path, stopping=lambda: True)

    assert [trial["state"] for trial in _report(tmp_path)["trials"]] == ["waiting"] * 3


def test_an_error_in_a_trial_ends_its_worker_and_names_the_trial(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "run", _raising(SettingError("the data are gone")))

    with pytest.raises(
        SettingError, match=r"finetune, digits, seed 0, learning rate 0.05: the data are gone"
    ):
        worker.run(config, tmp_path)

    assert [t.user_attrs["strike"] for t in _trials(tmp_path) if "strike" in t.user_attrs] == [True]


def test_a_trial_that_crashes_every_worker_is_given_up(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.only, config.attempts = "finetune", 2
    monkeypatch.setattr(workflow, "run", _raising(MemoryError("no memory")))
    for _ in range(2):
        with pytest.raises(MemoryError):
            worker.run(config, tmp_path)

    worker.run(config, tmp_path)

    (missing,) = _report(tmp_path)["missing"]
    assert missing["why"].startswith("failed: given up after 2 attempts: MemoryError: no memory")


def test_a_study_ends_if_all_its_trials_fail(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "run", _raising(loop.NonFiniteLossError("the loss is nan")))

    worker.run(config, tmp_path)

    report = _report(tmp_path)
    assert report["cells"] == []
    assert [entry["why"] for entry in report["missing"]] == ["failed: the loss is nan"] * 2


def _write_results(trial: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the results of a run that a study reads."""
    metrics = {"top1": 0.5, "loss": 1.0}
    student = {"validation": metrics, "test": metrics}
    selected = dict.fromkeys(("teacher_step", "loss", "learning_rate", "temperature", "weight"))
    row = {
        "selected": selected,
        "student": student,
        "teacher": None,
        "seeds": [{"test": metrics}],
        "on_test": None,
    }
    content = {
        "methods": [row],
        "students": [{}],
        "teachers": [],
        "seconds": {},
        "config": {"methods": list(trial.methods), "differs": [], "teacher": {}},
        "device": {"count": 1, "kind": "cpu"},
        "versions": {},
        "data": {
            "metric": "top1",
            **dict.fromkeys(("title", "classes", "examples", "image_size", "official")),
        },
    }
    results.write(folder / "results.json", content)


def test_a_worker_waits_for_a_folder_in_use(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.only = "finetune"
    errors = [workdir.HeldError("another process runs there")] * 2

    def run(
        trial: ConfigDict, folder: pathlib.Path, *, stopping: Callable[[], bool], **rest: object
    ) -> None:
        del rest
        if errors:
            raise errors.pop()
        _write_results(trial, folder)

    monkeypatch.setattr(workflow, "run", run)
    monkeypatch.setattr(worker, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(worker.report, "write_study", lambda directory: None)

    worker.run(config, tmp_path)

    states = [(t.state.name, t.user_attrs.get("strike")) for t in _trials(tmp_path)]
    assert states == [("FAIL", False), ("FAIL", False), ("COMPLETE", None)]


def test_a_worker_stops_a_lost_trial_and_continues(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.only = "finetune"
    asked: list[bool] = []

    def run(
        trial: ConfigDict, folder: pathlib.Path, *, stopping: Callable[[], bool], **rest: object
    ) -> None:
        assert rest["label"] == ("tiny", "finetune, digits, seed 0, learning rate 0.05")
        if not asked:
            with worker.queue.open_queue(
                config.storage,
                config.name,
                folder=tmp_path,
                heartbeat_seconds=config.heartbeat_seconds,
                grace_seconds=config.grace_seconds,
                attempts=config.attempts,
            ) as other:
                other._fail_lost(other._study.trials[0])
            while not stopping():
                time.sleep(0.01)
            asked.append(True)
            raise loop.StoppedError("stopped after step 3")
        _write_results(trial, folder)

    config.heartbeat_seconds = 0.05
    monkeypatch.setattr(workflow, "run", run)
    monkeypatch.setattr(worker.report, "write_study", lambda directory: None)

    worker.run(config, tmp_path)

    assert [t.state.name for t in _trials(tmp_path)] == ["FAIL", "COMPLETE"]


def test_no_file_of_a_study_contains_the_password_of_its_storage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = study.get_config("digits")
    config.storage = "postgresql://me:s3cr3t@127.0.0.1:1/name"
    config.base.teacher.mirror = "https://me:s3cr3t@host/weights?token=s3cr3t"
    none = worker.cost.Total(1, 1, 1, 1, 1.0, 1.0)
    monkeypatch.setattr(worker.cost, "of_trials", lambda planned, directory: none)

    with pytest.raises(SettingError, match=r"config\.storage") as caught:
        worker.run(config, tmp_path)

    visible = str(caught.value) + caplog.text
    workdir.begin(tmp_path, settings.plain(config), Identity({}, {}))
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "postgresql://me:***@127.0.0.1:1/name" in "".join(written)
    assert "s3cr3t" not in visible + "".join(written)
