"""Finding images in folders, and counting skipped files."""

import os
import pathlib
import socket
from collections import Counter

import pytest
from PIL import Image

from remem_jax.data.custom import folders, walk
from remem_jax.data.images import formats


def _walk(root: pathlib.Path, *, once: bool = False) -> tuple[list[str], Counter[str]]:
    skipped_files: Counter[str] = Counter()
    errors: list[OSError] = []
    images = walk.images(walk.entry_of(root), skipped_files, unlisted=errors.append, once=once)
    names = [os.path.relpath(image.path, root) for image in images]
    assert not errors
    return names, skipped_files


def test_skipped_files_are_counted_by_kind(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.PNG", "2.heic", "3.jfif", "a/4.gif", "5.tif", "6.avif", "7.pgm"):
        (tmp_path / name).touch()
    for name in ("a.txt", "B.TXT", "clip.mp4", "README", "x.0001", "y.png~", ".h.png", "._1.PNG"):
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "round.png").symlink_to("round.png")

    names, skipped_files = _walk(tmp_path)

    assert names == ["1.PNG", "2.heic", "3.jfif", "5.tif", "6.avif", "7.pgm", "a/4.gif"]
    assert skipped_files == {
        ".txt": 2,
        ".mp4": 1,
        "no suffix": 1,
        "other suffixes": 2,
        "hidden": 1,
        "left by other programs": 1,
        "link to nothing": 2,
    }


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))

    assert _walk(tmp_path) == ([], {"not a regular file": 3})


@pytest.mark.parametrize("once", [False, True])
def test_a_folder_with_several_links_is_walked_for_each_or_once(
    tmp_path: pathlib.Path, once: bool
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")

    names, skipped_files = _walk(tmp_path, once=once)

    assert names == (["a/1.png"] if once else ["a/1.png", "b/1.png"])
    assert skipped_files == {"link to a folder that was seen": 2}


@pytest.mark.parametrize(
    ("skipped_files", "empty", "text"),
    [
        ({}, (), ""),
        ({".tif": 10, ".jfif": 8}, (), "18 files skipped (.jfif: 8, .tif: 10)"),
        ({".txt": 1}, (), "1 file skipped (.txt: 1)"),
        ({}, ("owl",), "the class owl has no image"),
        (
            {".txt": 1234},
            ("owl", "e\n"),
            "1,234 files skipped (.txt: 1,234); the classes owl, e\\n have no image",
        ),
    ],
)
def test_skipped_files_are_summarised_in_one_line(
    skipped_files: dict[str, int], empty: tuple[str, ...], text: str
) -> None:
    assert walk.describe_skipped(skipped_files, empty) == text


def test_many_kinds_are_abbreviated() -> None:
    text = walk.describe_skipped({f".{i}a": 1 for i in range(100)}, tuple(map(str, range(100))))

    assert "88 other kinds" in text
    assert "88 more have no image" in text


def test_skipped_files_of_a_folder_are_logged(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "owl").mkdir()
    for name in ("owl/1.psd", "loose.png", "cat/notes.txt"):
        (tmp_path / name).touch()

    with caplog.at_level("WARNING", logger="absl"):
        source = folders.folder(str(tmp_path))

    assert source.empty_classes == ("owl",)
    assert source.skipped_files == {".psd": 1, ".txt": 1, "outside class folders": 1}
    assert caplog.messages == [
        f"{tmp_path.name}: 3 files skipped (.psd: 1, .txt: 1, outside class folders: 1); "
        "the class owl has no image"
    ]


# Reading.


def test_a_file_is_read_whole(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(b"all of it")
    (tmp_path / "b").symlink_to("a")

    assert formats.read(tmp_path / "b") == b"all of it"


def test_a_pipe_is_refused_without_waiting(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="not a regular file"):
        formats.read(tmp_path / "pipe")


def test_an_oversized_file_is_refused(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(formats.MAX_BYTES + 1)  # A sparse file takes no disk space.

    with pytest.raises(OSError, match=r"536,870,913 bytes, more than"):
        formats.read(tmp_path / "large")


def test_the_largest_image_fits_the_largest_file() -> None:
    assert 0 <= formats.MAX_BYTES - 3 * formats.MAX_PIXELS < 3
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == formats.MAX_PIXELS  # Pillow raises above it.


def test_every_format_has_a_decoder() -> None:
    Image.init()

    assert set(formats.FORMATS) <= set(Image.OPEN)
