"""Stored outputs of the teacher: bit for bit what was written, or nothing."""

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
ROW = 16 + 3 * 5 * 4  # Bytes: the digest and the array.


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
    """Writes all steps; the file that they are in."""
    before = {*folder.glob("*/outputs.bin")}
    with _open(folder, **changes) as stored:
        for step in range(STEPS):
            stored.write(step, _array(step))
    (path,) = {*folder.glob("*/outputs.bin")} - before
    return path


def _require_damaged(
    folder: pathlib.Path, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """These steps are lost, which is told once; the others are not, and all can be written."""
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
def test_what_is_read_is_bit_for_bit_what_was_written(
    tmp_path: pathlib.Path, dtype: Any, rng: np.random.Generator
) -> None:
    array = rng.normal(size=SHAPE).astype(dtype)
    array.flat[:5] = [np.nan, -np.nan, np.inf, -np.inf, -0.0]
    with _open(tmp_path, dtype=dtype) as stored:
        stored.write(1, array)
    with _open(tmp_path, dtype=dtype) as stored:
        found = stored.read(1)

    assert found is not None
    assert found.dtype == np.dtype(dtype)
    assert found.shape == SHAPE
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0, 5), (2, 3, 4)])
def test_arrays_have_any_shape(tmp_path: pathlib.Path, shape: tuple[int, ...]) -> None:
    array = np.full(shape, 0.5, np.float32)
    with _open(tmp_path, shape=shape) as stored:
        stored.write(1, array)
        before, found = stored.read(0), stored.read(1)

    assert before is None
    np.testing.assert_array_equal(found, array, strict=True)


def test_the_order_of_an_array_in_memory_does_not_matter(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path) as stored:
        stored.write(0, np.asfortranarray(_array(0)))
        found = stored.read(0)

    np.testing.assert_array_equal(found, _array(0), strict=True)


def test_what_was_not_written_is_none(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with _open(tmp_path) as stored:
            stored.write(2, np.zeros(SHAPE, np.float32))
            found = [stored.read(step) is not None for step in range(STEPS)]

        assert found == [False, False, True, False]
    assert not caplog.records


def test_what_is_written_again_is_the_last(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path) as stored:
        stored.write(0, _array(0))
        stored.write(0, _array(1))
        found = stored.read(0)

    np.testing.assert_array_equal(found, _array(1))


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
def test_other_facts_have_other_outputs(
    tmp_path: pathlib.Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)

    with _open(tmp_path, **change) as stored:
        found = [stored.read(step) for step in range(STEPS)]

    assert found == [None] * STEPS
    _require_sound(tmp_path, caplog)


def test_another_format_has_other_outputs(
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
def test_a_run_of_another_length_has_the_same_outputs(
    tmp_path: pathlib.Path, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)

    with _open(tmp_path, steps=steps) as stored:
        found = [stored.read(step) for step in range(steps)]

    for step in range(min(STEPS, steps)):
        np.testing.assert_array_equal(found[step], _array(step))
    assert found[STEPS:] == [None] * (steps - STEPS if steps > STEPS else 0)
    _require_sound(tmp_path, caplog)


def test_the_facts_are_written_beside_for_people(tmp_path: pathlib.Path) -> None:
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
def test_a_step_outside_of_the_run_is_an_error(tmp_path: pathlib.Path, step: int) -> None:
    with _open(tmp_path) as stored:
        with pytest.raises(ValueError, match=f"from 0 to 3, got {step}"):
            stored.read(step)
        with pytest.raises(ValueError, match=f"from 0 to 3, got {step}"):
            stored.write(step, _array(0))


def test_the_file_takes_no_room_before_it_is_written(tmp_path: pathlib.Path) -> None:
    with _open(tmp_path, steps=1_000_000):
        (path,) = tmp_path.glob("*/outputs.bin")

        assert path.stat().st_size == 1_000_000 * ROW
        assert path.stat().st_blocks * 512 < 1_000_000


def test_a_flip_of_any_byte_is_told(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    for place in range(ROW, 2 * ROW):
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << place % 8
        path.write_bytes(content)

        _require_damaged(tmp_path, [1], caplog)


@pytest.mark.parametrize("size", [1, ROW - 1, ROW + 1, 2 * ROW + 16, 4 * ROW - 1])
def test_a_file_that_was_cut_is_told(
    tmp_path: pathlib.Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(_write_all(tmp_path), size)

    _require_damaged(tmp_path, [*range(size // ROW, STEPS)], caplog)


@pytest.mark.parametrize("size", [0, 1, ROW, ROW + 1, 2 * ROW - 1])
def test_a_file_that_is_cut_while_it_is_used_is_told(
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
def test_a_file_that_was_emptied_or_lost_is_told(
    tmp_path: pathlib.Path,
    damage: Callable[[pathlib.Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(_write_all(tmp_path))

    _require_damaged(tmp_path, [*range(STEPS)], caplog)


def test_outputs_outlive_their_facts_and_write_them_again(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = _write_all(tmp_path).with_name("facts.json")
    content = facts.read_text()
    facts.unlink()

    _require_sound(tmp_path, caplog)

    assert facts.read_text() == content


def test_what_a_start_that_was_killed_has_left_is_used(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    path.write_bytes(b"")
    path.with_name("facts.json").rename(path.with_name("facts.json.partial"))

    with _open(tmp_path) as stored:
        assert stored.read(0) is None
    assert not caplog.records


def test_outputs_of_another_step_or_of_other_facts_do_not_fit(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write_all(tmp_path)
    content = path.read_bytes()

    path.write_bytes(content[ROW : 2 * ROW] + content[:ROW] + content[2 * ROW :])
    _require_damaged(tmp_path, [0, 1], caplog)

    shutil.copyfile(_write_all(tmp_path, facts={"teacher": "ab12", "seed": 1}), path)
    _require_damaged(tmp_path, [*range(STEPS)], caplog)


def test_what_the_system_does_not_read_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> int:
        raise OSError(5, "said by the system")

    _write_all(tmp_path)
    with _open(tmp_path) as stored, monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        found = [stored.read(step) for step in range(STEPS)]

    assert found == [None] * STEPS
    assert caplog.text.count("damaged (step 0: said by the system)") == 1


def _run(program: str, *arguments: object) -> "subprocess.Popen[str]":
    """Starts a program, which says that it is ready."""
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
                    found = stored.read(other)
                    assert found is None or (found == seed + other).all(), (seed, other)
                stored.write(step, np.full((64, 1000), seed + step, np.float32))
                assert (stored.read(step) == seed + step).all()
"""


def test_two_processes_write_the_same_outputs_at_once(tmp_path: pathlib.Path) -> None:
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
            # Other numbers each time, so that half of one would show.
            stored.write(number % 4, np.full((500, 1000), number, np.float32))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_no_half_of_an_output(tmp_path: pathlib.Path) -> None:
    random_ = random.Random(0)
    whole = 0
    for _ in range(8):
        process = _run(_WRITE_FOR_EVER, tmp_path)
        time.sleep(random_.uniform(0, 0.1))
        process.kill()
        process.communicate()

        with outputs.StoredOutputs(folder=tmp_path, **_KILLED) as stored:
            for step in range(4):
                found = stored.read(step)
                if found is not None:
                    assert found[0, 0] % 4 == step
                    assert (found == found[0, 0]).all()
                    whole += 1
                stored.write(step, np.full((500, 1000), step, np.float32))
    assert whole >= 24  # Of 32: a kill costs one of four at most.


_Usage = collections.namedtuple("_Usage", ["total", "used", "free"])


def test_a_disk_without_room_is_an_error_before_anything_is_written(
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


def test_what_is_stored_needs_no_more_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _write_all(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, 0))

    _require_sound(tmp_path, caplog)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingError, match=r"stored in .*Not a directory.*: set config"):
        _open(tmp_path / "file" / "cache")


@pytest.mark.parametrize("there", [True, False])
def test_what_another_user_has_stored_is_read_and_nothing_else_is_stored(
    there: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if there:
        _write_all(tmp_path)

    def closed(file: Any) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", file.name)

    monkeypatch.setattr(locks, "lock", closed)
    (*_, path) = [tmp_path, *tmp_path.glob("*/outputs.bin")]
    before = path.read_bytes() if there else b""

    with _open(tmp_path) as stored:
        stored.write(1, _array(2))
        found = stored.read(1)

    np.testing.assert_array_equal(found, _array(1) if there else None)
    assert (path.read_bytes() if there else b"") == before
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
        # Real errors of the system, as on a full disk: files may have 100 kB, and no more.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for step in range(3):
            try:
                stored.write(step, np.full((100, 100), step, np.float32))
            except checks.SettingError as error:
                print(error)
        for step in range(4):
            found = stored.read(step)
            print(found if found is None else (found == step).all())
    try:
        outputs.StoredOutputs(steps=5, **settings)
    except checks.SettingError as error:
        print(error)
"""


def test_what_the_system_does_not_write_is_told(tmp_path: pathlib.Path) -> None:
    out, log = _run(_WRITE_TOO_MUCH, tmp_path).communicate(timeout=100)

    message = (
        f"The teacher's outputs could not be stored in {tmp_path} (File too large): set "
        "config.student.store_outputs to False, or REMEM_CACHE to a folder with more room that "
        "can be written."
    )
    assert out.splitlines() == [message, "True", "True", "None", "None", message], log
    assert not log  # Nothing is damaged: the third has no digest.
