"""A whole run whose students are ViTs that start from the teacher's checkpoint."""

import csv
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from remem_jax import models, predict, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.export import __main__ as export_command
from remem_jax.export import checking, predictors, runs
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.weights import timm
from tests import tiny_run
from tests.oracles import peers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("student", "mixed_dtypes")]
COMPARED = ("kd", "features", "features_cls", "features_layers", "relations")


@pytest.fixture(scope="module")
def student() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.STUDENTS, tiny_run.VIT_NAME, tiny_run.VIT_STUDENT)
        yield


def config_of(folder: pathlib.Path) -> ConfigDict:
    """Returns the config of students without a teacher, and with losses of logits and features."""
    config = tiny_run.get_config()
    config.methods = ("alone", "finetune")
    config.save_every = 2
    config.teacher.init = str(tiny_run.save_teacher(folder / "teacher.npz"))
    config.teacher.steps, config.teacher.warmup_steps = (2,), 0
    config.teacher.batch_size = config.student.batch_size = 8
    config.student.model, config.student.init = tiny_run.VIT_NAME, config.teacher.init
    config.student.losses = COMPARED
    config.student.steps, config.student.evaluations = 4, 1
    config.student.warmup_steps = 0
    config.student.weights = (0.5,)
    config.student.temperatures = (1.0,)
    config.student.pretrained_learning_rates = (0.01,)
    config.student.drop_path, config.student.dropout = 0.2, 0.1
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, student: None) -> pathlib.Path:
    """A run that was stopped while its first student was trained, and resumed."""
    folder = tmp_path_factory.mktemp("run")
    stopping = _in_stage(folder / "run" / "students" / "alone")
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(loop.StoppedError):
            workflow.run(config_of(folder), folder / "run", stopping=stopping)
        workflow.run(config_of(folder), folder / "run")
    return folder / "run"


def _in_stage(stage: pathlib.Path) -> Callable[[], bool]:
    """Returns a function that stops a run after the third step of a stage."""
    steps = itertools.count(1)
    return lambda: stage.is_dir() and next(steps) == 3


def test_every_loss_trains_a_student_and_the_report_is_written(run: pathlib.Path) -> None:
    record: Any = results.read(run / "results.json")

    assert {student["loss"] for student in record["students"]} == {None, *COMPARED}
    assert all(np.isfinite(student["validation"]["loss"]) for student in record["students"])
    assert record["models"]["student_architecture"] == {"gelu": "tanh", "pool": "cls"}
    row = "Architecture of the student | pooled by \\[CLS\\], GELU by tanh"
    assert row in (run / "report.md").read_text()
    assert row in (run / "selected" / "finetune_student.md").read_text()


def test_a_resumed_run_has_the_student_of_an_uninterrupted_one(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = config_of(tmp_path)
    config.methods = ("alone",)

    workflow.run(config, tmp_path / "run")

    file = "selected/alone_student.safetensors"
    expected = timm.read(tmp_path / "run" / file)
    for name, array in timm.read(run / file).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_timm_loads_the_selected_student_as_the_card_says(
    run: pathlib.Path, rng: np.random.Generator
) -> None:
    student, torch = runs.open_student(run, method="finetune"), peers.torch()
    assert student.described.architecture == {"gelu": "tanh", "pool": "cls"}
    size = tiny_run.IMAGE_SIZE
    theirs = peers.timm().create_model(
        tiny_run.VIT_STUDENT.timm,
        num_classes=10,
        **tiny_run.VIT_STUDENT.timm_options(student.described.architecture, size),
    )
    state = timm.read(student.source)
    theirs.eval().load_state_dict({n: torch.from_numpy(a) for n, a in state.items()}, strict=True)
    pixels = rng.integers(0, 256, (4, size, size, 3)).astype(np.uint8)

    logits = predictors.of_student(student).predict(pixels)

    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs(images).numpy(), atol=1e-4)


def test_predictions_of_the_run_and_of_its_onnx_export_agree(
    run: pathlib.Path,
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "_REPEATS", (1, 1))
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")

    arguments = [str(run), "--format=onnx", "--method=finetune", "--input=uint8"]
    assert export_command.main([*arguments, "--check-images=20"]) == 0

    rows = []
    for model in (run, run / "export" / "finetune_student_uint8.onnx"):
        out = tmp_path / f"{len(rows)}.csv"
        method = ["--method=finetune"] if model == run else []
        images = str(tmp_path / "images")
        assert predict.main([str(model), images, f"--out={out}", *method]) == 0
        rows.append(list(csv.DictReader(out.read_text().splitlines())))
    assert [row["class"] for row in rows[0]] == [row["class"] for row in rows[1]]
    ours, exported = ([float(row["probability"]) for row in each] for each in rows)
    np.testing.assert_allclose(exported, ours, atol=1e-5)


def test_folding_is_refused(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_command.main([str(run), "--format=onnx", "--fold"]) != 0
    assert "vit_pair has none: leave out --fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("student.stem", "small", r"vit_pair does not have: set it to imagenet"),
        ("data.image_size", 20, r"multiple of 8, the patch size of the student vit_pair; got 20"),
    ],
)
def test_settings_that_no_vit_has_are_refused(
    setting: str, value: Any, message: str, tmp_path: pathlib.Path
) -> None:
    config = config_of(tmp_path)
    config.update_from_flattened_dict({setting: value})

    with pytest.raises(SettingError, match=message):
        settings.check_remem(config)
