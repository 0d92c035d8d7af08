"""The folder for the GPU machine: its size, its integrity, and the use of its wheels."""

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


def test_a_complete_folder_is_accepted(tmp_path: pathlib.Path) -> None:
    assert list(packing.read(packed(tmp_path))["files"]) == ["weights.npz"]


@pytest.mark.parametrize("change", ["cut", "missing"])
def test_an_incomplete_folder_is_refused(tmp_path: pathlib.Path, change: str) -> None:
    path = packed(tmp_path) / "weights.npz"
    path.unlink() if change == "missing" else path.write_bytes(b"weigh")
    with pytest.raises(packing.PackingError, match=r"not as it was packed: weights\.npz; copy"):
        packing.read(tmp_path)


def test_a_folder_without_its_manifest_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(packing.PackingError, match=r"manifest\.json is missing: make the folder"):
        packing.read(tmp_path)


def test_a_folder_that_is_too_large_is_refused_with_its_largest_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LIMIT_MIB", 1.0)
    packed(tmp_path, b"0" * 2**21)
    with pytest.raises(packing.PackingError, match=r"takes 2\.0 MiB, 1 at .*weights\.npz 2\.0"):
        packing._require_small(tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: pathlib.Path) -> None:
    contents = packing.Contents("bundled:Ti/16", ("digits", "", ""), 32, 0, ())
    with pytest.raises(packing.PackingError, match="is not empty"):
        packing.pack(packed(tmp_path), contents, {})


def test_missing_packages_are_named_with_their_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_is_found", lambda module: module not in ("matplotlib", "flax"))
    assert packing.lacking() == ["flax (for everything)", "matplotlib (for the mini Table 10)"]


def test_wheels_are_used_only_for_packages_that_are_not_installed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / packing.WHEELS).mkdir()
    for name in ("not_installed", "numpy"):
        with zipfile.ZipFile(
            tmp_path / packing.WHEELS / f"{name}-1.0-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr(f"{name}/__init__.py", "from_wheel = True")

    added = packing.add_wheels(tmp_path, tmp_path / "site")

    assert added == ["not_installed"]
    import not_installed  # pyright: ignore[reportMissingImports]
    import numpy

    assert not_installed.from_wheel
    assert not hasattr(numpy, "from_wheel")
