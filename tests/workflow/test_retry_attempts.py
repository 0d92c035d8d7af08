"""Attempts to train a teacher: which one is used, and which files the others leave."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.remem import retries
from tests.workflow.conftest import Shared

STAGE, STEPS = "teachers/remem", (4, 8, 12)


class Killed(BaseException):
    """Simulates the kill of a process."""


class Trainer(NamedTuple):
    """Simulates attempts that reach a given step, with a checkpoint at each of `STEPS`.

    Attributes:
        workdir: The folder of the run.
        last_finite: The last finite step of each attempt, by learning rate.
        tried: The learning rates of the attempts so far.
        kills: Whether the process is killed at this learning rate and step.
    """

    workdir: pathlib.Path
    last_finite: dict[float, int]
    tried: list[float]
    kills: Callable[[float, int], bool] = lambda rate, step: False

    def once(self, attempt: retries.Attempt) -> float:
        self.tried.append(attempt.learning_rate)
        (self.workdir / attempt.stage / "checkpoints").mkdir(parents=True, exist_ok=True)
        last = self.last_finite[attempt.learning_rate]
        for step in STEPS:
            if self.kills(attempt.learning_rate, step):
                raise Killed
            if step > last:
                raise loop.NonFiniteLossError("it is nan", "gradient", step=last + 1, seconds=9.0)
            record = {"step": step, "validation": {"top1": attempt.learning_rate}}
            results.write(self.workdir / attempt.stage / f"step_{step}" / "record.json", record)
        return 2.5


@pytest.fixture
def make_run(shared: Shared, tmp_path: pathlib.Path) -> Callable[[int], context.Run]:
    """Makes runs with this number of retries, all in one folder."""

    def make(retries: int) -> context.Run:
        run = shared.run(tmp_path)
        with run.config.unlocked():
            run.config.retries = retries
        return run

    return make


def train(
    run: Any, last_finite: Sequence[int], **changes: Any
) -> tuple[dict[str, Any], list[float]]:
    """Trains at rates 1, 1/2, ..., where each attempt is finite up to a step."""
    trainer = Trainer(run.workdir, {0.5**i: last for i, last in enumerate(last_finite)}, [])
    trainer = trainer._replace(**changes)
    result = retries.train(run, STAGE, learning_rate=1.0, steps=STEPS, once=trainer.once)
    retries.clean(run, result, STAGE)
    return result, trainer.tried


def steps_of(result: dict[str, Any]) -> list[int]:
    return [record["step"] for record in result["teachers"]]


def left(run: Any) -> list[str]:
    """Returns the folders of checkpoints that exist."""
    return sorted(
        str(path.relative_to(run.workdir / STAGE)) for path in run.workdir.rglob("step_*")
    )


def test_a_finished_attempt_is_not_followed_by_others(make_run: Any) -> None:
    result, tried = train(make_run(2), [12])

    assert (tried, steps_of(result), result["lost"], result["diverged"]) == (
        [1],
        [4, 8, 12],
        None,
        [],
    )
    assert (result["part"], result["seconds"]) == (STAGE, 2.5)


def test_a_late_divergence_keeps_earlier_checkpoints(make_run: Any) -> None:
    run = make_run(0)
    result, _ = train(run, [9])

    assert steps_of(result) == [4, 8]
    assert result["lost"] == {"steps": [12], "step": 10, "reason": "it is nan"}
    assert left(run) == ["step_4", "step_8"]


@pytest.mark.parametrize(
    ("last_finite", "stage", "rate", "steps"),
    [
        ([9, 12], "teachers/remem/retry_1", 0.5, [4, 8, 12]),  # The retry is better.
        ([9, 5, 6], "teachers/remem", 1.0, [4, 8]),  # No retry is better.
        ([5, 9, 10], "teachers/remem/retry_1", 0.5, [4, 8]),  # Ties go to the higher rate.
        ([0, 0, 4], "teachers/remem/retry_2", 0.25, [4]),
    ],
)
def test_the_attempt_with_the_most_checkpoints_is_used(
    make_run: Any, last_finite: list[int], stage: str, rate: float, steps: list[int]
) -> None:
    run = make_run(2)
    result, tried = train(run, last_finite)

    assert tried == [0.5**i for i in range(len(last_finite))]
    assert (result["part"], result["learning_rate"], steps_of(result)) == (stage, rate, steps)
    # The others leave only the record of their divergence.
    below = stage.removeprefix(STAGE).removeprefix("/")
    assert left(run) == sorted(f"{below}/step_{step}".lstrip("/") for step in steps)
    assert not list(run.workdir.rglob("checkpoints"))


def test_attempts_without_any_checkpoint_are_an_error(make_run: Any) -> None:
    with pytest.raises(loop.NonFiniteLossError, match="it is nan") as error:
        train(make_run(1), [0, 3])

    assert error.value.of_rate


def test_additional_retries_continue_after_failed_ones(make_run: Any) -> None:
    with pytest.raises(loop.NonFiniteLossError):
        train(make_run(1), [0, 0])

    result, tried = train(make_run(2), [0, 0, 12])

    assert (tried, result["part"]) == ([0.25], "teachers/remem/retry_2")


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_run_has_the_same_result(
    make_run: Any, tmp_path: pathlib.Path, rate: float, step: int
) -> None:
    expected, _ = train(make_run(2)._replace(workdir=tmp_path / "uninterrupted"), [9, 5, 8])
    run = make_run(2)._replace(workdir=tmp_path / "killed")

    with pytest.raises(Killed):
        train(run, [9, 5, 8], kills=lambda *now: now == (rate, min(step, 8)))

    assert train(run, [9, 5, 8])[0] == expected


def test_a_fault_that_no_learning_rate_fixes_is_not_retried(make_run: Any) -> None:
    run = make_run(2)

    def broken(attempt: retries.Attempt) -> float:
        raise loop.NonFiniteLossError("it is nan", "checkpoint")

    with pytest.raises(loop.NonFiniteLossError):
        retries.train(run, STAGE, learning_rate=1.0, steps=STEPS, once=broken)

    assert not list(run.workdir.rglob("diverged.json"))
