"""Stored teacher outputs are read bit for bit as written, or not at all."""

import collections
import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import locks, outputs, results

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SHAPE = 4, (3, 5)
ROW = 16 + 3 * 5 * 4  # In bytes: a digest and the array.


def _open(folder: pathlib.Path, **changes: Any) -> outputs.StoredOutputs:
    settings: dict[str, Any] = {
        "folder": folder,
        "facts": {"teacher": "ab12", "seed": 0},
        "steps": STEPS,
        "shape": SHAPE,
        "dtype": np.float32,
    }
    return outputs.StoredOutputs(**(settings | changes))


def _array(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=SHAPE).astype(np.float32)


def _write_all(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Writes all steps and returns the file that contains them."""
    before = {*folder.glob("*/outputs.bin")}
    with _open(folder, **changes) as stored:
        for step in range(STEPS):
            stored.write(step, _array(step))
    (path,) = {*folder.glob("*/outputs.bin")} - before
    return path


def _require_damaged(
    folder: pathlib.Path, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Checks that `steps` are lost with one warning, others are intact and all can be rewritten."""
    caplog.clear()
    with _open(folder) as stored:
        for step in range(STEPS):
            array = stored.read(step)
            if step in steps:
                assert array is None, step
                stored.write(step, _array(step))
            else:
                np.testing.assert_array_equal(array, _array(step), strict=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "outputs.bin is damaged" in caplog.text
    caplog.clear()
    _require_sound(folder, caplog)


def _require_sound(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with _open(folder) as stored:
        for step in range(STEPS):
            np.testing.assert_array_equal(stored.read(step), _array(step), strict=True)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, "float32"])
def test_arrays_are_read_bit_for_bit_as_written(
    tmp_path: pathlib.Path, dtype: Any, rng: np.random.Generator
) -> None:
    array = rng.normal(size=SHAPE).astype(dtype)
    array.flat[:5] = [np.nan, -np.nan, np.inf, -np.inf, -0.0]
    with _open(tmp_path, dtype=dtype) as stored:
        stored.write(1, array)
    with _open(tmp_path, dtype=dtype) as stored:
        result = stored.read(1)

    assert result is not None
    assert result.dtype == np.dtype(dtype)
    assert result.shape == SHAPE
    assert result.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0, 5), (2, 3, 4)])
def test_arrays_may_have_any_shape(tmp_path: pathlib.Path, shape: tuple[int, ...]) -> None:
    array = np.full(shape, 0.5, np.float32)
    with _open(tmp_path, shape=shape) as stored:
        stored.write(1, array)
        before, result = stored.read(0), stored.read(1)

    assert before is None
    np.testing.assert_array_equal(result, array, strict=True)


def test_the_memory_layout_of_an_array_does_not_matter(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path) as stored:
        stored.write(0, np.asfortranarray(_array(0)))
        result = stored.read(0)

    np.testing.assert_array_equal(result, _array(0), strict=True)


def test_a_step_that_was_not_written_is_none(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with _open(tmp_path) as stored:
            stored.write(2, np.zeros(SHAPE, np.float32))
            result = [stored.read(step) is not None for step in range(STEPS)]

        assert result == [False, False, True, False]
    assert not caplog.records


def test_the_last_write_of_a_step_wins(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path) as stored:
        stored.write(0, _array(0))
        stored.write(0, _array(1))
        result = stored.read(0)

    np.testing.assert_array_equal(result, _array(1))


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"teacher": "ab12", "seed": 1}},
        {"facts": {"teacher": "ab12"}},
        {"shape": (5, 3)},
        {"dtype": np.int32},
        {"process": (0, 2)},
        {"process": (1, 2)},
    ],
)
def test_different_facts_have_separate_outputs(
    tmp_path: pathlib.Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)

    with _open(tmp_path, **change) as stored:
        result = [stored.read(step) for step in range(STEPS)]

    assert result == [None] * STEPS
    _require_sound(tmp_path, caplog)


def test_a_different_format_has_separate_outputs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_all(tmp_path)
    monkeypatch.setattr(outputs, "_FORMAT", outputs._FORMAT + 1)

    with _open(tmp_path) as stored:
        assert stored.read(0) is None


def test_the_order_of_facts_does_not_matter(tmp_path: pathlib.Path) -> None:
    _write_all(tmp_path)

    with _open(tmp_path, facts={"seed": 0, "teacher": "ab12"}) as stored:
        np.testing.assert_array_equal(stored.read(0), _array(0))


@pytest.mark.parametrize("steps", [2, 9])
def test_a_run_of_another_length_shares_the_outputs(
    tmp_path: pathlib.Path, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)

    with _open(tmp_path, steps=steps) as stored:
        result = [stored.read(step) for step in range(steps)]

    for step in range(min(STEPS, steps)):
        np.testing.assert_array_equal(result[step], _array(step))
    assert result[STEPS:] == [None] * (steps - STEPS if steps > STEPS else 0)
    _require_sound(tmp_path, caplog)


def test_the_facts_are_written_beside_the_outputs(tmp_path: pathlib.Path) -> None:
    path = _write_all(tmp_path)

    assert results.read(path.with_name("facts.json")) == {
        "format": 1,
        "facts": {"teacher": "ab12", "seed": 0},
        "shape": [3, 5],
        "dtype": "float32",
        "process": [0, 1],
    }


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4), np.float32), np.zeros(SHAPE, np.float64), np.zeros((1, 3, 5), np.float32)],
    ids=["shape", "type", "axes"],
)
def test_an_array_of_another_shape_or_type_is_an_error(
    tmp_path: pathlib.Path, array: np.ndarray
) -> None:
    with _open(tmp_path) as stored:
        with pytest.raises(ValueError, match=r"step 1 must be float32 \(3, 5\), got float"):
            stored.write(1, array)

        assert stored.read(1) is None


@pytest.mark.parametrize("step", [-1, STEPS])
def test_a_step_out_of_range_is_an_error(tmp_path: pathlib.Path, step: int) -> None:
    with _open(tmp_path) as stored:
        with pytest.raises(ValueError, match=f"from 0 to 3, got {step}"):
            stored.read(step)
        with pytest.raises(ValueError, match=f"from 0 to 3, got {step}"):
            stored.write(step, _array(0))


def test_the_file_takes_no_disk_space_before_it_is_written(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path, steps=1_000_000):
        (path,) = tmp_path.glob("*/outputs.bin")

        assert path.stat().st_size == 1_000_000 * ROW
        assert path.stat().st_blocks * 512 < 1_000_000


def test_a_flipped_bit_in_any_byte_is_reported(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    for position in range(ROW, 2 * ROW):
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << position % 8
        path.write_bytes(content)

        _require_damaged(tmp_path, [1], caplog)


@pytest.mark.parametrize("size", [1, ROW - 1, ROW + 1, 2 * ROW + 16, 4 * ROW - 1])
def test_a_truncated_file_is_reported(
    tmp_path: pathlib.Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(_write_all(tmp_path), size)

    _require_damaged(tmp_path, [*range(size // ROW, STEPS)], caplog)


@pytest.mark.parametrize("size", [0, 1, ROW, ROW + 1, 2 * ROW - 1])
def test_a_file_truncated_during_use_is_reported(
    tmp_path: pathlib.Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    with _open(tmp_path) as stored:
        os.truncate(path, size)
        assert stored.read(1) is None
        stored.write(1, _array(1))

        np.testing.assert_array_equal(stored.read(1), _array(1))
    assert "outputs.bin is damaged" in caplog.text


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), pathlib.Path.unlink])
def test_an_emptied_or_deleted_file_is_reported(
    tmp_path: pathlib.Path,
    damage: Callable[[pathlib.Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(_write_all(tmp_path))

    _require_damaged(tmp_path, [*range(STEPS)], caplog)


def test_outputs_survive_a_deleted_facts_file_and_rewrite_it(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = _write_all(tmp_path).with_name("facts.json")
    content = facts.read_text()
    facts.unlink()

    _require_sound(tmp_path, caplog)

    assert facts.read_text() == content


def test_files_left_by_a_killed_start_are_used(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    path.write_bytes(b"")
    path.with_name("facts.json").rename(path.with_name("facts.json.partial"))

    with _open(tmp_path) as stored:
        assert stored.read(0) is None
    assert not caplog.records


def test_outputs_of_another_step_or_other_facts_are_rejected(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    content = path.read_bytes()

    path.write_bytes(content[ROW : 2 * ROW] + content[:ROW] + content[2 * ROW :])
    _require_damaged(tmp_path, [0, 1], caplog)

    shutil.copyfile(_write_all(tmp_path, facts={"teacher": "ab12", "seed": 1}), path)
    _require_damaged(tmp_path, [*range(STEPS)], caplog)


def test_read_errors_of_the_system_are_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> int:
        raise OSError(5, "said by the system")

    _write_all(tmp_path)
    with _open(tmp_path) as stored, monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        result = [stored.read(step) for step in range(STEPS)]

    assert result == [None] * STEPS
    assert caplog.text.count("damaged (step 0: said by the system)") == 1


def _run(program: str, *arguments: object) -> "subprocess.Popen[str]":
    """Starts a program and waits until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


_WRITE_AND_READ = """
    import pathlib, sys
    import numpy as np
    from remem_jax.storage import outputs

    print("ready", flush=True)
    sys.stdin.readline()
    for seed in range(30):
        with outputs.StoredOutputs(
            folder=pathlib.Path(sys.argv[1]), facts={"seed": seed}, steps=8, shape=(64, 1000),
            dtype=np.float32,
        ) as stored:
            for step in range(8)[:: int(sys.argv[2])]:
                for other in range(8):
                    result = stored.read(other)
                    assert result is None or (result == seed + other).all(), (seed, other)
                stored.write(step, np.full((64, 1000), seed + step, np.float32))
                assert (stored.read(step) == seed + step).all()
"""


def test_two_processes_may_write_the_same_outputs_concurrently(tmp_path: pathlib.Path) -> None:
    processes = [_run(_WRITE_AND_READ, tmp_path, order) for order in (1, -1)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    logs = [process.communicate(timeout=100)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], logs
    assert logs == ["", ""]  # No output is damaged.


_KILLED = {"facts": {}, "steps": 4, "shape": (500, 1000), "dtype": np.float32}
_WRITE_FOR_EVER = """
    import itertools, pathlib, sys
    import numpy as np
    from remem_jax.storage import outputs

    with outputs.StoredOutputs(
        folder=pathlib.Path(sys.argv[1]), facts={}, steps=4, shape=(500, 1000), dtype=np.float32
    ) as stored:
        print("ready", flush=True)
        for number in itertools.count():
            # Different values each time, so that a partial write would be detected.
            stored.write(number % 4, np.full((500, 1000), number, np.float32))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_no_partial_output(tmp_path: pathlib.Path) -> None:
    random_ = random.Random(0)
    complete = 0
    for _ in range(8):
        process = _run(_WRITE_FOR_EVER, tmp_path)
        time.sleep(random_.uniform(0, 0.1))
        process.kill()
        process.communicate()

        with outputs.StoredOutputs(folder=tmp_path, **_KILLED) as stored:
            for step in range(4):
                result = stored.read(step)
                if result is not None:
                    assert result[0, 0] % 4 == step
                    assert (result == result[0, 0]).all()
                    complete += 1
                stored.write(step, np.full((500, 1000), step, np.float32))
    assert complete >= 24  # Of 32, as each kill costs at most one of four.


_Usage = collections.namedtuple("_Usage", ["total", "used", "free"])


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, 10 * 2**20))

    with pytest.raises(SettingError) as caught:
        _open(tmp_path / "cache", steps=10, shape=(2**18, 2))

    assert str(caught.value) == (
        f"The teacher's outputs could not be stored in {tmp_path}/cache (20.0 MiB are needed, "
        "10.0 MiB are free): set config.student.store_outputs to False, or REMEM_CACHE to a "
        "folder with more room that can be written."
    )
    assert not [*(tmp_path / "cache").iterdir()]


def test_existing_outputs_need_no_more_disk_space(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, 0))

    _require_sound(tmp_path, caplog)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingError, match=r"stored in .*Not a directory.*: set config"):
        _open(tmp_path / "file" / "cache")


@pytest.mark.parametrize("exists", [True, False])
def test_outputs_of_another_user_are_read_but_not_written(
    exists: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if exists:
        _write_all(tmp_path)

    def deny(file: Any) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", file.name)

    monkeypatch.setattr(locks, "lock", deny)
    (*_, path) = [tmp_path, *tmp_path.glob("*/outputs.bin")]
    before = path.read_bytes() if exists else b""

    with _open(tmp_path) as stored:
        stored.write(1, _array(2))
        result = stored.read(1)

    np.testing.assert_array_equal(result, _array(1) if exists else None)
    assert (path.read_bytes() if exists else b"") == before
    assert "set REMEM_CACHE" in caplog.text


_WRITE_TOO_MUCH = """
    import pathlib, resource, signal, sys
    import numpy as np
    from remem_jax import checks
    from remem_jax.storage import outputs

    print("ready", flush=True)
    folder = pathlib.Path(sys.argv[1])
    settings = {"folder": folder, "facts": {}, "shape": (100, 100), "dtype": np.float32}
    with outputs.StoredOutputs(steps=4, **settings) as stored:
        # Limit files to 100 kB, to get real system errors as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for step in range(3):
            try:
                stored.write(step, np.full((100, 100), step, np.float32))
            except checks.SettingError as error:
                print(error)
        for step in range(4):
            result = stored.read(step)
            print(result if result is None else (result == step).all())
    try:
        outputs.StoredOutputs(steps=5, **settings)
    except checks.SettingError as error:
        print(error)
"""


def test_write_errors_of_the_system_are_reported(tmp_path: pathlib.Path) -> None:
    out, log = _run(_WRITE_TOO_MUCH, tmp_path).communicate(timeout=100)

    message = (
        f"The teacher's outputs could not be stored in {tmp_path} (File too large): set "
        "config.student.store_outputs to False, or REMEM_CACHE to a folder with more room that "
        "can be written."
    )
    assert out.splitlines() == [message, "True", "True", "None", "None", message], log
    assert not log  # Nothing counts as damaged, as the third has no digest.
