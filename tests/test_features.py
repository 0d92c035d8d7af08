"""Runs of students that learn a teacher's features, and of students without labels."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.data.loaders import resident
from remem_jax.models import projection
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.train import loop, steps
from remem_jax.workflow import context
from remem_jax.workflow.remem import (
    distill,
    finetune,
    pipeline,
    student_grid,
    student_groups,
    student_setup,
    teacher_training,
)
from tests import tiny_run
from tests.oracles import peers

slow = pytest.mark.slow


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    """A run that is as short as possible."""
    config = small_run.config
    config.teacher.steps = (2,)
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.steps, config.student.evaluations = 2, 1
    config.student.learning_rates = (0.05,)
    return small_run


def configurations(**settings: Any) -> list[tuple[Any, ...]]:
    """Returns loss, temperature and weight of each configuration of a two-by-two grid."""
    config = tiny_run.digits().student
    config.update(
        {"learning_rates": (0.1,), "temperatures": (1.0, 4.0), "weights": (0.1, 0.5)} | settings
    )
    return [
        (point.loss, point.hyperparameters.temperature, point.hyperparameters.weight)
        for point in student_grid.grid_points(config)
    ]


def test_hyperparameters_that_a_loss_ignores_add_no_students() -> None:
    four = [(1.0, 0.1), (1.0, 0.5), (4.0, 0.1), (4.0, 0.5)]

    with_labels = configurations(losses=("kd", "features"))
    without = configurations(losses=("features_cls", "kd", "dist"), hard_labels=False)

    assert with_labels == [
        *(("kd", *pair) for pair in four),
        ("features", 1.0, 0.1),
        ("features", 1.0, 0.5),
    ]
    assert without == [
        *(("features_cls", *pair) for pair in four),
        ("kd", 1.0, 0.1),
        ("kd", 4.0, 0.1),
        *(("dist", *pair) for pair in four),
    ]


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (("finetune",), ["features", "kd"]),
        (("scratch", "finetune"), ["features", "kd", "labels"]),
    ],
)
def test_students_without_a_teacher_have_their_own_step(
    run: context.Run, methods: tuple[str, ...], expected: list[str]
) -> None:
    run.config.methods = methods
    run.config.student.losses = ("features", "kd")

    setup = student_setup.make(run, finetune.read_pretrained(run))

    assert list(setup.steps) == expected


@slow
def test_a_run_with_only_scratch_needs_no_teacher(run: context.Run) -> None:
    run.config.methods = ("scratch",)
    run.config.teacher.init = "nowhere.npz"
    run.config.student.losses = ("features",)
    run.config.student.hard_labels = False  # Ignored, because there is no teacher.
    check_remem(run.config)

    pipeline.run_remem(run)

    written: Any = results.read(run.workdir / "results.json")
    ((row,), (student,)) = written["methods"], written["students"]
    assert np.isfinite(row["student"]["test"]["loss"])
    assert (student["loss"], student["weight"], row["teacher"]) == (None, None, None)
    assert written["models"]["teacher"] is written["models"]["init_digest"] is None
    assert "no method of the run has a teacher" in (run.workdir / "report.md").read_text()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Counts how often the steps of teachers and of students are traced."""
    counter: collections.Counter[str] = collections.Counter()

    def counted(make: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*arguments: Any, **options: Any) -> Any:
            counter[make.__name__] += 1  # `JitWithKey` makes a step whenever it traces it.
            return make(*arguments, **options)

        return observed

    for make in (steps.make_supervised_step, steps.make_student_step):
        monkeypatch.setattr(steps, make.__name__, counted(make))
    return counter


@slow
@pytest.mark.parametrize(
    ("tuning", "hard_labels", "losses"),
    [
        ("lora", False, ("features", "kd")),
        ("adapter_houlsby", True, ("features_cls", "features_layers", "relations")),
    ],
)
def test_a_run_of_feature_losses_saves_students_without_projections(
    run: context.Run,
    traced: collections.Counter[str],
    tuning: str,
    hard_labels: bool,
    losses: tuple[str, ...],
) -> None:
    run.config.teacher.tuning = tuning
    run.config.student.losses = losses
    run.config.student.hard_labels = hard_labels

    pipeline.run_remem(run)

    written: Any = results.read(run.workdir / "results.json")
    assert tuple(student["loss"] for student in written["students"]) == losses
    assert all(np.isfinite(student["validation"]["loss"]) for student in written["students"])
    model = models.make(run.config.student.model, classes=10)
    size = sum(leaf.size for leaf in jax.tree.leaves(models.shapes(model, 16)))
    assert written["models"]["student_parameters"] == size
    # Counting a step's operations does not trace it again.
    assert traced == {"make_supervised_step": 1, "make_student_step": len(losses)}


@slow
def test_the_best_student_of_a_feature_loss_is_kept_and_exported_for_timm(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, peer = peers.torch(), peers.resnet4(classes=10)
    monkeypatch.setattr(distill, "discard", lambda run, groups: None)
    run.config.student.losses = ("relations",)

    pipeline.run_remem(run)

    stage = "students/finetune/step_2"
    setup = student_setup.make(run, finetune.read_pretrained(run))
    kept = distill.kept(run, setup, stage, 0)  # Refuses arrays with other names or shapes.
    assert projection.NAME not in kept["params"]
    assert set(kept) == {"params", "batch_stats"}
    path = run.workdir / "selected" / "finetune_student.safetensors"
    arrays = safetensors.numpy.load_file(path)
    peer.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})


@slow
def test_a_stopped_run_of_feature_losses_resumes(run: context.Run) -> None:
    run.config.student.losses = ("relations", "features_layers")
    run.config.student.steps, run.config.save_every = 4, 2
    setup = student_setup.make(run, finetune.read_pretrained(run))
    teachers = finetune.finetune(run, finetune.read_pretrained(run), "finetune")
    calls: list[int] = []

    def stopping() -> bool:
        calls.append(1)
        return len(calls) == 2

    with pytest.raises(loop.StoppedError, match="stopped after step 2"):
        distill.from_teachers(run._replace(stopping=stopping), setup, teachers)
    resumed = distill.from_teachers(run, setup, teachers)

    uninterrupted = run._replace(workdir=run.workdir / "again")
    expected = distill.from_teachers(uninterrupted, setup, teachers)
    for actual, wanted in zip(resumed[0]["students"], expected[0]["students"], strict=True):
        assert actual == wanted


@slow
def test_the_memory_estimate_includes_projections_and_features(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = finetune.read_pretrained(run)
    first = teacher_training.start(run, pretrained, "finetune")
    variables = {"params": first.variables(first.trainable)["params"]}

    def need(*losses: str) -> Any:
        run.config.student.losses = losses
        compute_targets = student_setup.make_targets(
            run, teacher_training.teacher_apply(run, first)
        )
        grid = student_grid.make_grid(run, "students/finetune", compute_targets, variables)
        setup = student_setup.make(run, pretrained)
        monkeypatch.setattr(resident, "memory", lambda: 1 << 40)
        assert student_groups.size(run, setup, grid) == len(grid.points)
        return student_groups.need(run, setup, grid)

    plain, with_features = need("kd"), need("kd", "features")

    # The projection maps the student's 64 channels, and momentum doubles its arrays. Each of the 8
    # images has 2 x 2 patches.
    width = tiny_run.TEACHER.features
    assert with_features.each - plain.each == 2 * 4 * (64 * width + width)
    assert with_features.held - plain.held == 8 * 4 * width * 4


def test_a_teacher_without_a_cls_token_is_refused_before_work_starts(run: context.Run) -> None:
    path = run.workdir / "gap.npz"
    tiny_run.save_teacher(path, form="big_vision", pool="gap")
    run.config.teacher.init = str(path)
    run.config.student.losses = ("kd", "features_cls")
    pretrained = finetune.read_pretrained(run)

    with pytest.raises(SettingError, match=r"config\.student\.losses.*no \[CLS\] token"):
        student_setup.make(run, pretrained)

    run.config.student.losses = ("kd", "features")
    assert "features" in student_setup.make(run, pretrained).steps
