"""Teachers whose loss is no number any more: stopped, or tried again at half of the rate."""

import pathlib
from typing import Any

import numpy as np
import pytest

from remem_jax.storage import logs, results
from remem_jax.train import loop
from remem_jax.workflow import finetune, parts, remem

pytestmark = pytest.mark.slow
RATE = 1e38  # Logits overflow after a step of this, and of half of it, and half of that.


@pytest.fixture
def run(small_run: parts.Run) -> parts.Run:
    small_run.config.teacher.learning_rate = RATE
    small_run.config.teacher.steps = (4, 8)
    small_run.config.teacher.warmup_steps = 0
    small_run.config.log_every = 2
    return small_run


def test_without_retries_the_run_stops_and_says_what_to_lower(run: parts.Run) -> None:
    with pytest.raises(
        loop.NonFiniteLossError, match=r"teachers/finetune: .* at step \d.*teacher\.learning_rate"
    ):
        finetune.finetune(run, finetune.read_pretrained(run), "finetune")


def test_a_teacher_is_tried_as_often_as_is_asked_for(run: parts.Run) -> None:
    run.config.retries = 2

    with pytest.raises(loop.NonFiniteLossError):
        finetune.finetune(run, finetune.read_pretrained(run), "finetune")

    found = results.read(run.workdir / "teachers/finetune/retries.json")
    assert found == {"retries": 2, "learning_rate": RATE / 4}


def test_what_no_rate_can_mend_is_not_tried_again(
    run: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.retries = 2

    def fails(*rest: Any) -> float:
        raise loop.NonFiniteLossError("the loss is nan at step 1.", "checkpoint")

    monkeypatch.setattr(finetune, "_train", fails)

    with pytest.raises(loop.NonFiniteLossError):
        finetune.finetune(run, finetune.read_pretrained(run), "finetune")

    assert not (run.workdir / "teachers/finetune/retries.json").exists()


def test_what_follows_is_a_training_at_the_lower_rate(
    run: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate of 0.01 instead of half of this one, so that the second try is a good one.
    run.config.retries = 1
    run.config.teacher.learning_rate = 0.02
    pretrained = finetune.read_pretrained(run)
    train, tried = finetune._train, []

    def fails_first(run: Any, part: str, settings: Any, *rest: Any) -> float:
        tried.append(settings.learning_rate)
        if len(tried) == 1:
            folder = run.workdir / part / "step_4"
            folder.mkdir(parents=True)  # Of a milestone before the loss was no number.
            (folder / "of_the_first_try").touch()
            raise loop.NonFiniteLossError("the loss is nan at step 6.")
        return train(run, part, settings, *rest)

    monkeypatch.setattr(finetune, "_train", fails_first)
    teachers = finetune.finetune(run, pretrained, "finetune")

    assert tried == [0.02, 0.01]
    assert teachers.settings.learning_rate == 0.01  # What the report has.
    assert [record["step"] for record in teachers.records] == [4, 8]
    assert not (run.workdir / "teachers/finetune/step_4/of_the_first_try").exists()
    # A later start reads what is there, and its rate.
    monkeypatch.setattr(finetune, "_train", None)
    again = finetune.finetune(run, pretrained, "finetune")
    assert again.settings.learning_rate == 0.01


def test_the_log_has_speed_and_memory(run: parts.Run, tmp_path: pathlib.Path) -> None:
    run.config.teacher.learning_rate = 0.01
    finetune.finetune(run, finetune.read_pretrained(run), "finetune")

    rows = [row for row in logs.read(tmp_path) if "loss" in row]

    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        # Of a ViT with 5 tokens the products with its 1.8 million weights, forward and backward.
        operations = row["teraflops"] * 1e12 * row["step_seconds"]
        assert operations == pytest.approx(3 * 2 * 5 * 8 * 1.8e6, rel=0.5)
        assert np.isfinite(row["gradient_norm"])
        assert row["host_gib"] > 0.1
        assert "utilisation" not in row  # What a CPU can do is not known.


def test_the_report_names_a_rate_that_is_not_the_one_asked_for(run: parts.Run) -> None:
    run.config.teacher.learning_rate = 0.02
    rates = {"finetune": 0.02, "remem": 0.005, "scratch": None}
    rows = [
        {"method": method, "teacher_settings": rate and {"learning_rate": rate}}
        for method, rate in rates.items()
    ]

    (sentence,) = remem._retried(run, [remem.Outcome(row, [], [], {}, {}) for row in rows])

    assert sentence.startswith(
        "The teacher of remem was tuned at a learning rate of 0.005: at 0.02"
    )
