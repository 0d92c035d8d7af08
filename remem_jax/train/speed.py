"""Training speed of a stage: operations per second, and the fraction of the devices' peak."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from remem_jax.records import Batch, Metrics
from remem_jax.train import flops, profiling

S = TypeVar("S")


class Speed:
    """Measures the speed of the devices while a stage is trained."""

    def __init__(
        self, operations: Callable[[Any, Batch], float], on: jax.sharding.Mesh, dtype: str
    ) -> None:
        """Starts without a count.

        Args:
            operations: Counts the floating-point operations of a step from its arguments.
            on: The devices.
            dtype: Compute type of the models.
        """
        self._count, self._operations = operations, 0.0
        peak = flops.peak(on.devices.flat[0].device_kind, dtype)
        self._peak = peak and peak * on.size

    def counting(self, step: Callable[[S, Batch], Any]) -> Callable[[S, Batch], Any]:
        """Wraps a step so that its operations are counted at its first call."""

        def counted(state: S, batch: Batch) -> Any:
            if not self._operations:
                self._operations = self._count(state, batch)
            return step(state, batch)

        return counted

    def count_again(self) -> None:
        """Counts the next step again, because the number of models has changed."""
        self._operations = 0.0

    def of(self, metrics: Metrics) -> Metrics:
        """Returns the metrics of the devices to log with those of a step.

        They are "teraflops", TFLOP/s of all devices together; "utilisation", the fraction of the
        devices' peak, if it is known; and `profiling.memory_peaks`.
        """
        rate = self._operations / metrics["step_seconds"]
        values = {"teraflops": rate / 1e12, **profiling.memory_peaks()}
        return values | ({"utilisation": rate / self._peak} if self._peak else {})
