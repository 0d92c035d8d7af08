"""A learning-rate schedule that ends in time, for training with a deadline.

It is computed on the host, so that it may change during training: the compiled step takes the
learning rate of each step as an argument.

Source: Li et al. 2020, https://arxiv.org/abs/1905.04753: a schedule that decays to 0 over the steps
that the budget allows is better than a part of a longer one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

# Fraction of the remaining steps by which a stage may be late or early before its schedule changes:
# measurements of a few steps vary by about as much.
_TOLERANCE = 0.02


class Pace:
    """A linear warm-up and a cosine to 0, with as many steps as fit before a deadline.

    Attributes:
        steps: Number of steps, as far as is known now.
    """

    def __init__(
        self,
        steps: int,
        warmup_steps: int,
        seconds_left: Callable[[], float],
        saved: Mapping[str, Any] | None = None,
        *,
        most_steps: int = 0,
    ) -> None:
        """Starts at step 0, or goes on from a checkpoint.

        Args:
            steps: Planned number of steps, at least 1.
            warmup_steps: Steps of the warm-up, if none are left out.
            seconds_left: Returns the seconds until the deadline.
            saved: Return value of `record`.
            most_steps: Steps that are never exceeded; 0 for the planned number.
        """
        self._planned, self._warmup, self._left = steps, warmup_steps, seconds_left
        self._most = max(most_steps, steps)
        self.steps, self._at, self._position = steps, 0, 0.0
        if saved:
            self.steps, self._at, self._position = (
                saved[name] for name in ("steps", "at", "position")
            )

    def record(self) -> dict[str, Any]:
        """Returns the state as JSON values, for a checkpoint."""
        return {"steps": self.steps, "at": self._at, "position": self._position}

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, as a fraction of the peak.

        Args:
            step: Number of steps done before, from 0.
        """
        position = self._position_of(step)
        if position < self._warmup:
            return position / self._warmup
        share = (position - self._warmup) / max(self._planned - self._warmup, 1e-9)
        return (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def progress(self, step: int) -> float:
        """Returns the fraction of the schedule that is done after a step, above 0, at most 1.

        It never falls, and is 1 after the last step, also if the number of steps changes.

        Args:
            step: Number of steps done before, from 0.
        """
        return min(self._position_of(step + 1) / self._planned, 1.0)

    def measured(self, done: int, step_seconds: float, *, other_seconds: float = 0.0) -> int:
        """Adapts the schedule to the speed; returns the number of steps.

        It is shortened if the remaining steps do not fit, and lengthened if more steps do: another
        program may slow a machine down for seconds.

        Args:
            done: Number of steps done.
            step_seconds: Seconds of a step, measured over the last ones.
            other_seconds: Seconds before the deadline that other work needs, such as evaluations.
        """
        left = self._left() - other_seconds
        fitting = done + max(math.floor(left / max(step_seconds, 1e-9)), 1)
        fitting, remaining = min(fitting, self._most), self.steps - done
        if remaining > 1 and abs(fitting - self.steps) > _TOLERANCE * remaining:
            self._position, self._at, self.steps = self._position_of(done), done, fitting
        return self.steps

    def _position_of(self, step: int) -> float:
        """Returns the step of the planned schedule whose learning rate a step has."""
        remaining = self._planned - self._position
        return self._position + (step - self._at) * remaining / (self.steps - self._at)
