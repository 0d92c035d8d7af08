"""Attempts to train a teacher: which one is used, and what the others leave."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.remem import retries
from tests.workflow.conftest import Lab

PART, STEPS = "teachers/remem", (4, 8, 12)


class Killed(BaseException):
    """What ends a process in the middle of its work."""


class Trainer(NamedTuple):
    """Trains attempts that come so far: each makes the checkpoints of these steps.

    Attributes:
        workdir: Of the run.
        come_to: For each attempt, by its learning rate, the last step that is finite.
        tried: Learning rates that have been tried.
        kills: Whether what is asked for is killed: of a learning rate and a step.
    """

    workdir: pathlib.Path
    come_to: dict[float, int]
    tried: list[float]
    kills: Callable[[float, int], bool] = lambda rate, step: False

    def once(self, attempt: retries.Attempt) -> float:
        self.tried.append(attempt.learning_rate)
        (self.workdir / attempt.stage / "checkpoints").mkdir(parents=True, exist_ok=True)
        last = self.come_to[attempt.learning_rate]
        for at in STEPS:
            if self.kills(attempt.learning_rate, at):
                raise Killed
            if at > last:
                raise loop.NonFiniteLossError("it is nan", "gradient", step=last + 1, seconds=9.0)
            record = {"step": at, "validation": {"top1": attempt.learning_rate}}
            results.write(self.workdir / attempt.stage / f"step_{at}" / "record.json", record)
        return 2.5


@pytest.fixture
def make_run(lab: Lab, tmp_path: pathlib.Path) -> Callable[[int], context.Run]:
    """Makes a run with so many retries, all in one folder."""

    def make(retries: int) -> context.Run:
        run = lab.run(tmp_path)
        with run.config.unlocked():
            run.config.retries = retries
        return run

    return make


def train(run: Any, come_to: Sequence[int], **changes: Any) -> tuple[dict[str, Any], list[float]]:
    """Attempts at rates 1, 1/2, ..., of which each is finite up to a step."""
    trainer = Trainer(run.workdir, {0.5**i: last for i, last in enumerate(come_to)}, [])
    trainer = trainer._replace(**changes)
    found = retries.train(run, PART, learning_rate=1.0, steps=STEPS, once=trainer.once)
    retries.clean(run, found, PART)
    return found, trainer.tried


def steps_of(found: dict[str, Any]) -> list[int]:
    return [record["step"] for record in found["teachers"]]


def left(run: Any) -> list[str]:
    """Folders of checkpoints that are there."""
    return sorted(str(path.relative_to(run.workdir / PART)) for path in run.workdir.rglob("step_*"))


def test_an_attempt_that_comes_to_its_end_is_the_only_one(make_run: Any) -> None:
    found, tried = train(make_run(2), [12])

    assert (tried, steps_of(found), found["lost"], found["diverged"]) == ([1], [4, 8, 12], None, [])
    assert (found["part"], found["seconds"]) == (PART, 2.5)


def test_one_that_diverges_late_keeps_what_it_had(make_run: Any) -> None:
    run = make_run(0)
    found, _ = train(run, [9])

    assert steps_of(found) == [4, 8]
    assert found["lost"] == {"steps": [12], "step": 10, "reason": "it is nan"}
    assert left(run) == ["step_4", "step_8"]


@pytest.mark.parametrize(
    ("come_to", "part", "rate", "steps"),
    [
        ([9, 12], "teachers/remem/retry_1", 0.5, [4, 8, 12]),  # The retry does better.
        ([9, 5, 6], "teachers/remem", 1.0, [4, 8]),  # No retry does.
        ([5, 9, 10], "teachers/remem/retry_1", 0.5, [4, 8]),  # Of equals the higher rate.
        ([0, 0, 4], "teachers/remem/retry_2", 0.25, [4]),
    ],
)
def test_the_attempt_with_the_most_checkpoints_counts(
    make_run: Any, come_to: list[int], part: str, rate: float, steps: list[int]
) -> None:
    run = make_run(2)
    found, tried = train(run, come_to)

    assert tried == [0.5**i for i in range(len(come_to))]
    assert (found["part"], found["learning_rate"], steps_of(found)) == (part, rate, steps)
    # Of the others nothing is left but that they diverged.
    below = part.removeprefix(PART).removeprefix("/")
    assert left(run) == sorted(f"{below}/step_{at}".lstrip("/") for at in steps)
    assert not list(run.workdir.rglob("checkpoints"))


def test_without_any_checkpoint_it_is_an_error(make_run: Any) -> None:
    with pytest.raises(loop.NonFiniteLossError, match="it is nan") as caught:
        train(make_run(1), [0, 3])

    assert caught.value.of_rate


def test_more_retries_go_on_after_those_that_were_in_vain(make_run: Any) -> None:
    with pytest.raises(loop.NonFiniteLossError):
        train(make_run(1), [0, 0])

    found, tried = train(make_run(2), [0, 0, 12])

    assert (tried, found["part"]) == ([0.25], "teachers/remem/retry_2")


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_killed_comes_to_the_same(
    make_run: Any, tmp_path: pathlib.Path, rate: float, step: int
) -> None:
    whole, _ = train(make_run(2)._replace(workdir=tmp_path / "whole"), [9, 5, 8])
    run = make_run(2)._replace(workdir=tmp_path / "killed")

    with pytest.raises(Killed):
        train(run, [9, 5, 8], kills=lambda own, at: (own, at) == (rate, min(step, 8)))

    assert train(run, [9, 5, 8])[0] == whole


def test_what_no_rate_can_mend_is_not_tried_again(make_run: Any) -> None:
    run = make_run(2)

    def broken(attempt: retries.Attempt) -> float:
        raise loop.NonFiniteLossError("it is nan", "checkpoint")

    with pytest.raises(loop.NonFiniteLossError):
        retries.train(run, PART, learning_rate=1.0, steps=STEPS, once=broken)

    assert not list(run.workdir.rglob("diverged.json"))
