"""Reading stored outputs ahead of the steps, if all processes have them."""

import pathlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import outputs, read_ahead

STEPS, SHAPE = 10, (3, 5)
BLOCK = 4  # In steps.
STORED = (0, 1, 4, 5, 6, 9)


def _open(folder: pathlib.Path) -> outputs.StoredOutputs:
    return outputs.StoredOutputs(
        folder=folder, facts={}, steps=STEPS, shape=SHAPE, dtype=np.float32
    )


def _array(step: int) -> np.ndarray:
    return np.full(SHAPE, step, np.float32)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_STEPS", BLOCK)


@pytest.fixture
def stored(tmp_path: pathlib.Path) -> Iterator[outputs.StoredOutputs]:
    """Stored outputs of some of the steps."""
    with _open(tmp_path) as opened:
        for step in STORED:
            opened.write(step, _array(step))
        yield opened


def _read(stored: outputs.StoredOutputs, first: int = 0) -> list[int]:
    """Returns the steps that can be read from `first` on, after checking their values."""
    steps = []
    with read_ahead.ReadAhead(stored) as ahead:
        for step in range(first, STEPS):
            array = ahead.read(step)
            if array is not None:
                np.testing.assert_array_equal(array, _array(step), strict=True)
                steps.append(step)
    return steps


@pytest.mark.parametrize("first", [0, 3, 9])
def test_stored_steps_are_read_from_any_step_on(stored: outputs.StoredOutputs, first: int) -> None:
    assert _read(stored, first) == [step for step in STORED if step >= first]


def test_only_steps_that_all_processes_have_are_read(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process has only steps 0, 4 and 8: the first of each block of four.
    monkeypatch.setattr(mesh, "all_processes", lambda mask: mask & (np.arange(len(mask)) % 4 == 0))

    assert _read(stored) == [0, 4]


def test_processes_synchronise_once_per_block(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged = []
    monkeypatch.setattr(mesh, "all_processes", lambda mask: exchanged.append(mask.tolist()) or mask)

    _read(stored)

    available = [step in STORED for step in range(STEPS)]
    assert exchanged == [available[:4], available[4:8], available[8:]]


def test_a_block_is_read_while_the_previous_one_is_used(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, next_block_read = stored.read, threading.Event()

    def record(step: int) -> np.ndarray | None:
        if step == 2 * BLOCK - 1:
            next_block_read.set()
        assert threading.current_thread() is not threading.main_thread()
        return read(step)

    monkeypatch.setattr(stored, "read", record)
    with read_ahead.ReadAhead(stored) as ahead:
        ahead.read(0)

        assert next_block_read.wait(timeout=60)


def test_the_memory_of_a_block_is_limited(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged = []
    monkeypatch.setattr(read_ahead, "_BYTES", 2 * stored.row_bytes)
    monkeypatch.setattr(mesh, "all_processes", lambda mask: exchanged.append(len(mask)) or mask)

    assert _read(stored) == [*STORED]

    assert exchanged == [2] * 5


def test_all_writes_are_finished_at_the_end(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path) as stored, read_ahead.ReadAhead(stored) as ahead:
        for step in range(STEPS):
            assert ahead.read(step) is None
            ahead.write(step, _array(step))

    with _open(tmp_path) as stored:
        assert _read(stored) == [*range(STEPS)]


def _fail(step: int, array: np.ndarray) -> None:
    raise SettingError(f"step {step} cannot be stored")


def _write_two(ahead: read_ahead.ReadAhead) -> None:
    ahead.write(1, _array(1))
    ahead.write(2, _array(2))


@pytest.mark.parametrize("write", [lambda ahead: ahead.write(1, _array(1)), _write_two])
def test_a_write_error_is_raised_at_the_next_step_or_at_the_end(
    stored: outputs.StoredOutputs,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[read_ahead.ReadAhead], None],
) -> None:
    monkeypatch.setattr(stored, "write", _fail)

    with (
        pytest.raises(SettingError, match="step 1 cannot be stored"),
        read_ahead.ReadAhead(stored) as ahead,
    ):
        write(ahead)


def _fail_after_writing(stored: outputs.StoredOutputs) -> None:
    with read_ahead.ReadAhead(stored) as ahead:
        ahead.write(1, _array(1))
        raise KeyError("another")


def test_a_write_error_does_not_hide_an_error_of_a_step(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "write", _fail)

    with pytest.raises(KeyError, match="another"):
        _fail_after_writing(stored)
