"""Exports replace existing files only if remem_jax wrote them."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.export import destinations, predictions
from remem_jax.storage import checkpoints, results

RECORD = {"metadata": {"model": "m"}, "check": {}}


def tree(folder: pathlib.Path, value: float) -> None:
    checkpoints.save_tree(folder, {"a": np.full(3, value, np.float32)})


def file(path: pathlib.Path, value: float) -> None:
    path.write_text(f"export {value}")


MAKE: dict[str, Callable[[pathlib.Path, float], None]] = {"file": file, "tree": tree}


def put(path: pathlib.Path, kind: str, value: float) -> dict[str, Any]:
    with destinations.workspace(path) as folder:
        MAKE[kind](folder / "new", value)
        return destinations.put(folder / "new", path, {**RECORD, "value": value})


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Returns the content of each file in a folder; for a link, its target."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode()  # noqa: PTH115
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a run and typical user files beside it."""
    for name in ("config.json", "results.json", "inputs.json", "report.html", "metrics.jsonl"):
        results.write(tmp_path / "run" / name, {})
    for name in (
        *("run/selected/remem_student.safetensors", "run/teachers/a", "run/students/a"),
        *("thesis.txt", "theirs.onnx", "theirs.tree/a", "full/a/b.txt", "model.json"),
        *("ours.onnx.txt", "found.csv", "found.json", "theirs.csv.partial"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{{}} what was in {name}")
    (tmp_path / "link.onnx").symlink_to("thesis.txt")
    (tmp_path / "loose.onnx").symlink_to("nothing")
    (tmp_path / "link").symlink_to("full")
    os.mkfifo(tmp_path / "pipe")
    put(tmp_path / "ours.tree", "tree", 1)
    (tmp_path / "ours.tree" / "thesis.txt").write_text("kept in the tree")
    put(tmp_path / "edited.onnx", "file", 1)
    (tmp_path / "edited.onnx").write_text("edited since")
    put(tmp_path / "gone.onnx", "file", 1)
    (tmp_path / "gone.onnx").rename(tmp_path / "moved.onnx")
    return tmp_path


PLACES = (
    *("run", "run/selected", "run/selected/remem_student.safetensors", "run/selected/new"),
    *("run/results.json", "run/results", "run/config", "run/inputs", "run/report.html", "run/lock"),
    *("run/teachers/new", "run/students_1_to_2", "run/export", "run/selected/../selected/new"),
    *("full/../run/selected/new", "thesis.txt", "thesis.txt/new", "theirs.onnx", "theirs.tree"),
    *("full", "full/a", "model", ".", "..", "/", "link.onnx", "loose.onnx", "link", "pipe"),
    *("ours.tree", "ours.onnx", "edited.onnx", "moved.onnx", "/dev/null", "x" * 300),
)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_existing_foreign_files_are_kept(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: bool
) -> None:
    monkeypatch.chdir(place)
    (place / "ours.onnx.json").write_text("[]")  # Not a record.
    before = contents(place)

    with pytest.raises(SettingError, match="set --out") as raised:
        destinations.require_replaceable(pathlib.Path(name), folder=folder)

    assert "\n" not in str(raised.value)
    assert contents(place) == before


@pytest.mark.parametrize("name", ["run/export/new", "run/new", "new", "a/b/new", "gone.onnx"])
def test_a_new_path_is_accepted(place: pathlib.Path, name: str) -> None:
    destinations.require_replaceable(place / name, folder=False)


@pytest.mark.parametrize(
    "name",
    [
        *("run/selected/new.csv", "run/results.json", "run", "thesis.txt", "found.csv"),
        *(
            "found.json",
            "full",
            ".",
            "/",
            "link.onnx",
            "link",
            "pipe",
            "/dev/stdout",
            "theirs.onnx",
        ),
    ],
)
def test_predictions_replace_only_predictions(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(place)
    before = contents(place)

    with pytest.raises(SettingError, match="set --out"):
        predictions.require_writable(pathlib.Path(name))

    assert contents(place) == before


@pytest.mark.parametrize("kind", MAKE)
def test_an_export_replaces_the_previous_one(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "out" / "student"
    put(path, kind, 1)

    record = put(path, kind, 2)

    assert destinations.read_record(path) == record
    assert json.loads(destinations.record_path(path).read_text()) == record
    assert record["value"] == 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["student", "student.json"]


class Killed(BaseException):
    """Simulates a killed process: nothing after it is executed."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Returns a function that simulates a kill before the nth rename or removal."""
    real = {name: getattr(pathlib.Path, name) for name in ("replace", "rename", "unlink")}

    def arm(kill_index: int) -> None:
        count = iter(range(1, 100))

        def guarded(name: str) -> Callable[..., Any]:
            def call(self: pathlib.Path, *rest: Any, **named: Any) -> Any:
                if next(count) >= kill_index:
                    raise Killed
                return real[name](self, *rest, **named)

            return call

        for name in real:
            monkeypatch.setattr(pathlib.Path, name, guarded(name))
        monkeypatch.setattr(destinations.shutil, "rmtree", lambda *rest, **named: None)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("kill_index", range(1, 8))
def test_a_kill_leaves_an_export_with_its_record(
    tmp_path: pathlib.Path,
    kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    kill_index: int,
) -> None:
    path = tmp_path / "student.onnx"
    put(path, "file", 1)

    kill_at(kill_index)
    try:
        put(path, "file", 2)
    except Killed:
        assert kill_index < 7  # Two per record; the first of them is in `results.write`.
    monkeypatch.undo()

    record = destinations.read_record(path)
    assert path.read_text() == f"export {record['value']}"
    put(path, "file", 3)  # The export may still be replaced.
    assert destinations.read_record(path)["value"] == 3


@pytest.mark.parametrize("kill_index", [1, 2, 3])
def test_a_signal_between_two_renames_leaves_the_old_tree(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kill_index: int
) -> None:
    path = tmp_path / "student.tree"
    put(path, "tree", 1)
    with destinations.workspace(path) as folder:
        tree(folder / "new", 2)
        rename, count = pathlib.Path.rename, iter(range(1, 100))

        def interrupted(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
            if next(count) == kill_index:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(pathlib.Path, "rename", interrupted)
        try:
            destinations.put(folder / "new", path, {**RECORD, "value": 2})
        except KeyboardInterrupt:
            assert kill_index <= 2
    monkeypatch.undo()

    expected = 1 if kill_index <= 2 else 2
    assert destinations.read_record(path)["value"] == expected
    like = {"a": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(checkpoints.load_tree(path, like)["a"], np.full(3, expected))


def test_an_old_record_without_a_hash_is_matched_by_size(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_text("export of old")
    record = {**RECORD, "bytes": len("export of old")}
    results.write(destinations.record_path(path), record)

    assert put(path, "file", 2)["value"] == 2
