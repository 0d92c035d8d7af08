"""The command `remem data`: its description of images, its page, and the list of data sets."""

import csv
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from remem_jax import commands
from remem_jax.commands import data as command
from remem_jax.data import registry
from remem_jax.data.images import decoding
from tests.data import tiny_tfds
from tests.data.inspection import photographs

ROOT = pathlib.Path(__file__).parents[2]
TILES = photographs.tiles(64)[20:60]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two classes, with a copy in test and an image that cannot be read."""
    root = tmp_path / "my_images"
    for i in range(8):
        place = root / ("train", "test")[i % 2] / ("cat", "dog")[i // 4]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").write_bytes(photographs.jpeg(TILES[i], 90))
    (root / "test/dog/copy.jpg").write_bytes(photographs.jpeg(TILES[0], 60))
    (root / "train/cat/empty.png").write_bytes(b"")
    return root


# A folder of images.


def test_the_text_names_counts_errors_and_duplicates(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(folder)]) == 0

    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "my_images: 10 images in 2 classes, of which 1 cannot be read"
    assert lines[3:5] == ["train 4 2 2 2", "test 5 2 2 3"]
    assert "Sizes: all 64 x 64 pixels." in lines
    assert f"{folder}/train/cat/empty.png: not an image" in lines
    heading = lines.index("Nearly the same picture, different labels, in train and test")
    assert lines[heading + 1 : heading + 3] == [
        f"train cat {folder}/train/cat/0.jpg",
        f"test dog {folder}/test/dog/copy.jpg",
    ]


def test_images_without_duplicates_have_none(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "test/dog/copy.jpg").unlink()

    command.main([str(folder)])

    assert capsys.readouterr().out.endswith("\nNo duplicates.\n")


def test_a_class_with_too_few_images_is_described_and_said_to_be_refused(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train/bird").mkdir()
    (folder / "train/bird/1.jpg").write_bytes(photographs.jpeg(TILES[20], 90))

    assert command.main([str(folder)]) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "Classes with one image: bird." in text
    assert "A run refuses these images: The class 'bird' has 1 training image;" in text


@pytest.mark.parametrize("kind", ["list", "arrays"])
def test_lists_and_arrays_are_described(
    kind: str, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(folder.glob("*/*/*.jpg"))
    if kind == "list":
        path = tmp_path / "my.csv"
        rows = (f"{file},{file.parent.name},{file.parts[-3]}" for file in files)
        path.write_text("\n".join(["path,label,split", *rows]))
    else:
        path = tmp_path / "my.npz"
        arrays = {}
        for split in ("train", "test"):
            of_split = [file for file in files if file.parts[-3] == split]
            pixels = [decoding.decode(file.read_bytes()) for file in of_split]
            arrays[f"{split}_image"] = np.stack(pixels)
            arrays[f"{split}_label"] = np.asarray(
                [file.parent.name == "dog" for file in of_split], int
            )
        np.savez(path, **arrays, classes=np.asarray(["cat", "dog"]))

    assert command.main([str(path)]) == 0

    text = capsys.readouterr().out
    assert text.startswith("my: 9 images in 2 classes\n")
    assert "  Nearly the same picture, different labels, in train and test\n" in text


def test_the_page_shows_duplicates_and_the_list_has_all(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "look" / "first"

    assert command.main([str(folder), f"--out={out}"]) == 0

    page = (out / "index.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert "<h3>Nearly the same picture, different labels, in train and test</h3>" in page
    assert f"{folder}/train/cat/empty.png: not an image" in page
    with (out / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["split"], row["label"], row["file"]) for row in rows] == [
        ("1", "train", "cat", f"{folder}/train/cat/0.jpg"),
        ("1", "test", "dog", f"{folder}/test/dog/copy.jpg"),
    ]


def test_names_on_the_page_are_escaped(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "<script>alert(1)<")

    command.main([str(folder), f"--out={tmp_path / 'look'}"])

    page = (tmp_path / "look" / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_the_page_does_not_go_into_the_folder_of_images(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(folder), f"--out={folder / 'look'}"]) == 1

    assert "lies in the folder of images" in capsys.readouterr().err
    assert not (folder / "look").exists()


def test_a_source_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["my_imags"]) == 1

    expected = "remem_jax: There is no folder, list or file of arrays 'my_imags'"
    assert capsys.readouterr().err.startswith(expected)


def test_a_bundled_data_set_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["digits"]) == 0

    assert capsys.readouterr().out.startswith("scikit-learn's digits: 1,797 images in 10 classes\n")


# The help.


def test_the_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.main(["data", "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: remem data")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_help_does_not_wait_for_imports() -> None:
    program = (
        "import sys; from remem_jax.commands import data\n"
        "try: data.main(['--help'])\n"
        "except SystemExit: print({'jax', 'numpy', 'imagehash'} & sys.modules.keys())"
    )

    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert process.stdout.endswith("set()\n")


# The data sets of the paper.


def _printed(data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert command.main(["--dir", str(data_dir)]) == 0
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
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed(tmp_path, capsys)

    rows = {line.split()[0]: line.split() for line in lines[1:17]}
    assert list(rows) == list(registry.RECORDS)
    assert " ".join(rows["sun397_tfds"][1:8]) == "train 76128 validation 10875 397 per class"
    assert all(row[-1] == "no" for row in rows.values())
    text = "\n".join(lines)
    assert "selects: validation 1880, since the paper neither trains nor tests on it" in text
    assert text.count("selects: held out of train, since") == 14
    assert [name for name, row in rows.items() if row[-3] == "no" or row[-4] == "no"] == ["svhn"]


def test_prepared_data_sets_are_shown_with_format_and_counts(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed(data_dir, capsys)

    rows = {line.split()[0]: line for line in lines[1:17]}
    assert rows["caltech101"].endswith("  array_record 3+3, not official")
    assert rows["pets"].endswith("  tfrecord 3+3, not official")
    assert rows["flowers102"].endswith("  damaged")
    assert rows["food101"].endswith("  no")


def test_a_prepared_data_set_can_be_described(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["pets", "--dir", str(data_dir)]) == 0

    text = capsys.readouterr().out
    assert "6 images in 37 classes" in text
    assert "3 groups of duplicates with 6 images" in text


def test_damaged_files_are_listed_after_the_table(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = data_dir.glob("caltech101/*/dataset_info.json")
    file.write_bytes(b"")

    command.main(["--dir", str(data_dir)])

    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"remem_jax: {file} cannot be read: it is empty; copy it again")
    assert len(errors) == 2  # The second is about Flowers, which lacks a split.


def test_a_remote_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dir", "s3://bucket/tfds"]) == 1
    assert capsys.readouterr().err.startswith("remem_jax: s3://bucket/tfds is not a local folder")


def test_assumptions_and_licences_follow(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(" ".join(_printed(tmp_path, capsys)).split())

    for record in registry.RECORDS.values():
        assert record.tfds in text
        assert record.licence in text
        assert record.note in text


def test_the_table_fits_a_page(data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _printed(data_dir, capsys)

    assert max(len(line) for line in lines) <= 130
    assert max(len(line) for line in lines[20:]) <= 100  # Below the lines with the folder.


@pytest.mark.slow
def test_the_command_runs_from_the_command_line(tmp_path: pathlib.Path) -> None:
    program = "import sys; from remem_jax import commands; sys.exit(commands.main())"

    process = subprocess.run(
        [sys.executable, "-c", program, "data", "--dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=ROOT,
    )

    assert process.stdout.startswith("name ")
    assert process.stderr == ""
