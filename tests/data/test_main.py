"""The command that prints the table of data sets."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from remem_jax.data import __main__ as table
from remem_jax.data import registry
from tests.data import tiny_tfds


def _printed(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["data", "--dir", str(data_dir)])

    assert table.main() == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def data_dir(tmp_path: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """A TFDS folder: Caltech-101 as array_record, Pets as TFRecord, Flowers without one split."""
    examples = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), np.arange(3)
    splits = {"train": examples, "test": examples}
    tiny_tfds.write("caltech101:3.*.*", tmp_path, splits)
    pets = tiny_tfds.write("oxford_iiit_pet:4.*.*", tmp_path, splits)
    aside = pets.rename(tmp_path / "aside")
    tiny_tfds.as_tfrecord(aside, pets)
    tiny_tfds.write("oxford_flowers102:2.*.*", tmp_path, {"train": examples})
    return tmp_path


def test_every_data_set_has_its_row(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed(tmp_path, monkeypatch, capsys)

    rows = {line.split()[0]: line.split() for line in lines[1:17]}
    assert list(rows) == list(registry.RECORDS)
    assert " ".join(rows["sun397_tfds"][1:8]) == "train 76128 validation 10875 397 per class"
    assert all(row[-1] == "no" for row in rows.values())
    assert [name for name, row in rows.items() if row[-3] == "no" or row[-4] == "no"] == ["svhn"]


def test_prepared_data_sets_are_shown_with_format_and_counts(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed(data_dir, monkeypatch, capsys)

    rows = {line.split()[0]: line for line in lines[1:17]}
    assert rows["caltech101"].endswith("  array_record 3+3, not official")
    assert rows["pets"].endswith("  tfrecord 3+3, not official")
    assert rows["flowers102"].endswith("  damaged")
    assert rows["food101"].endswith("  no")


def test_damaged_files_are_listed_after_the_table(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = data_dir.glob("caltech101/*/dataset_info.json")
    file.write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["data", "--dir", str(data_dir)])

    table.main()

    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"remem_jax: {file} cannot be read: it is empty; copy it again")
    assert len(errors) == 2  # The second is about Flowers, which lacks a split.


def test_a_remote_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data", "--dir", "s3://bucket/tfds"])

    assert table.main() == 1
    assert capsys.readouterr().err.startswith("remem_jax: s3://bucket/tfds is not a local folder")


def test_assumptions_and_licences_follow(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(" ".join(_printed(tmp_path, monkeypatch, capsys)).split())

    for record in registry.RECORDS.values():
        assert record.tfds in text
        assert record.licence in text
        assert record.note in text


def test_the_table_fits_a_page(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed(data_dir, monkeypatch, capsys)

    assert max(len(line) for line in lines) <= 130
    assert max(len(line) for line in lines[20:]) <= 100  # Below the lines with the folder.


@pytest.mark.slow
def test_the_module_runs_from_the_command_line(tmp_path: pathlib.Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "remem_jax.data", "--dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )

    assert process.stdout.startswith("name ")
    assert process.stderr == ""
