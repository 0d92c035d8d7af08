"""What travels: small enough, whole when it arrives, and used only where it is missing."""

import json
import pathlib
import sys
import zipfile

import pytest

from tools.gpu import packing


def packed(folder: pathlib.Path, content: bytes = b"weights") -> pathlib.Path:
    (folder / "weights.npz").write_bytes(content)
    files = {"weights.npz": packing._digest(folder / "weights.npz")}
    (folder / packing.MANIFEST).write_text(json.dumps({"files": files}))
    return folder


def test_a_folder_that_arrived_whole_is_taken(tmp_path: pathlib.Path) -> None:
    assert list(packing.read(packed(tmp_path))["files"]) == ["weights.npz"]


@pytest.mark.parametrize("change", ["cut", "missing"])
def test_a_folder_that_did_not_is_refused(tmp_path: pathlib.Path, change: str) -> None:
    path = packed(tmp_path) / "weights.npz"
    path.unlink() if change == "missing" else path.write_bytes(b"weigh")
    with pytest.raises(packing.PackingError, match=r"not as it was packed: weights\.npz; copy"):
        packing.read(tmp_path)


def test_a_folder_without_its_manifest_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(packing.PackingError, match=r"manifest\.json is missing: make the folder"):
        packing.read(tmp_path)


def test_what_is_too_large_is_named_with_its_size(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LIMIT_MIB", 1.0)
    packed(tmp_path, b"0" * 2**21)
    with pytest.raises(packing.PackingError, match=r"takes 2\.0 MiB, 1 at .*weights\.npz 2\.0"):
        packing._require_small(tmp_path)


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: pathlib.Path) -> None:
    contents = packing.Contents("bundled:Pico/8", ("digits", "", ""), 32, 0, ())
    with pytest.raises(packing.PackingError, match="is not empty"):
        packing.pack(packed(tmp_path), contents, {})


def test_what_does_not_travel_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_is_found", lambda module: module not in ("matplotlib", "flax"))
    assert packing.lacking() == ["flax (for everything)", "matplotlib (for the mini Table 10)"]


def test_wheels_are_used_where_nothing_is_installed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / packing.WHEELS).mkdir()
    for name in ("not_there_yet", "numpy"):
        with zipfile.ZipFile(tmp_path / packing.WHEELS / f"{name}-1.0-py3-none-any.whl", "w") as it:
            it.writestr(f"{name}/__init__.py", "carried = True")

    added = packing.add_wheels(tmp_path, tmp_path / "site")

    assert added == ["not_there_yet"]
    import not_there_yet  # pyright: ignore[reportMissingImports]
    import numpy

    assert not_there_yet.carried
    assert not hasattr(numpy, "carried")
