"""Students that start from pretrained weights (`config.student.init`)."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch
from flax import traverse_util
from ml_collections import ConfigDict

from remem_jax import models, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.export import predictors, runs
from remem_jax.models.normalisation import IMAGENET
from remem_jax.storage import results
from remem_jax.weights import student_normalisation, students
from remem_jax.workflow import context
from remem_jax.workflow.remem import student_grid, student_setup
from tests import tiny_run
from tests.oracles import peers
from tests.workflow.conftest import Shared

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("resnet4", "mixed_dtypes")]
CLASSES = 5  # Of the pretrained student.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file of the student of `tiny_run`, with random parameters and statistics."""
    tiny_run.add_student()
    model = models.make(tiny_run.NAME, classes=CLASSES)
    variables = models.init(model, jax.random.key(7), tiny_run.IMAGE_SIZE)
    moved = jax.tree.map(lambda leaf: leaf + 0.125, variables)
    path = tmp_path_factory.mktemp("weights") / "resnet4.safetensors"
    students.save(path, moved, metadata=student_normalisation.texts(IMAGENET))
    return path


@pytest.fixture
def run(shared: Shared, weights: pathlib.Path, tmp_path: pathlib.Path) -> context.Run:
    return shared.run(tmp_path, _config(weights))


def _config(weights: pathlib.Path) -> ConfigDict:
    config = tiny_run.get_config()
    config.methods = ("scratch", "alone", "finetune")
    config.student.init = str(weights)
    config.student.batch_size = 8
    config.student.steps, config.student.evaluations = 2, 1
    config.student.warmup_steps = 0
    config.student.learning_rates = (0.1,)
    config.student.scratch_learning_rates = (0.2, 0.3)
    config.student.pretrained_learning_rates = (0.01,)
    config.teacher.steps, config.teacher.warmup_steps = (2,), 0
    config.teacher.batch_size = 8
    return config


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def test_all_but_the_head_is_that_of_the_file(run: context.Run, weights: pathlib.Path) -> None:
    saved, head = _flat(students.read(weights).variables), {"params/fc/kernel", "params/fc/bias"}
    run.config.methods = ("alone",)
    setup = student_setup.make(run, None)
    (point,) = student_grid.label_points(run.config.student, "alone")

    first = _flat(setup.first_state(point).variables)

    assert first.keys() == saved.keys()
    for name in first.keys() - head:
        np.testing.assert_array_equal(first[name], saved[name], err_msg=name)
    random = _flat(setup.first(0))
    for name in head:
        np.testing.assert_array_equal(first[name], random[name], err_msg=name)


def test_students_from_scratch_start_from_random_weights(run: context.Run) -> None:
    run.config.methods = ("scratch", "alone")
    setup = student_setup.make(run, None)
    point, *_ = student_grid.label_points(run.config.student, "scratch")

    first = _flat(setup.first_state(point).variables)

    for name, expected in _flat(setup.first(0)).items():
        np.testing.assert_array_equal(first[name], expected, err_msg=name)


def test_students_of_other_seeds_differ_in_the_head_alone(run: context.Run) -> None:
    run.config.methods = ("alone",)
    setup = student_setup.make(run, None)

    one, other = (
        _flat(setup.first_states[student_grid.LABELS](seed, True).params) for seed in (0, 1)
    )

    different = {name for name in one if not np.array_equal(one[name], other[name])}
    assert different == {"fc/kernel", "fc/bias"}


def test_the_learning_rates_follow_from_the_initial_weights(weights: pathlib.Path) -> None:
    student = _config(weights).student

    def rates(method: str) -> list[float]:
        points = student_grid.points(student, method)
        return [float(point.hyperparameters.learning_rate) for point in points]

    assert (rates("scratch"), rates("alone"), rates("finetune")) == ([0.2, 0.3], [0.01], [0.01])
    student.init, student.scratch_learning_rates = "", ()
    assert (rates("scratch"), rates("finetune")) == ([0.1], [0.1])


@pytest.mark.parametrize(
    ("model", "optimizer", "expected"),
    [
        ("efficientnet_lite0", "sgd", [0.01, 0.03, 0.1]),
        ("vit_tiny_patch16", "sgd", [0.001, 0.003, 0.01]),
        ("efficientnet_lite0", "adamw", [3e-4, 1e-3, 3e-3]),
        ("vit_tiny_patch16", "adamw", [1e-4, 3e-4, 1e-3]),
    ],
)
def test_default_learning_rates_of_pretrained_students_follow_from_network_and_optimiser(
    weights: pathlib.Path, model: str, optimizer: str, expected: list[float]
) -> None:
    student = _config(weights).student
    student.model, student.optimizer = model, optimizer
    student.pretrained_learning_rates = ()

    for method in ("alone", "finetune"):
        points = student_grid.points(student, method)
        assert [point.hyperparameters.learning_rate for point in points] == expected


def test_a_whole_run_compares_distillation_with_both_baselines(
    weights: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workflow.run(_config(weights), tmp_path)

    record = results.read(tmp_path / "results.json")
    assert record is not None
    assert [row["method"] for row in record["methods"]] == ["scratch", "alone", "finetune"]
    assert record["models"]["student_init"]["digest"] == results.digest(weights)
    assert record["models"]["student_normalisation"]["mean"] == list(IMAGENET.mean)
    report = (tmp_path / "report.md").read_text()
    assert "| Initial weights of the student | resnet4.safetensors (a local file) |" in report
    assert "mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225, of pixels" in report
    _require_timms_logits(runs.open_student(tmp_path, method="alone"))


def _require_timms_logits(student: runs.Student) -> None:
    """Compares a run's student with timm's network, whose images are normalised outside of it."""
    side, torch = tiny_run.IMAGE_SIZE, peers.torch()
    pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3)).astype(np.uint8)
    logits = predictors.of_student(student).predict(pixels)
    with safetensors.safe_open(student.source, framework="np") as file:
        mean, std = (json.loads(file.metadata()[name]) for name in ("mean", "std"))
    theirs = peers.resnet4(len(student.described.classes)).eval()
    theirs.load_state_dict(safetensors.torch.load_file(student.source), strict=True)
    images = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(torch.tensor(images, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_folder_belongs_to_its_initial_weights(
    weights: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _config(weights)
    config.methods = ("alone",)
    workflow.run(config, tmp_path / "run")
    other = jax.tree.map(lambda leaf: 2 * leaf, students.read(weights).variables)
    metadata = student_normalisation.texts(IMAGENET)
    students.save(tmp_path / "other.safetensors", other, metadata=metadata)

    config.student.init = str(tmp_path / "other.safetensors")
    with pytest.raises(SettingError, match="student was"):
        workflow.run(config, tmp_path / "run")
    config.methods, config.student.init = ("scratch",), ""
    with pytest.raises(SettingError, match="another config"):
        workflow.run(config, tmp_path / "run")


def test_alone_needs_initial_weights(weights: pathlib.Path) -> None:
    config = _config(weights)
    config.student.init = ""

    with pytest.raises(SettingError, match="replace alone by scratch"):
        settings.check_remem(config)


def test_networks_have_the_normalisation_of_the_weights(run: context.Run) -> None:
    run.config.methods = ("alone",)
    setup = student_setup.make(run, None)

    assert setup.initial is not None
    assert setup.initial.normalisation == IMAGENET
