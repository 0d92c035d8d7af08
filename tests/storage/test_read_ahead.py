"""Stored outputs, read ahead of the steps: what was stored, if all processes have it."""

import pathlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import outputs, read_ahead

STEPS, SHAPE = 10, (3, 5)
BLOCK = 4  # Steps.
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
    """Outputs of some of the steps."""
    with _open(tmp_path) as found:
        for step in STORED:
            found.write(step, _array(step))
        yield found


def _read(stored: outputs.StoredOutputs, first: int = 0) -> list[int]:
    """Which steps are read, from the first one on; they are what was written."""
    found = []
    with read_ahead.ReadAhead(stored) as ahead:
        for step in range(first, STEPS):
            array = ahead.read(step)
            if array is not None:
                np.testing.assert_array_equal(array, _array(step), strict=True)
                found.append(step)
    return found


@pytest.mark.parametrize("first", [0, 3, 9])
def test_what_is_stored_is_read_from_any_step_on(stored: outputs.StoredOutputs, first: int) -> None:
    assert _read(stored, first) == [step for step in STORED if step >= first]


def test_only_what_all_processes_have_is_read(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process has steps 0, 4 and 8 alone of each block of four.
    monkeypatch.setattr(mesh, "all_processes", lambda say: say & (np.arange(len(say)) % 4 == 0))

    assert _read(stored) == [0, 4]


def test_processes_agree_once_in_a_block(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(mesh, "all_processes", lambda say: said.append(say.tolist()) or say)

    _read(stored)

    own = [step in STORED for step in range(STEPS)]
    assert said == [own[:4], own[4:8], own[8:]]


def test_a_block_is_read_while_the_one_before_is_used(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, of_next = stored.read, threading.Event()

    def note(step: int) -> np.ndarray | None:
        if step == 2 * BLOCK - 1:
            of_next.set()
        assert threading.current_thread() is not threading.main_thread()
        return read(step)

    monkeypatch.setattr(stored, "read", note)
    with read_ahead.ReadAhead(stored) as ahead:
        ahead.read(0)

        assert of_next.wait(timeout=60)


def test_a_block_takes_a_limited_memory(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(read_ahead, "_BYTES", 2 * stored.row_bytes)
    monkeypatch.setattr(mesh, "all_processes", lambda say: said.append(len(say)) or say)

    assert _read(stored) == [*STORED]

    assert said == [2] * 5


def test_what_is_written_is_there_at_the_end(tmp_path: pathlib.Path) -> None:
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
def test_what_cannot_be_stored_is_an_error_at_the_next_step_or_at_the_end(
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


def test_an_error_of_a_step_is_not_hidden_by_one_of_storing(
    stored: outputs.StoredOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "write", _fail)

    with pytest.raises(KeyError, match="another"):
        _fail_after_writing(stored)
