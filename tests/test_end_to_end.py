"""Runs the main command as a user does: in a separate process, killed and restarted.

Runs that are killed, stopped or repeated are forked from a process that has imported JAX.
"""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from scipy import special

import remem_jax
from remem_jax import data, paired, predict, signals
from remem_jax.commands import clean
from remem_jax.data.images import augment
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import __main__ as export_command
from remem_jax.export import checking, predictors
from remem_jax.export import images as image_files
from tests import forking, tiny_run
from tests.oracles import peers

pytestmark = pytest.mark.timeout(900)  # Several whole runs; a busy machine may take minutes.
ROOT = pathlib.Path(__file__).parents[1]
# So small that start-up and compilation take nearly all of the time.
SETTINGS = {
    "methods": "('scratch', 'remem')",
    "save_every": 10,
    "teacher.steps": "(20, 40)",
    "teacher.batch_size": 16,
    "student.steps": 40,  # Enough to kill the run while they train.
    "student.warmup_steps": 5,
    "student.batch_size": 8,
    "student.learning_rates": "(0.05, 0.2)",
    "student.weights": "(0.5,)",
    "student.evaluations": 2,
}


class Job:
    """The command of a run in its own folder."""

    def __init__(
        self, server: forking.Server, workdir: pathlib.Path, scratch: pathlib.Path, **changes: Any
    ) -> None:
        self.workdir = workdir
        settings = {**SETTINGS, "teacher.init": scratch / "teacher.npz", **changes}
        overrides = [f"--config.{name}={value}" for name, value in settings.items()]
        self.log = ""
        self._arguments = ["--config=tests/tiny_run.py", f"--workdir={workdir}", *overrides]
        self._environment = {"REMEM_CACHE": str(scratch / "cache")}
        self._server = server

    def start(
        self, *flags: str, within: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Starts the command, optionally as the argument of another one."""
        command = [*within, sys.executable, "-m", "remem_jax.main"]
        return subprocess.Popen(
            [*command, *self._arguments, *flags],
            cwd=ROOT,
            env=os.environ | self._environment | environment,
            text=True,
            stderr=subprocess.PIPE,
        )

    def fork(self, *flags: str) -> forking.Child:
        """Starts the command in a process that need not import JAX."""
        arguments = [*self._arguments, *flags]
        return self._server.start("tests.forking:run_command", arguments, self._environment)

    def results_of(self, process: subprocess.Popen[str] | forking.Child) -> dict[str, Any]:
        """Waits for the end of the command and returns its results."""
        _, self.log = process.communicate()
        assert process.returncode == 0, self.log
        return json.loads((self.workdir / "results.json").read_text())

    def wait_for_checkpoint(self, stage: str, process: forking.Child) -> None:
        """Waits for the first checkpoint of a stage."""
        first = self.workdir / stage / "checkpoints" / "10"
        while process.poll() is None and not first.is_dir():
            time.sleep(0.002)

    def kill_at(self, stage: str, *flags: str) -> None:
        """Starts the command and kills it at the first checkpoint of a stage."""
        process = self.fork(*flags)
        self.wait_for_checkpoint(stage, process)
        process.send_signal(signal.SIGKILL)
        _, log = process.communicate()
        assert process.returncode == -signal.SIGKILL, log
        assert not (self.workdir / stage / "result.json").exists()  # It was unfinished.


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Job]]:
    """Makes jobs that differ in their folder and in some settings."""
    scratch = tmp_path_factory.mktemp("job")
    tiny_run.save_teacher(scratch / "teacher.npz")
    with forking.Server(*forking.OF_COMMAND) as server:
        yield lambda name, **changes: Job(server, scratch / name, scratch, **changes)


@pytest.fixture(scope="module")
def uninterrupted(job: Callable[..., Job]) -> Job:
    """A run without interruption."""
    finished = job("uninterrupted")
    finished.results_of(finished.start())
    return finished


def results(finished: Job) -> dict[str, Any]:
    return json.loads((finished.workdir / "results.json").read_text())


@pytest.mark.usefixtures("resnet4")
def test_a_cleaned_run_predicts_as_before_and_trains_nothing_again(
    job: Callable[..., Job], uninterrupted: Job
) -> None:
    run, before = job("cleaned"), results(uninterrupted)
    shutil.copytree(uninterrupted.workdir, run.workdir)
    curves = (run.workdir / "metrics.jsonl").read_bytes()
    image = np.zeros((20, 20, 3), np.uint8)
    predicted = remem_jax.load(run.workdir).predict(image)
    assert [*run.workdir.rglob("best")] == []  # Students are discarded without being asked.
    assert len([*run.workdir.rglob("params")]) == 2

    assert clean.main([str(run.workdir), "--all"]) == 0

    assert [*run.workdir.rglob("params")] == []
    after = run.results_of(run.fork())
    assert after["methods"] == before["methods"]
    assert (run.workdir / "metrics.jsonl").read_bytes() == curves
    assert remem_jax.load(run.workdir).predict(image) == predicted
    # Half, since the first size was recorded before the report was written.
    assert after["disk"]["bytes"] < before["disk"]["bytes"] - before["disk"]["removable"] / 2


def test_every_method_is_selected_and_tested(uninterrupted: Job) -> None:
    rows = {row["method"]: row for row in results(uninterrupted)["methods"]}

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


def test_what_a_run_says_is_sentences_with_a_time(uninterrupted: Job) -> None:
    lines = uninterrupted.log.splitlines()

    assert all(re.match(r"\d\d:\d\d:\d\d [A-Z/]?", line) for line in lines)
    texts = [line.partition(" ")[2] for line in lines]
    number = r"\d+\.\d\d %"
    for expected in (
        rf"From scratch: students, step 20: {number} on validation, the best of 2 students\.",
        rf"ReMem: teacher, step 40: {number} on validation\.",
        rf"ReMem: the student has {number} on test, its teacher {number} "
        r"\(teacher of step \d+, loss kd, .*\)\.",
    ):
        assert sum(bool(re.fullmatch(expected, text)) for text in texts) == 1, texts
    assert not [text for text in texts if re.search(r"[{}]|\.py:|(teachers|students)/", text)]


def test_the_best_student_on_validation_is_reported(uninterrupted: Job) -> None:
    recorded = results(uninterrupted)

    for row in recorded["methods"]:
        tried = [
            s["validation"]["top1"] for s in recorded["students"] if s["method"] == row["method"]
        ]
        assert row["student"]["validation"]["top1"] == max(tried)


def test_the_correct_images_are_consistent_with_the_accuracies(
    uninterrupted: Job,
) -> None:
    recorded = results(uninterrupted)
    labels = paired.unpack(recorded["data"]["test_labels"])
    names = np.array(recorded["data"]["class_names"])
    with (uninterrupted.workdir / "selected" / "split.csv").open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if row["split"] == "test"]

    assert [row["label"] for row in listed] == names[labels].tolist()
    for row in recorded["methods"]:
        students, teacher = (row["test_correct"][name] for name in ("students", "teacher"))
        assert paired.unpack(students[0]).mean() == row["seeds"][0]["test"]["top1"]
        if teacher:
            assert paired.unpack(teacher).mean() == row["teacher"]["test"]["top1"]
        correct = [image["label"] == image[f"predicted by {row['method']}"] for image in listed]
        np.testing.assert_array_equal(correct, paired.unpack(students[0]))


def test_every_teacher_checkpoint_has_its_students(uninterrupted: Job) -> None:
    tried = {
        (s["method"], s["teacher_step"], s["student"]) for s in results(uninterrupted)["students"]
    }
    assert tried == {
        (method, step, student)
        for method, steps in (("scratch", (None,)), ("remem", (20, 40)))
        for step in steps
        for student in (0, 1)
    }


def test_a_teacher_learns(uninterrupted: Job) -> None:
    (teacher,) = [
        t for t in results(uninterrupted)["teachers"] if (t["method"], t["step"]) == ("remem", 40)
    ]
    assert teacher["validation"]["top1"] > 0.3  # Chance is 0.1; the initial weights are random.


def test_the_report_is_written(uninterrupted: Job) -> None:
    assert "ReMem on scikit-learn's digits" in (uninterrupted.workdir / "report.md").read_text()
    assert "<svg" in (uninterrupted.workdir / "report.html").read_text()


def test_the_report_begins_with_a_model_whose_file_and_commands_are_there(
    uninterrupted: Job,
) -> None:
    recorded = results(uninterrupted)
    text = (uninterrupted.workdir / "report.md").read_text()

    literal = re.findall(r"^    (.+)$", text, flags=re.MULTILINE)
    sentence = re.search(r"^\*\*(.*)\*\*", text, flags=re.MULTILINE)
    assert sentence
    assert re.search("[uU]se the (student|teacher)", sentence[1])
    assert pathlib.Path(literal[0]).is_file()
    assert literal[1].startswith(f"remem export {uninterrupted.workdir} --method=")
    for role in ("student", "teacher"):
        assert min(recorded["inference"][role]["milliseconds"].values()) > 0


def test_the_worst_mistakes_are_wrong_in_the_list_of_files(uninterrupted: Job) -> None:
    rows = results(uninterrupted)["methods"]
    best = max(rows, key=lambda row: row["student"]["validation"]["top1"])["method"]
    selected = uninterrupted.workdir / "selected"
    with (selected / "split.csv").open(newline="") as file:
        listed = {row["file"]: row for row in csv.DictReader(file) if row["split"] == "test"}
    mistakes = json.loads((selected / f"{best}_mistakes.json").read_text())

    assert 0 < len(mistakes) <= 24
    for mistake in mistakes:
        row = listed[mistake["file"]]
        label, predicted = row["label"], row[f"predicted by {best}"]
        assert (str(mistake["label"]), str(mistake["predicted"])) == (label, predicted)
        assert label != predicted
    confidences = [mistake["confidence"] for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    page = (uninterrupted.workdir / "report.html").read_text()
    assert page.count("<img src=") == len(mistakes)


@pytest.mark.usefixtures("resnet4")
def test_an_exported_student_reaches_the_reported_accuracy(
    uninterrupted: Job, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "LATENCY_BATCHES", (4,))
    path, folder, out = (tmp_path / name for name in ("one.onnx", "images", "predictions.json"))
    images = image_files.open_images(uninterrupted.workdir, "test", 0)
    folder.mkdir()
    for i, pixels in enumerate(images.pixels):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")

    flags = ["--method=remem", "--fold", "--check-images=4", f"--out={path}"]
    assert export_command.main([str(uninterrupted.workdir), *flags]) == 0
    assert predict.main([str(path), str(folder), "--top=10", "--format=json", f"--out={out}"]) == 0

    predictions = json.loads(out.read_text())["images"]
    names = [str(i) for i in range(10)]
    (row,) = [row for row in results(uninterrupted)["methods"] if row["method"] == "remem"]
    predicted = np.array([names.index(image["top"][0]["class"]) for image in predictions])
    # Rounding to grey levels may change the class of two of the 360 images.
    accuracy = np.mean(predicted == images.labels)
    assert accuracy == pytest.approx(row["student"]["test"]["top1"], abs=2.5 / 360)
    student = predictors.open_any(uninterrupted.workdir, method="remem")
    expected = special.softmax(student.predict(images.pixels[:4]), axis=-1)
    for image, shares in zip(predictions[:4], expected, strict=True):
        for top in image["top"]:
            assert top["probability"] == pytest.approx(shares[names.index(top["class"])], abs=1e-4)


def test_a_killed_run_reaches_the_same_results(job: Callable[..., Job], uninterrupted: Job) -> None:
    killed = job("killed")
    killed.kill_at("teachers/remem")
    # One student at a time; the second uses the teacher outputs stored for the first.
    apart = ("--config.student.group=1", "--config.student.store_outputs")
    killed.kill_at("students/remem/step_40/students_1_to_1", *apart)

    actual = killed.results_of(killed.fork(*apart))

    expected = results(uninterrupted)
    for row in (*actual["methods"], *expected["methods"]):
        row.pop("group")
    for field in ("methods", "teachers", "students", "data", "models"):
        assert actual[field] == expected[field]


def test_a_terminated_run_saves_and_explains_how_to_resume(
    uninterrupted: Job, job: Callable[..., Job]
) -> None:
    stopped = job("stopped", **{"student.steps": 2000})  # Enough to stop while they train.
    process = stopped.fork()
    stopped.wait_for_checkpoint("students/scratch", process)

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()

    match = re.search(r"stopped after step (\d+) of 2000, which is saved; the same command", log)
    assert process.returncode == signals.STOPPED, log
    assert match, log
    saved = stopped.workdir / "students" / "scratch" / "checkpoints"
    assert (saved / match.group(1)).is_dir()


_SMALL_FILES = """
import os, resource, sys

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("size", [256, 60_000])  # Too small for the config, and for a checkpoint.
def test_a_full_disk_ends_the_run_in_one_line(job: Callable[..., Job], size: int) -> None:
    process = job("full").start(within=(sys.executable, "-c", _SMALL_FILES, str(size)))

    _, log = process.communicate()

    assert process.returncode == 1, log
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("remem_jax: ")
    assert re.search(r"cannot be (used|written) \(File too large\)", log.splitlines()[-1])
    assert re.search("the same command (resumes|goes on|begins again)", log.splitlines()[-1])


def test_a_finished_run_is_not_repeated(job: Callable[..., Job], uninterrupted: Job) -> None:
    before = results(uninterrupted)
    again = job("uninterrupted")  # Other tests read what the first one logged.
    after = again.results_of(again.fork())
    assert before.pop("disk")["bytes"] > 0
    assert after.pop("disk")["bytes"] > 0  # The sizes of logs and pictures vary.
    assert after == before


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


@pytest.mark.enable_socket  # The processes communicate.
def test_two_processes_match_one_with_two_devices_even_if_one_is_killed(
    job: Callable[..., Job],
) -> None:
    alone, several = job("two_devices", **TWO), job("two_processes", **TWO)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [(f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}") for i in (0, 1)]
    first, second = (several.fork(*arguments) for arguments in flags)
    several.wait_for_checkpoint("teachers/remem", first)
    second.kill()

    _, log = first.communicate(timeout=200)
    second.communicate()
    assert first.returncode not in (0, None)
    # Our message if it was computing, JAX's if it was waiting for the other process.
    assert re.search("another process of this run has ended|another task died", log), log

    second = several.fork(*flags[1], "--config.fsdp")
    results_of_two = several.results_of(several.fork(*flags[0], "--config.fsdp"))
    second.communicate(timeout=200)
    assert second.returncode == 0
    results_of_one = alone.results_of(alone.start(JAX_NUM_CPU_DEVICES="2"))
    assert results_of_two["device"]["count"] == results_of_one["device"]["count"] == 2
    for field in ("teachers", "students"):
        for expected, actual in zip(results_of_one[field], results_of_two[field], strict=True):
            assert actual["validation"] == pytest.approx(expected["validation"], rel=1e-3, abs=0.01)


LORA = {
    "student.steps": 20,
    "student.learning_rates": "(0.05,)",
    "student.evaluations": 1,
    "methods": "('remem',)",
    "teacher.tuning": "lora",
    "teacher.steps": "(20,)",
    "teacher.warmup_steps": 5,
    "teacher.attention_weight": 0.9,
    "teacher.gelu": "erf",  # As in timm.
}


def test_timm_loads_models_trained_with_lora_and_distillation(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, timm = peers.torch(), peers.timm()
    monkeypatch.delenv("XLA_FLAGS")  # Compiles as for a user.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    tuned = job("lora", **LORA)
    tuned.kill_at("teachers/remem")

    (row,) = tuned.results_of(tuned.start())["methods"]

    used = results(tuned)["models"]
    size = tiny_run.TEACHER
    width = size.features
    # LoRA of rank 32 for queries and values, and the head.
    assert used["teacher_trainable"] == size.depth * 2 * 2 * width * 32 + width * 10 + 10
    folder = tuned.workdir / "selected"
    student = peers.resnet4(classes=10)
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
    arrays = safetensors.numpy.load_file(folder / "remem_teacher.safetensors")
    teacher.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    source = data.open_source("digits", path="", data_dir="")
    storage = data.Storage("resident", stored_size=64, resident_gib=1.0, cache="", threads=1)
    pixels = data.load(
        source, storage, data.Rules(validation=0.2, seed=0, near_duplicates=False), corrupt_limit=0
    ).pixels
    assert pixels is not None
    test = pixels["test"]
    transform = augment.make_evaluation_transform(Preprocessing(tiny_run.IMAGE_SIZE))
    images = np.asarray(transform(jax.random.key(0), jnp.asarray(test.image)))
    for name, model in (("student", student), ("teacher", teacher)):
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        correct = logits.argmax(-1).numpy() == np.asarray(test.label)
        # Two of the 360 images may be so close to a decision boundary that their class differs.
        assert correct.mean() == pytest.approx(row[name]["test"]["top1"], abs=2.5 / 360)
