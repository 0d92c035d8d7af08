"""Files and small records are written completely or not at all."""

import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import files, results


def _write_and_fail(path: pathlib.Path) -> None:
    with files.replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt


def test_a_file_contains_the_written_text(tmp_path: pathlib.Path) -> None:
    with files.replacing(tmp_path / "a" / "b.bin") as file:
        file.write(b"new")

    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"


def test_a_file_replaces_the_old_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old and longer")

    with files.replacing(path) as file:
        file.write(b"new")

    assert path.read_bytes() == b"new"


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    with files.replacing(path) as file:
        file.write(b"new")
        file.flush()
        during = path.read_bytes()

    assert during == b"old"


def test_the_old_file_stays_if_writing_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    with pytest.raises(KeyboardInterrupt):
        _write_and_fail(path)

    assert path.read_bytes() == b"old"


def test_no_file_appears_if_writing_fails(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write_and_fail(tmp_path / "a")

    assert not (tmp_path / "a").exists()


def test_writing_leaves_no_other_files(tmp_path: pathlib.Path) -> None:
    files.write_text(tmp_path / "a", "text")

    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_text_is_written_in_utf8(tmp_path: pathlib.Path) -> None:
    files.write_text(tmp_path / "a", "alpha: \u03b1\n")

    assert (tmp_path / "a").read_bytes() == b"alpha: \xce\xb1\n"


@pytest.mark.parametrize("content", [{"a": [1, 0.1, None], "b": {"c": "\u03b1"}}, [], {}])
def test_records_are_read_as_written(tmp_path: pathlib.Path, content: Any) -> None:
    results.write(tmp_path / "folder" / "a.json", content)

    assert results.read(tmp_path / "folder" / "a.json") == content


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_record_with_non_finite_numbers_is_valid_json(
    tmp_path: pathlib.Path, value: float
) -> None:
    results.write(tmp_path / "a.json", {"a": [value, 1.0], "b": {"c": (value,)}})

    assert results.read(tmp_path / "a.json") == {"a": [None, 1.0], "b": {"c": [None]}}


def test_a_missing_record_is_none(tmp_path: pathlib.Path) -> None:
    assert results.read(tmp_path / "a.json") is None


def test_a_partial_record_left_by_a_kill_is_not_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json.partial").write_text('{"a": 1, "b')

    assert results.read(tmp_path / "a.json") is None


def test_a_partial_record_left_by_a_kill_does_not_stop_the_next(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "a.json.partial").write_text('{"a": 1, "b": 2, "c": 3, "d')

    results.write(tmp_path / "a.json", {"a": 2})

    assert results.read(tmp_path / "a.json") == {"a": 2}


def test_a_record_that_json_cannot_represent_keeps_the_old_one(
    tmp_path: pathlib.Path,
) -> None:
    results.write(tmp_path / "a.json", {"a": 1})

    with pytest.raises(TypeError):
        results.write(tmp_path / "a.json", {"a": object()})

    assert results.read(tmp_path / "a.json") == {"a": 1}


def test_the_digest_is_a_prefix_of_sha256(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")

    assert results.digest(tmp_path / "a") == hashlib.sha256(b"bytes").hexdigest()[:16]


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    first = results.fingerprint({"a": 1, "b": {"c": 2, "d": 3}})

    assert results.fingerprint({"b": {"d": 3, "c": 2}, "a": 1}) == first


def test_the_fingerprint_depends_on_values() -> None:
    assert results.fingerprint({"a": 1}) != results.fingerprint({"a": 2})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"REMEM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/remem_jax"),
        ({"HOME": "/c"}, "/c/.cache/remem_jax"),
    ],
)
def test_the_cache_follows_the_environment_variables(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REMEM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert files.cache() == pathlib.Path(expected)


def test_without_a_home_the_cache_is_temporary_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(path: pathlib.Path) -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("REMEM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pathlib.Path, "expanduser", unknown)

    assert files.cache() == files.cache()
    assert files.cache().stat().st_mode & 0o077 == 0
    assert "set REMEM_CACHE" in caplog.text


@pytest.mark.parametrize("value", ["gs://bucket/cache", "~nobody_of_this_name/cache"])
def test_a_cache_that_is_no_folder_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEM_CACHE", value)

    with pytest.raises(SettingError, match="set REMEM_CACHE"):
        files.cache()


_WRITER = """
import json, pathlib, sys

from remem_jax.storage import files

path, text = pathlib.Path(sys.argv[1]), sys.argv[2] * 100_000
for _ in range(40):
    files.write_text(path, json.dumps(text))
    json.loads(path.read_text())
"""


def test_processes_may_write_a_file_concurrently(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.json"
    command = [sys.executable, "-c", _WRITER, str(path)]

    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]

    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(set(json.loads(path.read_text()))) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
def test_a_link_is_not_opened_for_writing(make: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "victim").write_text("mine")
    getattr(tmp_path / "ours", make)(tmp_path / "victim")

    with pytest.raises(OSError, match="remove it") as caught:
        files.open_private(tmp_path / "ours")

    assert caught.value.filename == str(tmp_path / "ours")
    assert not files.is_private(tmp_path / "ours")


def test_a_pipe_is_not_opened_for_writing(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "ours")

    with pytest.raises(OSError, match="no plain file"):
        files.open_private(tmp_path / "ours")


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
def test_a_link_in_place_of_the_partial_file_is_not_followed(
    make: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "victim").write_text("mine")
    getattr(tmp_path / "a.partial", make)(tmp_path / "victim")

    files.write_text(tmp_path / "a", "new")

    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "victim").read_text() == "mine"
