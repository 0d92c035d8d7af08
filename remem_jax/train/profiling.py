"""Traces a few steps for TensorBoard's profile plugin and Perfetto; reads the peaks of memory."""

import pathlib
import resource

import jax

_SKIPPED = 3  # Number of first steps, which compile and fill the device's queue.
_TRACED = 5  # Number of traced steps.


class Trace:
    """Traces a few training steps; call it after every step."""

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Prepares a trace after the first steps, unless the folder already has one.

        Args:
            folder: Folder for `plugins/profile`, which contains `perfetto_trace.json.gz`.
            first_step: Number of steps done before.
        """
        self._folder, self._begin = folder, first_step + _SKIPPED
        self._traces, self._done = False, folder.exists()

    def __call__(self, done: int) -> None:
        """Starts or ends the trace when it is due."""
        if not self._done and not self._traces and done >= self._begin:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._traces = True
        elif self._traces and done >= self._begin + _TRACED:
            self.close()

    def close(self) -> None:
        """Ends a trace that has started, if training ends before it."""
        if self._traces:
            jax.profiler.stop_trace()
            self._traces, self._done = False, True


def memory_peaks() -> dict[str, float]:
    """Returns the peaks of memory since the process began, in GiB.

    Returns:
        "host_gib" of this process; "device_gib" of its fullest device, if devices report it.
    """
    host = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return host | ({"device_gib": max(peaks) / 2**30} if peaks else {})
