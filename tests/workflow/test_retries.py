"""Teachers whose loss is not finite are stopped or retried at half the learning rate."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import optim
from remem_jax.storage import logs, results
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.remem import deviations, distill, finetune, pipeline

pytestmark = pytest.mark.slow
RATE = 1e38  # Logits overflow after a step at this rate, and at a half and a quarter of it.


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    small_run.config.teacher.learning_rate = RATE
    small_run.config.teacher.steps = (4, 8)
    small_run.config.teacher.warmup_steps = 0
    small_run.config.log_every = 2
    return small_run


def diverging(monkeypatch: pytest.MonkeyPatch, *, step: int, above: float) -> None:
    """Makes schedules with a higher peak diverge at a step, with overflowing logits."""

    def schedule(*, peak: float, **rest: Any) -> optax.Schedule:
        late = RATE if peak > above and peak != 1 else peak  # Students have a peak of 1.
        return lambda count: jnp.where(count == step - 2, late, peak)

    monkeypatch.setattr(optim, "warmup_cosine", schedule)


def test_without_retries_the_run_stops_with_advice(run: context.Run) -> None:
    with pytest.raises(
        loop.NonFiniteLossError,
        match=r"Fine-tuning: teacher, .* at step \d.*teacher\.learning_rate",
    ):
        finetune.finetune(run, finetune.read_pretrained(run), "finetune")


def test_a_retry_trains_at_the_lower_rate(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.retries = 1
    run.config.teacher.learning_rate = 0.02
    diverging(monkeypatch, step=6, above=0.015)
    pretrained = finetune.read_pretrained(run)

    teachers = finetune.finetune(run, pretrained, "finetune")

    assert (teachers.stage, teachers.lost) == ("teachers/finetune/retry_1", None)
    assert teachers.settings.learning_rate == 0.01  # The report shows this rate.
    assert [record["step"] for record in teachers.records] == [4, 8]
    assert jax.tree.map(np.shape, teachers.load(8)) == jax.tree.map(np.shape, teachers.shapes)
    assert not (
        run.workdir / "teachers/finetune/step_4"
    ).exists()  # It belonged to the first attempt.
    # A later start reads the saved attempt and its rate.
    monkeypatch.setattr(finetune, "_train", None)
    resumed = finetune.finetune(run, pretrained, "finetune")
    assert resumed.settings.learning_rate == 0.01


def test_other_methods_have_results_and_the_report_names_the_diverged_one(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.methods = ("finetune", "scratch")
    run.config.teacher.learning_rate = 0.02
    run.config.student.steps = run.config.student.evaluations = 1
    run.config.student.warmup_steps = 0
    run.config.student.learning_rates = (0.1,)
    diverging(monkeypatch, step=6, above=0.015)
    group = {"part": "students/scratch", "seconds": 1.0, "students": [{"diverged": True}]}
    monkeypatch.setattr(distill, "without_teacher", lambda *_: [{"teacher_step": None, **group}])

    with pytest.raises(loop.NonFiniteLossError, match=r"Every student .*other methods.*\.html"):
        pipeline.run_remem(run)

    written: Any = results.read(run.workdir / "results.json")
    (row,) = written["methods"]
    lost = row["teacher_lost"]
    assert [teacher["step"] for teacher in written["teachers"]] == [4]
    assert (row["method"], row["selected"]["teacher_step"]) == ("finetune", 4)
    assert (lost["steps"], lost["step"]) == ([8], 6)
    assert any(
        "no teacher checkpoints at steps 8: training diverged" in s
        for s in written["config"]["differs"]
    )
    assert [failure["method"] for failure in written["failed"]] == ["scratch"]
    text = " ".join((run.workdir / "report.md").read_text().split())
    assert f"Fine-tuning has no teacher checkpoints at steps 8: {lost['reason'][:40]}" in text
    assert "From scratch has no result. Every student diverged" in text


def test_the_log_contains_speed_and_memory(run: context.Run, tmp_path: pathlib.Path) -> None:
    run.config.teacher.learning_rate = 0.01
    finetune.finetune(run, finetune.read_pretrained(run), "finetune")

    rows = [row for row in logs.read(tmp_path) if "loss" in row]

    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        # Products of 5 tokens with the ViT's 100,000 weights, forward and backward.
        operations = row["teraflops"] * 1e12 * row["step_seconds"]
        assert operations == pytest.approx(3 * 2 * 5 * 8 * 1.0e5, rel=0.5)
        assert np.isfinite(row["gradient_norm"])
        assert row["host_gib"] > 0.1
        assert "utilisation" not in row  # The peak speed of a CPU is unknown.


def test_the_report_names_a_reduced_learning_rate(run: context.Run) -> None:
    run.config.teacher.learning_rate = 0.02
    rates = {"finetune": 0.02, "remem": 0.005, "scratch": None}
    rows = [
        {"method": method, "teacher_settings": rate and {"learning_rate": rate}}
        for method, rate in rates.items()
    ]

    (sentence,) = deviations._retried(run, rows)

    assert sentence.startswith(
        "The teacher of remem was fine-tuned at a learning rate of 0.005: at 0.02"
    )
