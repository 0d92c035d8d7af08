"""Metrics reach Weights & Biases and MLflow, and neither can disturb the run.

The clients are fakes that write down their calls, because the real ones bring many packages. Tests
with the real ones, offline, run where they are installed (`pip install '.[wandb,mlflow]'`).
"""

import importlib.util
import json
import pathlib
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import logs, results, trackers

_RECORDING = """
import json, os

def note(name, /, **arguments):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([name, arguments], default=str) + "\\n")
"""
_WANDB = (
    _RECORDING
    + """
class Settings:
    def __init__(self, **settings):
        note("settings", **settings)

class Run:
    url = "https://example.org/run?token=secret"
    def __init__(self):
        self.summary = self
    def define_metric(self, name, step_metric):
        note("define", name=name, by=step_metric)
    def log(self, values):
        note("log", **values)
    def update(self, values):
        note("summary", **values)
    def mark_preempting(self):
        note("preempting")
    def finish(self, exit_code):
        note("finish", code=exit_code)

def init(**options):
    note("init", **options)
    return Run()
"""
)
_MLFLOW = (
    _RECORDING
    + """
import types

class Metric:
    def __init__(self, key, value, timestamp, step):
        self.row = (key, value, timestamp, step)

class Param(Metric):
    def __init__(self, key, value):
        self.row = (key, value)

entities = types.SimpleNamespace(Metric=Metric, Param=Param)

class MlflowClient:
    def get_experiment_by_name(self, name):
        note("experiment", name=name)
        return types.SimpleNamespace(experiment_id="7")
    def create_run(self, experiment, tags):
        note("create", experiment=experiment, tags=tags)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="ab"))
    def update_run(self, number, status):
        note("update", number=number, status=status)
    def log_batch(self, number, metrics=(), params=()):
        note("batch", number=number, rows=[each.row for each in (*metrics, *params)])
    def set_terminated(self, number, status):
        note("end", number=number, status=status)
"""
)
SETTINGS = {"seed": 0, "teacher": {"rho": 0.5, "init": ""}}
LABEL = trackers.Label("a study", "finetune, seed 0")


class Fake:
    """A client that writes down its calls."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._calls = folder / "calls"

    def calls(self, name: str) -> list[dict[str, Any]]:
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call for each, call in map(json.loads, lines) if each == name]


@pytest.fixture
def fake(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Fakes of both clients, instead of real ones."""
    modules = tmp_path / "modules"
    (modules / "mlflow").mkdir(parents=True)
    (modules / "wandb.py").write_text(_WANDB)
    (modules / "mlflow" / "__init__.py").write_text(_MLFLOW)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return Fake(tmp_path)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def _run(tool: str, folder: pathlib.Path, steps: range, *, ends: bool = True) -> None:
    """Writes metrics of some steps; a run that ends has results."""
    with trackers.following(tool, folder, SETTINGS, LABEL), logs.RunLog(folder) as log:
        for step in steps:
            log.write("teachers/remem", step, {"loss": 1 / step, "top1": [0.5, float("nan")]})
        if not ends:
            raise KeyboardInterrupt
        row = {
            "method": "remem",
            "student": {"test": {"top1": 0.25}, "names": "x"},
            "teacher": None,
            "selected": {"weight": 0.5, "loss": "kd"},
        }
        results.write(folder / "results.json", {"methods": [row]})


def test_wandb_gets_settings_metrics_and_results(fake: Fake, folder: pathlib.Path) -> None:
    _run("wandb", folder, range(1, 3))

    (init,) = fake.calls("init")
    assert (init["config"], init["group"], init["name"]) == (SETTINGS, *LABEL)
    assert (init["project"], init["resume"], init["dir"]) == ("remem_jax", "allow", str(folder))
    assert fake.calls("log") == [
        {
            "teachers/remem/loss": 1 / step,
            "teachers/remem/top1/0": 0.5,  # The other student's is not finite.
            "teachers/remem/step": step,
        }
        for step in (1, 2)
    ]
    assert fake.calls("define") == [{"name": "teachers/remem/*", "by": "teachers/remem/step"}]
    assert fake.calls("summary") == [
        {"results/remem/student/test/top1": 0.25, "results/remem/selected/weight": 0.5}
    ]
    assert fake.calls("finish") == [{"code": 0}]


def test_wandb_gets_neither_code_nor_the_command_line(fake: Fake, folder: pathlib.Path) -> None:
    _run("wandb", folder, range(1, 2))

    (settings,) = fake.calls("settings")
    assert settings["disable_code"]
    assert settings["disable_git"]
    assert settings["x_disable_meta"]


def test_an_interrupted_run_goes_on_with_the_same_tracked_run(
    fake: Fake, folder: pathlib.Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run("wandb", folder, range(1, 3), ends=False)
    _run("wandb", folder, range(3, 5))

    first, second = fake.calls("init")
    assert first["id"] == second["id"]
    assert [call["teachers/remem/step"] for call in fake.calls("log")] == [1, 2, 3, 4]
    assert len(fake.calls("preempting")) == 1
    assert [call["code"] for call in fake.calls("finish")] == [1, 0]


def test_mlflow_gets_settings_metrics_and_results(fake: Fake, folder: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run("mlflow", folder, range(1, 2), ends=False)
    _run("mlflow", folder, range(2, 3))

    tags = {"mlflow.runName": LABEL.name, "group": LABEL.group}
    assert fake.calls("create") == [{"experiment": "7", "tags": tags}]
    assert fake.calls("update") == [{"number": "ab", "status": "RUNNING"}]
    rows = [row for call in fake.calls("batch") for row in call["rows"]]
    assert [row for row in rows if len(row) == 2] == [["seed", "0"], ["teacher.rho", "0.5"]]
    metrics = [(name, value, step) for name, value, _, step in (r for r in rows if len(r) == 4)]
    assert metrics == [
        ("teachers/remem/loss", 1.0, 1),
        ("teachers/remem/top1/0", 0.5, 1),
        ("teachers/remem/loss", 0.5, 2),
        ("teachers/remem/top1/0", 0.5, 2),
        ("results/remem/student/test/top1", 0.25, 0),
        ("results/remem/selected/weight", 0.5, 0),
    ]
    milliseconds = next(row[2] for row in rows if len(row) == 4)
    assert abs(milliseconds / 1000 - time.time()) < 1000
    assert [call["status"] for call in fake.calls("end")] == ["KILLED", "FINISHED"]


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_client_that_fails_is_reported_once_and_the_run_goes_on(
    fake: Fake,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    broken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = tmp_path / "modules" / "wandb.py"
    raising = "def {}(*a, **b):\n{} raise OSError('no way to password=123')\n"
    text = raising.format("init", "   ") if broken == "init" else ""
    module.write_text(
        _WANDB.replace('        note("log", **values)', "        raise OSError('password=123')")
        + text
    )

    _run("wandb", folder, range(1, 3))

    (warning,) = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert warning.startswith("Weights & Biases: some metrics were not sent: OSError")
    assert "password=***" in warning
    assert (folder / "results.json").exists()


def test_rows_that_were_refused_are_sent_again(
    fake: Fake, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    refusing = """        if not os.path.exists(os.environ["CALLS"] + ".refused"):
            open(os.environ["CALLS"] + ".refused", "w").close()
            raise OSError("the server is down")
"""
    module = tmp_path / "modules" / "wandb.py"
    log = '        note("log", **values)'
    module.write_text(_WANDB.replace(log, refusing + log))

    _run("wandb", folder, range(1, 3))

    assert [call["teachers/remem/step"] for call in fake.calls("log")] == [1, 2]
    assert [call["code"] for call in fake.calls("finish")] == [0]


def test_a_run_in_which_a_method_diverged_sends_the_results_of_the_others(
    fake: Fake, folder: pathlib.Path
) -> None:
    results.write(folder / "results.json", {"methods": []})  # Of an earlier start.
    rows = [{"method": "finetune", "student": {"test": {"top1": 0.75}}}]

    def diverge() -> None:
        with trackers.following("wandb", folder, SETTINGS, LABEL):
            results.write(folder / "results.json", {"methods": rows})
            raise FloatingPointError("ReMem has no result.")

    with pytest.raises(FloatingPointError):
        diverge()

    assert fake.calls("summary") == [{"results/finetune/student/test/top1": 0.75}]
    assert [call["code"] for call in fake.calls("finish")] == [1]


def test_a_run_without_its_client_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(
        SettingError, match=r"config\.track is wandb.*pip install 'remem_jax\[wandb"
    ):
        trackers.check("config.track", "wandb")
    with pytest.raises(SettingError, match=r"config\.track must be one of , wandb, mlflow"):
        trackers.check("config.track", "comet")


def test_a_folder_of_the_clients_name_is_no_client(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comet").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.TOOLS, "comet", "Comet")

    with pytest.raises(SettingError, match="client is not installed"):
        trackers.check("config.track", "comet")


def test_a_killed_run_is_marked_as_failed_and_its_metrics_are_sent(
    fake: Fake, folder: pathlib.Path
) -> None:
    run = {"tool": "mlflow", "directory": str(folder), "settings": {}, "group": "", "name": "x"}
    with logs.RunLog(folder) as log:
        log.write("teachers/remem", 1, {"loss": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"part": "teach')  # Truncated by the kill.

    subprocess.run(
        [sys.executable, "-m", "remem_jax.storage.tracker_process"],
        input=json.dumps(run) + "\n",  # Ends without the state of the run.
        text=True,
        check=True,
    )

    assert [call["status"] for call in fake.calls("end")] == ["FAILED"]
    rows = [row[0] for call in fake.calls("batch") for row in call["rows"]]
    assert rows == ["teachers/remem/loss"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="Needs MLflow.")
def test_the_real_mlflow_stores_metrics(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(KeyboardInterrupt):
        _run("mlflow", folder, range(1, 3), ends=False)
    _run("mlflow", folder, range(3, 5))

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute(
            "select step, value from metrics where key = 'teachers/remem/loss' order by step"
        ).fetchall()
        states = store.execute("select name, status from runs").fetchall()
    assert rows == [(step, 1 / step) for step in range(1, 5)]
    assert states == [(LABEL.name, "FINISHED")]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="Needs wandb.")
def test_the_real_wandb_stores_metrics_offline(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(KeyboardInterrupt):
        _run("wandb", folder, range(1, 3), ends=False)
    _run("wandb", folder, range(3, 5))

    number = json.loads((folder / "tracked.json").read_text())["wandb"][0]
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{number}.wandb"))
    assert len(files) == 2
    for file in files:
        assert b"teachers/remem/loss" in file.read_bytes()
