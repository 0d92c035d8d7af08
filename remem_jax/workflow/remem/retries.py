"""Retries of a teacher's fine-tuning after divergence, each at half of the previous learning rate.

An attempt that diverges keeps its earlier checkpoints. Its outcome is written to its folder, so
that a resumed run decides in the same way.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging

from remem_jax import mesh
from remem_jax.storage import checkpoints, results
from remem_jax.train import loop
from remem_jax.workflow import context, stages, training

_DIVERGED = "diverged.json"


class Attempt(NamedTuple):
    """One attempt to train a teacher.

    Attributes:
        stage: Name of its stage: the method's, or `retry_N` in that.
        learning_rate: Peak learning rate.
    """

    stage: str
    learning_rate: float

    def record(self) -> dict[str, Any]:
        """Returns the fields under their names in `result.json`."""
        return {"part": self.stage, "learning_rate": self.learning_rate}


class Outcome(NamedTuple):
    """A finished or failed attempt.

    Attributes:
        attempt: The attempt.
        records: Records of its checkpoints, ordered by step.
        seconds: Seconds of training.
        diverged: None if it finished; else the last "step", the "reason" and the "seconds" until
            then.
    """

    attempt: Attempt
    records: list[dict[str, Any]]
    seconds: float
    diverged: dict[str, Any] | None


def train(
    run: context.Run,
    stage: str,
    *,
    learning_rate: float,
    steps: Sequence[int],
    once: Callable[[Attempt], float],
) -> dict[str, Any]:
    """Trains a teacher, with at most `config.retries` retries after divergence.

    Uses the first attempt that finishes. If none does, uses the one with the most checkpoints, and
    of these the one with the highest learning rate.

    Args:
        run: The run.
        stage: Name of the teacher's stage.
        learning_rate: Learning rate of the first attempt.
        steps: Steps of the checkpoints.
        once: Trains one attempt, resuming from its newest checkpoint; returns the seconds.

    Returns:
        "teachers", the records of the checkpoints; "part", "learning_rate" and "seconds" of the
        attempt used; "lost", None if it has all checkpoints, else the missing "steps", the "step"
        of divergence and the "reason"; and "diverged", the records of attempts that diverged.

    Raises:
        NonFiniteLossError: If no attempt has a checkpoint, or if a lower learning rate cannot help.
    """
    attempts: list[Outcome] = []
    for number in range(run.config.retries + 1):
        name = f"{stage}/retry_{number}" if number else stage
        attempts.append(_attempt(run, Attempt(name, learning_rate / 2**number), once))
        if attempts[-1].diverged is None:
            break
    used = last = attempts[-1]
    if last.diverged:
        used = max(attempts, key=lambda attempt: len(attempt.records))
        if not used.records:
            raise loop.NonFiniteLossError(last.diverged["reason"], step=last.diverged["step"])
    return _result(stage, used, attempts, steps)


def _attempt(run: context.Run, attempt: Attempt, once: Callable[[Attempt], float]) -> Outcome:
    """Trains one attempt until it finishes or diverges, or reads its recorded outcome."""
    folder = run.workdir / attempt.stage
    diverged, seconds = results.read_for_all(folder / _DIVERGED), 0.0
    if diverged is None:
        try:
            seconds = once(attempt)
        except loop.NonFiniteLossError as error:
            if not error.of_rate:
                raise
            logging.warning("%s", error)
            diverged = {"step": error.step, "reason": str(error), "seconds": error.seconds}
            results.write_for_all(folder / _DIVERGED, diverged)
            if mesh.is_writer():
                checkpoints.remove(folder / training.CHECKPOINTS)
    saved = [
        results.read_for_all(folder / f"step_{at}" / "record.json") for at in _saved_steps(folder)
    ]
    records = [record for record in saved if record is not None]
    return Outcome(attempt, records, diverged["seconds"] if diverged else seconds, diverged)


def _saved_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints of an attempt; fewer or others if it was shortened."""
    paths = folder.glob("step_*/record.json") if mesh.is_writer() else ()
    listed = sorted(int(path.parent.name.removeprefix("step_")) for path in paths)
    return json.loads(mesh.broadcast_text(json.dumps(listed)))


def _result(
    stage: str, used: Outcome, attempts: Sequence[Outcome], steps: Sequence[int]
) -> dict[str, Any]:
    lost = None
    if used.diverged:
        trained_steps = {record["step"] for record in used.records}
        lost = {
            "steps": [at for at in steps if at not in trained_steps],
            "step": used.diverged["step"],
            "reason": used.diverged["reason"],
        }
        logging.warning(
            "%s, no checkpoints at steps %s; students use those at steps %s.",
            stages.title(stage),
            ", ".join(map(str, lost["steps"])),
            ", ".join(map(str, sorted(trained_steps))),
        )
    return {
        "teachers": used.records,
        **used.attempt.record(),
        "seconds": used.seconds,
        "lost": lost,
        "diverged": [
            {**ended.attempt.record(), **ended.diverged, "checkpoints": len(ended.records)}
            for ended in attempts
            if ended.diverged
        ],
    }


def clean(run: context.Run, result: dict[str, Any], stage: str) -> None:
    """Removes files that the run no longer needs once the attempt to use is known.

    Args:
        run: The run.
        result: Result of `train`, already written.
        stage: Name of the teacher's stage.
    """
    if not mesh.is_writer():
        return
    for name in {result["part"], *(failed["part"] for failed in result["diverged"])}:
        checkpoints.remove(run.workdir / name / training.CHECKPOINTS)
    for failed in result["diverged"]:
        if failed["part"] == result["part"]:
            continue
        folder = run.workdir / failed["part"]
        for teacher in (*folder.glob("step_*"), *([] if failed["part"] == stage else [folder])):
            checkpoints.remove(teacher)
