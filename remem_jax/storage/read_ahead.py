"""Reads stored outputs in a thread, before the step that needs them.

Each process of a run has its own file, and a step counts as stored only if all of them have its
rows: otherwise some would wait for others that run the teacher. To agree on this, processes need a
collective operation, for which the host waits for the devices. So they agree on a block of steps at
a time, whose rows each process has read and verified before.
"""

from concurrent import futures

import numpy as np

from remem_jax import mesh
from remem_jax.storage import outputs

_STEPS = 256  # Largest number of steps in a block.
_BYTES = 2**27  # Largest size of a block in one process; two blocks are in memory.


class ReadAhead:
    """Reads and writes stored outputs in threads; a context manager.

    All processes read the same steps, in order, each once.
    """

    def __init__(self, stored: outputs.StoredOutputs) -> None:
        self._stored = stored
        self._block = max(1, min(_STEPS, _BYTES // stored.row_bytes))
        # One thread reads blocks, and one writes.
        self._threads = futures.ThreadPoolExecutor(2, thread_name_prefix="outputs")
        self._rows: dict[int, np.ndarray] = {}  # The rest of the block.
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
        """Returns the array of a step; None unless all processes have theirs undamaged.

        Waits for the other processes once per block, so all of them must call it.
        """
        if self._next is None or step == self._end:
            self._agree(step)
        return self._rows.pop(step, None)

    def write(self, step: int, array: np.ndarray) -> None:
        """Stores the array of a step in the background; see `StoredOutputs.write`.

        Raises:
            SettingError: If the array of the previous step could not be stored.
        """
        if self._written is not None:
            self._written.result()
        self._written = self._threads.submit(self._stored.write, step, array)

    def _agree(self, step: int) -> None:
        """Takes the block that starts at a step, and starts to read the next one."""
        rows = (self._next or self._read(step)).result()
        whole = mesh.all_processes(np.array([row is not None for row in rows], bool))
        self._rows = {step + i: row for i, row in enumerate(rows) if row is not None and whole[i]}
        self._end = step + len(rows)
        self._next = self._read(self._end)

    def _read(self, first: int) -> "futures.Future[list[np.ndarray | None]]":
        steps = range(first, min(first + self._block, self._stored.steps))
        return self._threads.submit(lambda: [self._stored.read(step) for step in steps])
