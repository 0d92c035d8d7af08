"""Traces of a few steps, for TensorBoard (its profile plugin) and Perfetto; peaks of memory."""

import pathlib
import resource

import jax

_SKIPPED = 3  # Steps at the start: they compile, and fill what runs ahead.
_TRACED = 5


class Trace:
    """Traces some steps of a training; call it after every step."""

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Waits for the first steps to pass, unless the folder holds a trace already.

        Args:
            folder: Where `plugins/profile` and in it `perfetto_trace.json.gz` are written.
            first_step: Steps done before.
        """
        self._folder, self._begin = folder, first_step + _SKIPPED
        self._traces, self._done = False, folder.exists()

    def __call__(self, done: int) -> None:
        """Begins or ends the trace, if it is time."""
        if not self._done and not self._traces and done >= self._begin:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._traces = True
        elif self._traces and done >= self._begin + _TRACED:
            self.close()

    def close(self) -> None:
        """Ends a trace that has begun; a training may end before it."""
        if self._traces:
            jax.profiler.stop_trace()
            self._traces, self._done = False, True


def memory_peaks() -> dict[str, float]:
    """Peaks of memory since the process began, in GiB.

    Returns:
        "host_gib" of this process; "device_gib" of the fullest of its devices, where they say.
    """
    found = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return found | ({"device_gib": max(peaks) / 2**30} if peaks else {})
