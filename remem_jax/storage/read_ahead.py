"""Stored outputs, read before the step that needs them, by a thread.

Several processes of one run have files of their own, and a step counts as stored only where each
of them has its rows: the others would wait for one that asks the teacher. To agree on that is a
collective operation, for which the host waits until the devices have done their work. So they
agree on a block of steps at a time, of which each process has read, and checked, its rows before.
"""

from concurrent import futures

import numpy as np

from remem_jax import mesh
from remem_jax.storage import outputs

_STEPS = 256  # Of a block, at most.
_BYTES = 2**27  # Of a block's rows in one process, at most; two blocks are in memory.


class ReadAhead:
    """Reads and writes stored outputs in threads; use it in a `with`.

    The steps are asked for in their order, each once, and by all processes alike.
    """

    def __init__(self, stored: outputs.StoredOutputs) -> None:
        self._stored = stored
        self._block = max(1, min(_STEPS, _BYTES // stored.row_bytes))
        # One reads blocks, and one writes meanwhile.
        self._threads = futures.ThreadPoolExecutor(2, thread_name_prefix="outputs")
        self._rows: dict[int, np.ndarray] = {}  # What is left of the block.
        self._end = -1  # The step after the block.
        self._next: futures.Future[list[np.ndarray | None]] | None = None
        self._written: futures.Future[None] | None = None

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        failed = self._written and self._written.exception()  # Waits for it.
        self._threads.shutdown(cancel_futures=True)
        if failed and kind is None:
            raise failed

    def read(self, step: int) -> np.ndarray | None:
        """The array of a step; None unless all processes have theirs, whole.

        Waits for the other processes once in a block, so all of them call it.
        """
        if self._next is None or step == self._end:
            self._agree(step)
        return self._rows.pop(step, None)

    def write(self, step: int, array: np.ndarray) -> None:
        """Has the array of a step stored, after that of the step before; see `Outputs.write`.

        Raises:
            SettingError: If the array of the step before could not be stored.
        """
        if self._written is not None:
            self._written.result()
        self._written = self._threads.submit(self._stored.write, step, array)

    def _agree(self, step: int) -> None:
        """Takes the block that begins with a step, and has the next one read."""
        rows = (self._next or self._read(step)).result()
        whole = mesh.all_processes(np.array([row is not None for row in rows], bool))
        self._rows = {step + i: row for i, row in enumerate(rows) if row is not None and whole[i]}
        self._end = step + len(rows)
        self._next = self._read(self._end)

    def _read(self, first: int) -> "futures.Future[list[np.ndarray | None]]":
        steps = range(first, min(first + self._block, self._stored.steps))
        return self._threads.submit(lambda: [self._stored.read(step) for step in steps])
