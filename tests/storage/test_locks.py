"""Locks between processes, also on file systems without locking."""

import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import files, locks, outputs, process, workdir

# ENOLCK, ENOSYS, EOPNOTSUPP, the kernel's ENOTSUPP, and errors of FUSE or a sandbox.
ERRORS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524, errno.EINVAL, errno.EACCES]


@pytest.fixture(params=ERRORS, ids=lambda number: errno.errorcode.get(number, str(number)))
def without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Simulates a file system without locks."""
    number = request.param

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_warned", set())
    return number


@pytest.fixture
def other() -> Iterator[dict[str, Any]]:
    """The lock record of another living process on this machine."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield process.this() | {"pid": child.pid, "start": process.started(child.pid)}
        child.kill()


def test_a_lock_is_exclusive(tmp_path: pathlib.Path) -> None:
    with (
        locks.held(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        locks.held(tmp_path / "lock"),
    ):
        pass


def test_without_locks_a_folder_is_claimed_with_a_warning(
    without_flock: int, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with workdir.claimed(tmp_path, {}), workdir.claimed(tmp_path / "other", {}):
        pass

    reason = os.strerror(errno.EOPNOTSUPP if without_flock == 524 else without_flock)
    assert f"{tmp_path} cannot be locked ({reason}): make sure" in caplog.text


def test_without_locks_a_living_holder_is_respected(
    without_flock: int, tmp_path: pathlib.Path, other: dict[str, Any]
) -> None:
    (tmp_path / ".remem_jax").touch()
    (tmp_path / "lock").write_text(json.dumps(other))

    with (
        pytest.raises(SettingError, match="Another process runs in"),
        workdir.claimed(tmp_path, {}),
    ):
        pass


@pytest.mark.parametrize(
    "holder",
    [
        '{"host": "elsewhere", "pid": 1, "start": "1", "space": "another"}',
        json.dumps(process.this() | {"start": "before"}),
        "",
        '{"ho',
        "[]",
    ],
)
def test_without_locks_dead_or_unknown_holders_are_ignored(
    holder: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_refused", lambda *_, **__: OSError(errno.ENOLCK, "none"))
    (tmp_path / "lock").write_text(holder)

    with locks.held(tmp_path / "lock") as locked:
        held = json.loads((tmp_path / "lock").read_text())

    assert (locked, held) == (False, process.this())
    assert (tmp_path / "lock").read_text() == ""


def test_without_locks_files_and_outputs_are_written(
    without_flock: int, tmp_path: pathlib.Path
) -> None:
    with files.replacing(tmp_path / "a") as first, files.replacing(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    options = {"folder": tmp_path / "outputs", "facts": {}, "steps": 1, "shape": (1,)}
    with outputs.StoredOutputs(**options, dtype="float32"):
        pass

    assert (tmp_path / "a").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "outputs"]


def test_a_file_is_not_written_through_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.partial").symlink_to(tmp_path / "precious")

    files.write_text(tmp_path / "a", "new")

    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "owner and permissions"),
        (errno.EROFS, "read-only"),
        (errno.ESTALE, "file server"),
        (errno.ENOLCK, "mend it"),
        (None, "mend it"),
    ],
)
def test_the_advice_matches_the_error(number: int | None, expected: str) -> None:
    assert expected in files.advice(number)
