"""What is recorded about images, and in which order duplicates come."""

import io
import pathlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data.custom import class_names
from remem_jax.data.inspection import duplicates, images, summary
from remem_jax.data.inspection.summary import Inspection
from tests.data.inspection import photographs
from tests.export import pictures

COLOURS = {
    "1": "black and white",
    "L": "grey",
    "L, one grey transparent": "grey with alpha",
    "LA": "grey with alpha",
    "P": "palette",
    "P, one colour transparent": "palette with alpha",
    "PA": "palette with alpha",
    "RGB": "RGB",
    "RGB, one colour transparent": "RGB with alpha",
    "RGBA": "RGB with alpha",
    "I;16": "grey of 16 bits",
    "I;16 in TIFF": "grey of 16 bits",
    "JPEG, grey": "grey",
    "CMYK": "CMYK",
    "GIF": "palette",
    "WebP, RGBA": "RGB with alpha",
}


def _write(root: pathlib.Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _inspect(root: pathlib.Path, *, enough: bool = True) -> Inspection:
    source = data.open_source("folder", path=str(root), data_dir="", enough=enough)
    return summary.inspect(source, threads=2)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


TILES = photographs.tiles(64)[20:60]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Twelve different photographs in two classes and three splits."""
    for i in range(12):
        split = ("train", "train", "validation", "test")[i % 4]
        name = f"{split}/{('cat', 'dog')[i // 6]}/{i:02}.jpg"
        _write(tmp_path, name, photographs.jpeg(TILES[i], 90))
    return tmp_path


@pytest.mark.parametrize("mode", COLOURS)
def test_the_colour_mode_is_that_of_the_file(mode: str) -> None:
    with Image.open(io.BytesIO(pictures.encoded(mode))) as image:
        assert images.colour(image) == COLOURS[mode]


def test_formats_sizes_and_orientations_are_counted(folder: pathlib.Path) -> None:
    _write(folder, "train/cat/turned.jpg", pictures.encoded("JPEG, turned by EXIF"))
    _write(folder, "train/cat/png.jpg", pictures.encoded("RGB"))  # By its content, not its name.

    found = _inspect(folder)

    assert summary.forms(found) == Counter({"JPEG": 13, "PNG": 1})
    assert summary.sizes(found) == summary.Sizes((60, 64, 90), (60, 64, 90), 3)
    assert summary.turned(found) == 1


def test_classes_are_counted_by_split(folder: pathlib.Path) -> None:
    _write(folder, "test/bird/only.jpg", photographs.jpeg(TILES[20], 90))

    found = _inspect(folder)

    assert found.source.classes == ("bird", "cat", "dog")
    counts = {name: count.tolist() for name, count in summary.counts(found).items()}
    assert counts == {"train": [0, 4, 2], "validation": [0, 1, 2], "test": [1, 1, 2]}
    assert summary.single(found) == ["bird"]


def test_unreadable_images_have_their_reason(folder: pathlib.Path) -> None:
    whole = photographs.jpeg(TILES[30], 90)
    _write(folder, "train/cat/half.jpg", whole[: len(whole) // 2])
    _write(folder, "test/dog/text.png", b"no image")

    found = _inspect(folder)

    assert [
        (image.split, pathlib.Path(image.name).name) for image in summary.unreadable(found)
    ] == [
        ("train", "half.jpg"),
        ("test", "text.png"),
    ]
    assert [image.error for image in summary.unreadable(found)][1] == "not an image"
    assert sum(count.sum() for count in summary.counts(found).values()) == 12


def test_images_are_listed_even_if_a_run_would_refuse_them(tmp_path: pathlib.Path) -> None:
    for i in range(5):
        _write(tmp_path, f"cat/{i}.jpg", photographs.jpeg(TILES[i], 90))
    _write(tmp_path, "dog/only.jpg", photographs.jpeg(TILES[5], 90))

    with pytest.raises(class_names.TooFewImagesError, match="'dog' has 1 image;"):
        _inspect(tmp_path)

    assert summary.single(_inspect(tmp_path, enough=False)) == ["dog"]


def test_different_photographs_have_no_duplicates(folder: pathlib.Path) -> None:
    assert _inspect(folder).groups == []


def test_conflicting_labels_come_first_and_then_splits(folder: pathlib.Path) -> None:
    file = photographs.jpeg(TILES[21], 90)
    _write(folder, "train/cat/a.jpg", file)
    _write(folder, "train/cat/b.jpg", file)  # The same file, twice in a class.
    pixels = photographs.reencoded(TILES[22], 90)
    _write(folder, "train/dog/c.jpg", photographs.jpeg(TILES[22], 90))
    _write(folder, "test/dog/d.png", _png(pixels))  # The same pixels, in two splits.
    _write(folder, "train/cat/e.jpg", photographs.jpeg(TILES[23], 95))
    _write(folder, "train/dog/f.jpg", photographs.jpeg(TILES[23], 60))  # Another label.

    found = _inspect(folder)

    names = [
        (group.kind, [pathlib.Path(image.name).name for image in found.members(group)])
        for group in found.groups
    ]
    assert names == [
        (duplicates.NEAR, ["e.jpg", "f.jpg"]),
        (duplicates.PIXELS, ["c.jpg", "d.png"]),
        (duplicates.FILES, ["a.jpg", "b.jpg"]),
    ]


def test_arrays_are_inspected_as_files_are(tmp_path: pathlib.Path) -> None:
    pixels = np.stack(TILES[:8])
    labels = np.arange(8) % 2
    path = tmp_path / "images.npz"
    np.savez(
        path,
        train_image=pixels,
        train_label=labels,
        test_image=pixels[[3, 5]],
        test_label=labels[[3, 4]],
        classes=np.asarray(["cat", "dog"]),
    )

    found = summary.inspect(data.open_source("arrays", path=str(path), data_dir=""), threads=1)

    assert summary.forms(found) == Counter({images.ARRAY: 10})
    assert [[image.name for image in found.members(group)] for group in found.groups] == [
        ["train image 5", "test image 1"],  # Class 1 in train, class 0 in test.
        ["train image 3", "test image 0"],
    ]


def test_a_folder_without_a_readable_image_is_an_error(tmp_path: pathlib.Path) -> None:
    for name in ("cat", "dog"):
        for i in range(3):
            _write(tmp_path, f"{name}/{i}.jpg", b"no image")

    with pytest.raises(SettingError, match=r"can be read \(the first: not an image\): give others"):
        _inspect(tmp_path)
