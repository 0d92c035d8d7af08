"""The batch scripts of tools/slurm, with Slurm's commands as `fake_slurm` has them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable

import pytest

from tests import tiny_run
from tests.study.test_worker import CONFIG

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = {name: ROOT / "tools" / "slurm" / f"{name}.sbatch" for name in ("study", "run")}
# In place of Python: notes its variables, and stops with a code the first time.
_STUB = """#!/bin/sh
echo "$SLURM_JOB_ID $SLURM_RESTART_COUNT $SLURM_PROCID/$SLURM_NTASKS $*" >> "{log}"
if [ "$SLURM_RESTART_COUNT" = 0 ]; then exit {code}; fi
"""

Sbatch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def state(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def sbatch(tmp_path: pathlib.Path, state: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    """Submits a job."""
    monkeypatch.setenv("FAKE_SLURM", str(state))
    from tests.study import fake_slurm

    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REMEM_PYTHON", sys.executable)
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))

    def submit(*arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            return subprocess.Popen(["sbatch", *arguments], cwd=ROOT, stderr=log, stdout=log)

    return submit


def _stub(tmp_path: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    stub, log = tmp_path / "python", tmp_path / "calls"
    stub.write_text(_STUB.format(log=log, code=code))
    stub.chmod(0o755)
    monkeypatch.setenv("REMEM_PYTHON", str(stub))
    return log


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_valid_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", SCRIPTS[name]], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_passes_shellcheck(name: str) -> None:
    shellcheck = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")

    subprocess.run([shellcheck, SCRIPTS[name]], check=True)


@pytest.mark.parametrize("code", [75, 130, 138, 143])
def test_each_stopped_worker_of_an_array_is_requeued(
    sbatch: Sbatch, tmp_path: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _stub(tmp_path, code, monkeypatch)

    job = sbatch("--array=0-1", str(SCRIPTS["study"]), "--workdir=a b")

    assert job.wait(60) == 0
    calls = sorted(log.read_text().splitlines())
    command = "0/1 -m remem_jax.main --workdir=a b"
    assert calls == [f"{job} {restart} {command}" for job in (4000, 4001) for restart in (0, 1)]


@pytest.mark.parametrize("code", [1, 137])
def test_a_worker_with_an_error_is_not_requeued(
    sbatch: Sbatch, tmp_path: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _stub(tmp_path, code, monkeypatch)

    job = sbatch("--array=0-1", str(SCRIPTS["study"]))

    assert job.wait(60) == code
    assert len(log.read_text().splitlines()) == 2


def test_a_run_has_a_task_for_each_gpu_of_its_nodes(
    sbatch: Sbatch, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _stub(tmp_path, 75, monkeypatch)

    job = sbatch(str(SCRIPTS["run"]), "--workdir=x")

    assert job.wait(60) == 0
    calls = sorted(log.read_text().splitlines())
    assert [call.split()[1:3] for call in calls] == [
        [restart, f"{i}/8"] for restart in "01" for i in range(8)
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_task_has_the_cpus_of_the_script(
    sbatch: Sbatch, tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\necho "$SLURM_CPUS_PER_TASK" >> "{tmp_path}/cpus"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("REMEM_PYTHON", str(stub))

    assert sbatch(str(SCRIPTS[name])).wait(60) == 0
    assert set((tmp_path / "cpus").read_text().split()) == {"8"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_study_is_requeued_and_finishes(
    sbatch: Sbatch, tmp_path: pathlib.Path, state: pathlib.Path
) -> None:
    config, folder = tmp_path / "tiny.py", tmp_path / "study"
    init = tiny_run.save_teacher(tmp_path / "teacher.npz")
    config.write_text(CONFIG.format(init=str(init)))
    flags = ("--config.only=finetune", "--config.storage=journal")

    job = sbatch(str(SCRIPTS["study"]), f"--config={config}", f"--workdir={folder}", *flags)
    while not [*folder.glob("teachers/*/*/teachers/*/checkpoints/4")]:
        assert job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.kill(int((state / "srun-4000").read_text()), signal.SIGUSR1)

    assert job.wait(300) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert log.count("remem_jax: stopped") == 1
    report = json.loads((folder / "study.json").read_text())
    assert [trial["state"] for trial in report["trials"]] == ["done"]
    (metrics,) = folder.glob("teachers/*/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if row["part"].startswith("teachers/") and "loss" in row]
    assert steps == [*range(1, 9)]  # No step was repeated.
    # The rows that were left out may need the teacher later.
    assert [*folder.glob("teachers/*/*/teachers/finetune")]
