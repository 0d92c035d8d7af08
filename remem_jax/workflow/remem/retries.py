"""Attempts to fine-tune a teacher: each but the first at half of the learning rate before.

An attempt that diverges keeps the checkpoints that it has made before. What becomes of it is
written down in its folder, so that a later start of the run decides as this one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging

from remem_jax import mesh
from remem_jax.storage import checkpoints, results
from remem_jax.train import loop
from remem_jax.workflow import context, training

_DIVERGED = "diverged.json"


class Attempt(NamedTuple):
    """One training of a teacher.

    Attributes:
        stage: Name of its part of the run: the method's, or `retry_N` below that.
        learning_rate: Of its schedule, at the peak.
    """

    stage: str
    learning_rate: float

    def record(self) -> dict[str, Any]:
        """Returns the fields under their names in `result.json`."""
        return {"part": self.stage, "learning_rate": self.learning_rate}


class Ended(NamedTuple):
    """An attempt that is over.

    Attributes:
        attempt: Which one.
        records: Of its checkpoints, in the order of their steps.
        seconds: What it took.
        diverged: None where it came to its end; else after which "step" it did not go on, the
            "reason", and the "seconds" until then.
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
    """Trains a teacher, and where it diverges again, `config.retries` times at most.

    The first attempt that comes to its end counts. If none does, that with the most checkpoints
    does; of equals, the one with the highest learning rate.

    Args:
        run: The run.
        stage: Name of the teacher's part of the run.
        learning_rate: Of the first attempt.
        steps: After which steps there is a checkpoint.
        once: Trains one attempt, from its newest checkpoint if there is one; returns the seconds.

    Returns:
        "teachers", the records of the checkpoints; "part", "learning_rate" and "seconds" of the
        attempt that counts; "lost", None if it has all checkpoints, else the "steps" of the
        others, after which "step" it diverged, and the "reason"; and "diverged", what is known of
        each attempt that did.

    Raises:
        NonFiniteLossError: If no attempt has a checkpoint; or at once where no learning rate helps.
    """
    every: list[Ended] = []
    for number in range(run.config.retries + 1):
        own = f"{stage}/retry_{number}" if number else stage
        every.append(_attempt(run, Attempt(own, learning_rate / 2**number), steps, once))
        if every[-1].diverged is None:
            break
    counts = last = every[-1]
    if last.diverged:
        counts = max(every, key=lambda one: len(one.records))
        if not counts.records:
            raise loop.NonFiniteLossError(last.diverged["reason"], step=last.diverged["step"])
    return _result(stage, counts, every, steps)


def _attempt(
    run: context.Run, attempt: Attempt, steps: Sequence[int], once: Callable[[Attempt], float]
) -> Ended:
    """Trains one attempt to its end, or until it diverges; reads how it ended where it has."""
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
    found = [results.read_for_all(folder / f"step_{at}" / "record.json") for at in steps]
    records = [record for record in found if record is not None]
    return Ended(attempt, records, diverged["seconds"] if diverged else seconds, diverged)


def _result(
    stage: str, counts: Ended, every: Sequence[Ended], steps: Sequence[int]
) -> dict[str, Any]:
    lost = None
    if counts.diverged:
        there = {record["step"] for record in counts.records}
        lost = {
            "steps": [at for at in steps if at not in there],
            "step": counts.diverged["step"],
            "reason": counts.diverged["reason"],
        }
        logging.warning(
            "%s: the teachers of steps %s are lost; students learn from those of steps %s.",
            stage,
            ", ".join(map(str, lost["steps"])),
            ", ".join(map(str, sorted(there))),
        )
    return {
        "teachers": counts.records,
        **counts.attempt.record(),
        "seconds": counts.seconds,
        "lost": lost,
        "diverged": [
            {**one.attempt.record(), **one.diverged, "checkpoints": len(one.records)}
            for one in every
            if one.diverged
        ],
    }


def clean(run: context.Run, found: dict[str, Any], stage: str) -> None:
    """Removes what no part of the run needs once it is known which attempt counts.

    Args:
        run: The run.
        found: From `train`, and written down.
        stage: Name of the teacher's part of the run.
    """
    if not mesh.is_writer():
        return
    for own in {found["part"], *(one["part"] for one in found["diverged"])}:
        checkpoints.remove(run.workdir / own / training.CHECKPOINTS)
    for one in found["diverged"]:
        if one["part"] == found["part"]:
            continue
        folder = run.workdir / one["part"]
        for teacher in (*folder.glob("step_*"), *([] if one["part"] == stage else [folder])):
            checkpoints.remove(teacher)
