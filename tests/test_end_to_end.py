"""The main job as a user runs it: in a process of its own, killed and started again."""

import csv
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from scipy import special

from remem_jax import data, paired, predict
from remem_jax.data.images import augment
from remem_jax.export import __main__ as export_command
from remem_jax.export import checking, predictors
from remem_jax.export import images as image_files
from tests import tiny_run
from tests.oracles import peers

pytestmark = pytest.mark.timeout(900)  # Several whole runs; a busy machine may take minutes.
ROOT = pathlib.Path(__file__).parents[1]
# Small enough that starting and compiling are nearly all of the time.
SETTINGS = {
    "methods": "('scratch', 'remem')",
    "save_every": 10,
    "teacher.steps": "(20, 40)",
    "teacher.batch_size": 16,
    "student.steps": 40,  # Enough to be killed in the middle of them.
    "student.warmup_steps": 5,
    "student.batch_size": 8,
    "student.learning_rates": "(0.05, 0.2)",
    "student.weights": "(0.5,)",
    "student.evaluations": 2,
}


class Job:
    """The command of a run in a folder of its own."""

    def __init__(self, workdir: pathlib.Path, scratch: pathlib.Path, **others: Any) -> None:
        self.workdir = workdir
        settings = {**SETTINGS, "teacher.init": scratch / "teacher.npz", **others}
        command = [sys.executable, "-m", "remem_jax.main", "--config=tests/tiny_run.py"]
        changes = [f"--config.{name}={value}" for name, value in settings.items()]
        self._command = [*command, f"--workdir={workdir}", *changes]
        self._environment = os.environ | {"REMEM_CACHE": str(scratch / "cache")}

    def start(
        self, *flags: str, within: tuple[str, ...] = (), **environment: Any
    ) -> subprocess.Popen[str]:
        """Starts the command, by another one if that is named."""
        return subprocess.Popen(
            [*within, *self._command, *flags],
            cwd=ROOT,
            env=self._environment | environment,
            text=True,
            stderr=subprocess.PIPE,
        )

    def finish(self, *flags: str, **environment: Any) -> dict[str, Any]:
        """Runs the command to its end; the results."""
        process = self.start(*flags, **environment)
        _, log = process.communicate()
        assert process.returncode == 0, log
        return json.loads((self.workdir / "results.json").read_text())

    def saves(self, part: str, process: subprocess.Popen[str]) -> None:
        """Waits for the first checkpoint of a part of the run."""
        first = self.workdir / part / "checkpoints" / "10"
        while process.poll() is None and not first.is_dir():
            time.sleep(0.002)

    def kill_when(self, part: str, *flags: str) -> None:
        """Starts the command, and kills it at the first checkpoint of a part of the run."""
        process = self.start(*flags)
        self.saves(part, process)
        process.send_signal(signal.SIGKILL)
        _, log = process.communicate()
        assert process.returncode == -signal.SIGKILL, log
        assert not (self.workdir / part / "result.json").exists()  # Killed in the middle of it.


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Makes jobs that differ in their folder, and in what is named."""
    scratch = tmp_path_factory.mktemp("job")
    tiny_run.save_teacher(scratch / "teacher.npz")
    return lambda name, **others: Job(scratch / name, scratch, **others)


@pytest.fixture(scope="module")
def undisturbed(job: Callable[..., Job]) -> Job:
    """A run that nothing disturbed."""
    job("undisturbed").finish()
    return job("undisturbed")


def results(finished: Job) -> dict[str, Any]:
    return json.loads((finished.workdir / "results.json").read_text())


def test_every_method_is_selected_and_tested(undisturbed: Job) -> None:
    rows = {row["method"]: row for row in results(undisturbed)["methods"]}

    assert list(rows) == ["scratch", "remem"]
    for row in rows.values():
        assert 0 < row["student"]["test"]["top1"] <= 1
    assert rows["scratch"]["teacher"] is None
    assert rows["scratch"]["plan"] is None
    plan = rows["remem"]["plan"]
    assert (plan["rematerialise"], plan["accumulate"], plan["compiled"]) == ("nothing", 1, False)
    assert plan["bytes"] > 0
    assert plan["operations"] == 1
    assert rows["remem"]["teacher_settings"]["mlp_weight"] == 0.8


def test_what_is_reported_is_the_best_on_validation(undisturbed: Job) -> None:
    found = results(undisturbed)

    for row in found["methods"]:
        tried = [s["validation"]["top1"] for s in found["students"] if s["method"] == row["method"]]
        assert row["student"]["validation"]["top1"] == max(tried)


def test_which_images_are_classified_correctly_is_what_the_accuracies_say(
    undisturbed: Job,
) -> None:
    found = results(undisturbed)
    labels = paired.unpack(found["data"]["test_labels"])
    names = np.array(found["data"]["class_names"])
    with (undisturbed.workdir / "selected" / "split.csv").open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if row["split"] == "test"]

    assert [row["label"] for row in listed] == names[labels].tolist()
    for row in found["methods"]:
        students, teacher = (row["test_correct"][name] for name in ("students", "teacher"))
        assert paired.unpack(students[0]).mean() == row["seeds"][0]["test"]["top1"]
        if teacher:
            assert paired.unpack(teacher).mean() == row["teacher"]["test"]["top1"]
        correct = [one["label"] == one[f"predicted by {row['method']}"] for one in listed]
        np.testing.assert_array_equal(correct, paired.unpack(students[0]))


def test_every_teacher_checkpoint_has_its_students(undisturbed: Job) -> None:
    tried = {
        (s["method"], s["teacher_step"], s["student"]) for s in results(undisturbed)["students"]
    }
    assert tried == {
        (method, step, student)
        for method, steps in (("scratch", (None,)), ("remem", (20, 40)))
        for step in steps
        for student in (0, 1)
    }


def test_a_teacher_learns(undisturbed: Job) -> None:
    (teacher,) = [
        t for t in results(undisturbed)["teachers"] if (t["method"], t["step"]) == ("remem", 40)
    ]
    assert teacher["validation"]["top1"] > 0.3  # Chance is 0.1; from random weights.


def test_the_report_is_written(undisturbed: Job) -> None:
    assert "ReMem on scikit-learn's digits" in (undisturbed.workdir / "report.md").read_text()
    assert "<svg" in (undisturbed.workdir / "report.html").read_text()


@pytest.mark.usefixtures("resnet4")
def test_what_is_exported_predicts_as_the_run_was_tested(
    undisturbed: Job, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "LATENCY_BATCHES", (4,))
    path, folder, out = (tmp_path / name for name in ("one.onnx", "images", "found.json"))
    images = image_files.open_images(undisturbed.workdir, "test", 0)
    folder.mkdir()
    for i, pixels in enumerate(images.pixels):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")

    flags = ["--method=remem", "--fold", "--check-images=4", f"--out={path}"]
    assert export_command.main([str(undisturbed.workdir), *flags]) == 0
    assert predict.main([str(path), str(folder), "--top=10", "--format=json", f"--out={out}"]) == 0

    found = json.loads(out.read_text())["images"]
    names = [str(i) for i in range(10)]
    (row,) = [one for one in results(undisturbed)["methods"] if one["method"] == "remem"]
    likeliest = np.array([names.index(one["top"][0]["class"]) for one in found])
    # Two of 360 images may lie on a border between classes: they are rounded to grey levels.
    right = np.mean(likeliest == images.labels)
    assert right == pytest.approx(row["student"]["test"]["top1"], abs=2.5 / 360)
    student = predictors.open_any(undisturbed.workdir, method="remem")
    expected = special.softmax(student.predict(images.pixels[:4]), axis=-1)
    for one, shares in zip(found[:4], expected, strict=True):
        for top in one["top"]:
            assert top["probability"] == pytest.approx(shares[names.index(top["class"])], abs=1e-4)


def test_a_killed_run_comes_to_the_same_results(job: Callable[..., Job], undisturbed: Job) -> None:
    killed = job("killed")
    killed.kill_when("teachers/remem")
    # One student at a time, the second from the answers that the first one's teacher gave.
    apart = ("--config.student.group=1", "--config.student.store_outputs")
    killed.kill_when("students/remem/step_40/students_1_to_1", *apart)

    found = killed.finish(*apart)

    expected = results(undisturbed)
    for row in (*found["methods"], *expected["methods"]):
        row.pop("group")
    for field in ("methods", "teachers", "students", "data", "models"):
        assert found[field] == expected[field]


def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    undisturbed: Job, job: Callable[..., Job]
) -> None:
    stopped = job("stopped", **{"student.steps": 2000})  # Enough to be in the middle of them.
    process = stopped.start()
    stopped.saves("students/scratch", process)

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()

    found = re.search(r"stopped after step (\d+) of 2000, which is saved; the same command", log)
    assert process.returncode == 1, log
    assert found, log
    saved = stopped.workdir / "students" / "scratch" / "checkpoints"
    assert (saved / found.group(1)).is_dir()


_SMALL_FILES = """
import os, resource, sys

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("size", [256, 60_000])  # Of files: for no config, for no checkpoint.
def test_a_full_disk_ends_the_run_in_one_line(job: Callable[..., Job], size: int) -> None:
    process = job("full").start(within=(sys.executable, "-c", _SMALL_FILES, str(size)))

    _, log = process.communicate()

    assert process.returncode == 1, log
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("remem_jax: ")
    assert re.search(r"cannot be (used|written) \(File too large\)", log.splitlines()[-1])
    assert re.search("the same command (resumes|goes on|begins again)", log.splitlines()[-1])


def test_a_finished_run_is_not_done_again(job: Callable[..., Job], undisturbed: Job) -> None:
    before = results(undisturbed)
    assert undisturbed.finish() == before


TWO = {
    "methods": "('remem',)",
    "teacher.steps": "(20,)",
    "teacher.warmup_steps": 5,
    "teacher.ascent_examples": -1,
    "student.steps": 10,
    "student.learning_rates": "(0.05,)",
    "student.losses": "('dist',)",
    "student.evaluations": 1,
    "student.store_outputs": True,
}


@pytest.mark.enable_socket  # Processes talk to each other.
def test_two_processes_come_to_the_results_of_one_with_two_devices_also_if_one_is_killed(
    job: Callable[..., Job],
) -> None:
    alone, several = job("two_devices", **TWO), job("two_processes", **TWO)
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = [(f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}") for i in (0, 1)]
    first, second = (several.start(*own) for own in flags)
    several.saves("teachers/remem", first)
    second.kill()

    _, told = first.communicate(timeout=200)
    second.communicate()
    assert first.returncode not in (0, None)
    # By us where it was computing, by JAX where it was waiting for the other.
    assert re.search("another process of this run has ended|another task died", told), told

    second = several.start(*flags[1], "--config.fsdp")
    results_of_two = several.finish(*flags[0], "--config.fsdp")
    second.communicate(timeout=200)
    assert second.returncode == 0
    results_of_one = alone.finish(JAX_NUM_CPU_DEVICES="2")
    assert results_of_two["device"]["count"] == results_of_one["device"]["count"] == 2
    for field in ("teachers", "students"):
        for one, two in zip(results_of_one[field], results_of_two[field], strict=True):
            assert two["validation"] == pytest.approx(one["validation"], rel=1e-3, abs=0.01)


LORA = {
    "student.model": "resnet18",
    "student.steps": 20,
    "student.learning_rates": "(0.05,)",
    "student.evaluations": 1,
    "methods": "('remem',)",
    "teacher.tuning": "lora",
    "teacher.steps": "(20,)",
    "teacher.warmup_steps": 5,
    "teacher.attention_weight": 0.9,
    "teacher.gelu": "erf",  # As timm has it.
}


def test_timm_serves_what_lora_and_distillation_made(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, timm = peers.torch(), peers.timm()
    monkeypatch.delenv("XLA_FLAGS")  # Compiled as a user has it.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    tuned = job("lora", **LORA)
    tuned.kill_when("teachers/remem")

    (row,) = tuned.finish()["methods"]

    used = results(tuned)["models"]
    size = tiny_run.TEACHER
    width = size.features
    # Rank 32, for queries and values, and the head.
    assert used["teacher_trainable"] == size.depth * 2 * 2 * width * 32 + width * 10 + 10
    folder = tuned.workdir / "selected"
    student = timm.create_model("resnet18", num_classes=10)
    arrays = safetensors.numpy.load_file(folder / "remem_student.safetensors")
    student.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    teacher = timm.models.vision_transformer.VisionTransformer(
        img_size=tiny_run.IMAGE_SIZE,
        patch_size=size.patch,
        embed_dim=width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=10,
    )
    teacher.load_pretrained(str(folder / "remem_teacher.npz"))
    source = data.open_source("digits", path="", data_dir="")
    storage = data.Storage("resident", stored_size=64, resident_gib=1.0, cache="", threads=1)
    pixels = data.load(source, storage, validation=0.2, seed=0, corrupt_limit=0).pixels
    assert pixels is not None
    test = pixels["test"]
    transform = augment.make_evaluation_transform(size=tiny_run.IMAGE_SIZE)
    images = np.asarray(transform(jax.random.key(0), jnp.asarray(test.image)))
    for name, model in (("student", student), ("teacher", teacher)):
        with torch.no_grad():
            answers = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        right = answers.argmax(-1).numpy() == np.asarray(test.label)
        # Two of 360 images may lie on a border between classes.
        assert right.mean() == pytest.approx(row[name]["test"]["top1"], abs=2.5 / 360)
