"""Copies of folders are complete or absent, verified, and small to update."""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from remem_jax.checks import SettingError
from remem_jax.storage import artifacts, snapshots


@pytest.fixture(autouse=True)
def no_files() -> Iterator[None]:
    """Empties fsspec's storage in memory, which all tests share."""
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> artifacts.Store:
    url = "memory://bucket/study" if request.param == "memory" else f"file://{tmp_path}/store"
    return artifacts.open_store("config.artifacts", url)


def _write(folder: pathlib.Path, **files: bytes) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    return folder


def _read(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _stored(store: artifacts.Store, name: str) -> list[str]:
    """Paths of all files of a copy in the storage, by fsspec alone."""
    found = store._system.find(f"{store._root}/{name}")
    return sorted(path.partition(f"{name}/")[2] for path in found)


def test_a_copy_has_the_same_files(store: artifacts.Store, tmp_path: pathlib.Path) -> None:
    content = np.random.default_rng(0).bytes(10**6)
    folder = _write(tmp_path / "a", one=content, deep__er__two=b"", three=b"3")

    pushed = store.push(folder, "trials/k")
    pulled = store.pull("trials/k", tmp_path / "b")

    assert pulled == pushed
    assert _read(tmp_path / "b") == {"one": content, "deep/er/two": b"", "three": b"3"}
    assert store.exists("trials/k")
    assert store.version("trials/k") == pushed
    assert store.files("trials/k") == {"one", "deep/er/two", "three"}
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".saving", ".old")]


def test_what_was_never_pushed_is_absent(store: artifacts.Store, tmp_path: pathlib.Path) -> None:
    folder = _write(tmp_path / "b", mine=b"kept")

    assert not store.pull("trials/k", folder)
    assert not store.exists("trials/k")
    assert store.version("trials/k") == ""
    assert _read(folder) == {"mine": b"kept"}


def test_a_pull_replaces_the_whole_folder(store: artifacts.Store, tmp_path: pathlib.Path) -> None:
    store.push(_write(tmp_path / "a", new=b"1"), "k")
    folder = _write(tmp_path / "b", old=b"0")

    store.pull("k", folder)

    assert _read(folder) == {"new": b"1"}


def test_only_changed_files_are_sent(
    store: artifacts.Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = type(store._system).put_file

    def counting(self: Any, source: str, target: str, **options: Any) -> None:
        sent.append(pathlib.Path(source).name)
        put(self, source, target, **options)

    monkeypatch.setattr(type(store._system), "put_file", counting)
    folder = _write(tmp_path / "a", same=b"same", other=b"before", gone=b"gone")
    store.push(folder, "k")
    sent.clear()
    _write(folder, other=b"after!", added=b"new")
    (folder / "gone").unlink()

    store.push(folder, "k")
    store.push(folder, "k")  # Nothing has changed.
    store.pull("k", tmp_path / "b")

    assert sorted(sent) == ["added", "other"]
    assert _read(tmp_path / "b") == {"same": b"same", "other": b"after!", "added": b"new"}


def test_old_versions_are_removed(store: artifacts.Store, tmp_path: pathlib.Path) -> None:
    folder = _write(tmp_path / "a", same=b"same")
    for i in range(4):
        store.push(_write(folder, changing=b"%d" % i), "k")

    stored = _stored(store, "k")

    numbers = [int(path[:6]) for path in stored]
    assert len([path for path in stored if path.endswith(".json")]) == 2
    assert sorted(numbers) == [1, 3, 3, 4, 4]  # "same" is that of the first version.


def test_a_final_copy_is_one_readable_folder(
    store: artifacts.Store, tmp_path: pathlib.Path
) -> None:
    folder = _write(tmp_path / "a", report=b"r")
    for i in range(3):
        store.push(_write(folder, weights=b"%d" % i), "k")
    (folder / "weights").unlink()

    for _ in range(2):  # The second has nothing new.
        store.push(_write(folder, results=b"{}"), "k", final=True)

    assert _stored(store, "k") == ["final.json", "final/report", "final/results"]
    assert store.url("k", final=True) == f"{store.shown}/k/final"
    store.pull("k", tmp_path / "b")
    assert _read(tmp_path / "b") == {"report": b"r", "results": b"{}"}


def test_a_version_after_a_final_one_is_the_newest(
    store: artifacts.Store, tmp_path: pathlib.Path
) -> None:
    store.push(_write(tmp_path / "a", one=b"1"), "k", final=True)
    store.push(_write(tmp_path / "a", one=b"2"), "k")

    store.pull("k", tmp_path / "b")

    assert _read(tmp_path / "b") == {"one": b"2"}


def test_manifests_list_sizes_and_digests(store: artifacts.Store, tmp_path: pathlib.Path) -> None:
    store.push(_write(tmp_path / "a", one=b"content"), "k", final=True)

    line, digest = store._system.cat_file(f"{store._root}/k/final.json").splitlines()

    expected = [7, hashlib.sha256(b"content").hexdigest(), "final"]
    assert json.loads(line)["files"] == {"one": expected}
    assert digest.decode() == hashlib.sha256(line).hexdigest()


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_version_falls_back_to_the_one_before(
    store: artifacts.Store,
    tmp_path: pathlib.Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = _write(tmp_path / "a", state=b"first")
    store.push(folder, "k")
    store.push(_write(folder, state=b"other"), "k")
    newest = f"{store._root}/k/{_stored(store, 'k')[-1]}"
    assert newest.endswith("/state")
    if damage == "changed":
        store._system.pipe_file(newest, b"OTHER")
    elif damage == "missing":
        store._system.rm_file(newest)
    else:
        manifest = newest.removesuffix("/state") + ".json"
        store._system.pipe_file(manifest, store._system.cat_file(manifest)[:-5])

    assert store.pull("k", tmp_path / "b")

    assert _read(tmp_path / "b") == {"state": b"first"}
    assert damage == "manifest" or "version 000002" in caplog.text


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("calls", range(5))
def test_a_kill_during_a_push_leaves_a_complete_copy(
    store: artifacts.Store, tmp_path: pathlib.Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = {"a": b"1", "b": b"1"}, {"a": b"22", "b": b"22"}
    folder = _write(tmp_path / "a", **first)
    store.push(folder, "k")
    remaining = [None] * calls

    def kill_later(name: str) -> None:
        original = getattr(type(store._system), name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if not remaining:
                raise Killed
            remaining.pop()
            return original(self, *arguments, **options)

        monkeypatch.setattr(type(store._system), name, call)

    for name in ("put_file", "pipe_file", "rm_file"):
        kill_later(name)
    try:
        store.push(_write(folder, **second), "k")
    except Killed:
        assert calls < 3
    monkeypatch.undo()

    store.pull("k", tmp_path / "b")

    assert _read(tmp_path / "b") == (first if calls < 3 else second)
    store.push(folder, "k")  # The next push completes it.
    store.pull("k", tmp_path / "b")
    assert _read(tmp_path / "b") == second


def test_a_manifest_cannot_write_outside_of_the_folder(
    store: artifacts.Store, tmp_path: pathlib.Path
) -> None:
    file = artifacts._File(1, hashlib.sha256(b"x").hexdigest(), "1")
    store._write("k", artifacts._Manifest(1, "1", {"../escaped": file}))

    assert not store.pull("k", tmp_path / "b")
    assert not (tmp_path / "escaped").exists()


def test_a_storage_that_fails_raises_one_error_without_secrets(
    store: artifacts.Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("403 for token=abc")

    monkeypatch.setattr(type(store._system), "put_file", fail)

    with pytest.raises(artifacts.StoreError, match=r"RuntimeError: 403 for token=\*\*\*"):
        store.push(_write(tmp_path / "a", one=b"1"), "k")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nope://a/b", r"config\.artifacts must be a URL that fsspec opens.*nope://a/b"),
        ("file:///proc/no/where", r"config\.artifacts cannot be used \(file:///proc/no/where"),
    ],
)
def test_an_unusable_storage_is_refused(url: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        artifacts.open_store("config.artifacts", url)


def test_a_storage_without_its_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)

    with pytest.raises(SettingError, match=r"needs another package \(Install s3fs to access S3\)"):
        artifacts.open_store("config.artifacts", "s3://bucket/study")


def test_a_password_in_the_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = MemoryFileSystem(), "/bucket"
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: opened)

    store = artifacts.open_store("config.artifacts", "ftp://me:secret@host/study")

    assert store.url("k") == "ftp://me:***@host/study/k"


def test_a_snapshot_is_the_folder_of_one_moment(tmp_path: pathlib.Path) -> None:
    kept = {"results.json": b"1", "teachers/a/4/params/x": b"2", "metrics.jsonl": b"3"}
    left = ("lock", "profile/x", "teachers/a/8.saving/x", "students/damaged-4/x", "x.partial")
    folder = tmp_path / "run"
    for name, content in {**kept, **dict.fromkeys(left, b"-")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    state = snapshots.take(folder, tmp_path / "copy")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"more")

    assert _read(tmp_path / "copy") == kept
    assert state == snapshots.state(folder)  # The log does not count.
    assert state is not None
    assert set(state) == set(kept) - {"metrics.jsonl"}
    same = [tmp_path / name / "teachers/a/4/params/x" for name in ("run", "copy")]
    assert same[0].samefile(same[1])  # A link.


def test_a_folder_that_changes_meanwhile_is_read_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "run", one=b"1", two=b"1")
    changes = [b"2", b"3"]
    place = snapshots._place

    def changing(path: pathlib.Path, target: pathlib.Path) -> None:
        place(path, target)
        if changes:
            content = changes.pop(0)
            _write(folder, one=content, two=content)

    monkeypatch.setattr(snapshots, "_place", changing)

    assert snapshots.take(folder, tmp_path / "copy") == snapshots.state(folder)
    assert _read(tmp_path / "copy") == {"one": b"3", "two": b"3"}


def test_a_disk_without_links_gets_copies(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Any) -> None:
        raise PermissionError("no links")

    monkeypatch.setattr("os.link", refuse)
    folder = _write(tmp_path / "run", one=b"1")

    snapshots.take(folder, tmp_path / "copy")

    assert _read(tmp_path / "copy") == {"one": b"1"}
    assert not (tmp_path / "copy" / "one").samefile(folder / "one")
