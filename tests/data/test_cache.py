"""The scan cache: its content, and that kills, damage and concurrent writers cannot corrupt it."""

import errno
import io
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remem_jax.checks import SettingError
from remem_jax.data import cache, sources
from remem_jax.data.images import decoding
from remem_jax.data.scan import ScanOptions, ScanResult, TooManyCorruptError
from remem_jax.storage import locks

OPTIONS = ScanOptions(stored_size=16, pixels=True, max_bytes=10**6, corrupt_limit=0)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _noise(rng: np.random.Generator, *shapes: tuple[int, int]) -> list[np.ndarray]:
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def _split(images: Sequence[bytes | np.ndarray], key: str = "key") -> sources.Split:
    return sources.Split(
        lambda i: sources.Example(images[i], i % 3), "image {}".format, len(images), None, key
    )


@pytest.fixture
def images(rng: np.random.Generator) -> list[np.ndarray]:
    """Seven images of the same size."""
    return _noise(rng, *[(4, 6)] * 7)


def _scan(split: sources.Split, folder: pathlib.Path, **options: Any) -> ScanResult:
    return cache.scan_split(
        split, OPTIONS._replace(**options), title="Noise", folder=folder, threads=2
    )


def _stored(result: ScanResult) -> np.ndarray:
    assert result.pixels is not None
    return np.asarray(result.pixels)


def _read_cached(split: sources.Split, folder: pathlib.Path, **options: Any) -> ScanResult:
    """Scans like `_scan`, but fails if an image is decoded."""

    def decode(*args: object, **kwargs: object) -> np.ndarray:
        raise AssertionError("decoded again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode", decode)
        return _scan(split, folder, **options)


# Cached images.


@pytest.mark.parametrize("key", ["key", ""], ids=["on disk", "in memory"])
def test_images_of_one_size_are_cached_unchanged(
    images: list[np.ndarray], tmp_path: pathlib.Path, key: str
) -> None:
    result = _scan(_split([_png(image) for image in images], key), tmp_path)

    np.testing.assert_array_equal(_stored(result), images)
    np.testing.assert_array_equal(result.labels, np.arange(7) % 3)
    np.testing.assert_array_equal(result.kept, range(7))
    assert not result.resized


@pytest.mark.parametrize("key", ["key", ""], ids=["on disk", "in memory"])
@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 6), (4, 6), (5, 5), (4, 6)],
        [(4, 6), (40, 5), (4, 6)],
        [(40, 5), (4, 6)],
        [(4, 20), (4, 20)],
        [(16, 16), (16, 16), (4, 4)],
        [(4, 4), (16, 16), (4, 4)],
    ],
    ids=["two sizes", "one too high", "the first too high", "all too wide", "as stored", "late"],
)
def test_images_of_several_sizes_are_resized_to_squares_like_pillow(
    rng: np.random.Generator, tmp_path: pathlib.Path, shapes: list[tuple[int, int]], key: str
) -> None:
    images = _noise(rng, *shapes)

    result = _scan(_split([_png(image) for image in images], key), tmp_path)

    squares = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR), np.int32)
        for image in images
    ]
    assert np.abs(_stored(result) - squares).max() <= 1
    assert result.resized
    np.testing.assert_array_equal(result.shapes, shapes)  # The sizes in the files.


def test_arrays_are_cached_too(images: list[np.ndarray], tmp_path: pathlib.Path) -> None:
    np.testing.assert_array_equal(_stored(_scan(_split(images, ""), tmp_path)), images)


def test_a_scan_without_pixels_differs_in_nothing_else(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images])

    result = _scan(split, tmp_path / "one", pixels=False)

    assert result.pixels is None
    other = _scan(split, tmp_path / "two")
    assert result.digest == other.digest
    np.testing.assert_array_equal(result.labels, other.labels)


@pytest.mark.parametrize("shapes", [[(4, 6)] * 7, [(4, 6)] * 6 + [(5, 5)]])
def test_pixels_beyond_the_limit_are_not_cached(
    rng: np.random.Generator, tmp_path: pathlib.Path, shapes: list[tuple[int, int]]
) -> None:
    size = 7 * (4 * 6 if shapes[-1] == (4, 6) else 16 * 16) * 3
    split = _split([_png(image) for image in _noise(rng, *shapes)])

    assert _scan(split, tmp_path / "one", max_bytes=size - 1).pixels is None
    assert _scan(split, tmp_path / "two", max_bytes=size).pixels is not None


# Corrupt images.


def test_corrupt_images_are_listed_and_skipped(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    encoded = [_png(image) for image in images]
    encoded[2], encoded[5] = b"no image", encoded[5][:60]

    result = _scan(_split(encoded), tmp_path, corrupt_limit=2)

    np.testing.assert_array_equal(result.kept, [0, 1, 3, 4, 6])
    np.testing.assert_array_equal(result.labels, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(_stored(result), [images[i] for i in (0, 1, 3, 4, 6)])
    assert [line.partition(":")[0] for line in result.corrupt] == ["image 2", "image 5"]


def test_more_corrupt_images_than_allowed_are_refused(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(images[0]), b"no image", b""])

    with pytest.raises(TooManyCorruptError, match=r"image 1: .*image 2: "):
        _scan(split, tmp_path, corrupt_limit=1)


def test_a_lower_limit_of_corrupt_images_applies_to_a_cached_scan(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(images[0]), b"no image"])
    _scan(split, tmp_path, corrupt_limit=1)

    with pytest.raises(TooManyCorruptError, match="image 1: "):
        _read_cached(split, tmp_path, corrupt_limit=0)


@pytest.mark.parametrize("pixels", [True, False])
def test_a_truncated_jpeg_is_detected_with_and_without_cached_pixels(
    rng: np.random.Generator, tmp_path: pathlib.Path, pixels: bool
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_noise(rng, (200, 300))[0]).save(buffer, "JPEG")

    result = _scan(_split([buffer.getvalue()[:-200]]), tmp_path, corrupt_limit=1, pixels=pixels)

    assert len(result.corrupt) == 1


# Cache hits and misses.


def test_nothing_is_decoded_twice(images: list[np.ndarray], tmp_path: pathlib.Path) -> None:
    split = _split([_png(image) for image in images])
    first = _scan(split, tmp_path)

    again = _read_cached(split, tmp_path)

    np.testing.assert_array_equal(_stored(again), _stored(first))
    assert again.digest == first.digest


def test_a_scan_with_pixels_serves_a_scan_without_them(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path)

    assert _read_cached(split, tmp_path, pixels=False).pixels is None


def test_pixels_over_the_limit_are_not_decoded_again(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path, max_bytes=10)

    assert _read_cached(split, tmp_path, max_bytes=10).pixels is None


def test_pixels_are_added_to_a_scan_that_lacks_them(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path, pixels=False)

    np.testing.assert_array_equal(_stored(_scan(split, tmp_path)), images)


@pytest.mark.parametrize("change", [{"key": "other"}, {"stored_size": 5}])
def test_other_data_and_other_sizes_are_scanned_again(
    images: list[np.ndarray], tmp_path: pathlib.Path, change: dict[str, Any]
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path)
    split = split._replace(key=change.pop("key", split.key))

    with pytest.raises(AssertionError, match="decoded again"):
        _read_cached(split, tmp_path, **change)


@pytest.mark.parametrize("changed", [0, 3, 6])
def test_different_images_under_the_same_key_are_noticed(
    images: list[np.ndarray], tmp_path: pathlib.Path, changed: int
) -> None:
    encoded = [_png(image) for image in images]
    _scan(_split(encoded), tmp_path)
    images[changed] = 255 - images[changed]
    encoded[changed] = _png(images[changed])

    result = _scan(_split(encoded), tmp_path)

    np.testing.assert_array_equal(_stored(result), images)
    assert result.digest == _scan(_split(encoded, "afresh"), tmp_path).digest


def test_a_missing_image_is_noticed(images: list[np.ndarray], tmp_path: pathlib.Path) -> None:
    encoded = [_png(image) for image in images]
    _scan(_split(encoded), tmp_path)

    result = _scan(_split([*encoded[:6], b""]), tmp_path, corrupt_limit=1)

    assert len(result.corrupt) == 1


def test_many_images_are_verified_by_a_sample(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images] * 50)
    _scan(split, tmp_path)
    rows: list[int] = []

    def read(i: int) -> sources.Example:
        rows.append(i)
        return split.read(i)

    _read_cached(split._replace(read=read), tmp_path)

    assert len(rows) == 64
    assert (rows[0], rows[-1]) == (0, 349)


def test_the_digest_depends_on_the_content_only(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    encoded = [_png(image) for image in images]
    digest = _scan(_split(encoded), tmp_path).digest

    assert _scan(_split(encoded, "moved"), tmp_path).digest == digest
    assert _scan(_split([*encoded[:6], encoded[0]], "changed"), tmp_path).digest != digest


# Damage.


def test_sizes_digests_and_thumbnails_are_cached(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    split = _split([_png(image) for image in images])

    first, second = (_scan(split, tmp_path) for _ in range(2))

    for name in ("shapes", "digests", "thumbnails"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    resized = [np.asarray(decoding.resize(image, 8)).ravel() for image in images]
    np.testing.assert_array_equal(second.thumbnails, resized)


@pytest.mark.parametrize("name", ["about.json", "index.npz", "pixels.bin"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "lost"])
def test_a_damaged_entry_is_replaced(
    images: list[np.ndarray], tmp_path: pathlib.Path, name: str, damage: str
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path)
    (path,) = tmp_path.glob(f"*/{name}")
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 9 if damage == "cut" else 0])

    result = _scan(split, tmp_path)

    np.testing.assert_array_equal(_stored(result), images)
    np.testing.assert_array_equal(_stored(_read_cached(split, tmp_path)), images)


def test_the_error_names_a_folder_that_is_not_writable(
    images: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingError, match=r"file/cache.*config\.data\.cache"):
        _scan(_split(images), tmp_path / "file" / "cache")


def test_a_full_disk_is_reported_and_leaves_no_partial_entry(
    images: list[np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_flush", flush)

    with pytest.raises(SettingError, match=r"No space left.*config\.data\.cache"):
        _scan(_split([_png(image) for image in images]), tmp_path)

    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


# A read-only cache, and a cache without file locks.


def _deny(path: pathlib.Path, *_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_an_entry_in_another_users_cache_is_read(
    images: list[np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = _split([_png(image) for image in images])
    _scan(split, tmp_path)
    monkeypatch.setattr(locks, "held", _deny)

    np.testing.assert_array_equal(_stored(_read_cached(split, tmp_path)), images)


def test_other_images_in_another_users_cache_are_not_used(
    images: list[np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scan(_split([_png(255 - image) for image in images]), tmp_path)
    monkeypatch.setattr(locks, "held", _deny)

    result = _scan(_split([_png(image) for image in images]), tmp_path)

    np.testing.assert_array_equal(_stored(result), images)


@pytest.mark.parametrize("made", [True, False])
def test_a_scan_that_cannot_be_cached_stays_in_memory_with_a_warning(
    made: bool,
    images: list[np.ndarray],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(*((locks, "held") if made else (pathlib.Path, "mkdir")), _deny)

    result = _scan(_split([_png(image) for image in images]), tmp_path / "cache")

    np.testing.assert_array_equal(_stored(result), images)
    assert "set config.data.cache to" in caplog.text


def test_images_of_several_sizes_are_resized_in_memory_too(
    rng: np.random.Generator, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = _split([_png(image) for image in _noise(rng, (4, 6), (4, 6), (30, 20))])
    expected = _stored(_scan(split, tmp_path))
    monkeypatch.setattr(locks, "held", _deny)

    np.testing.assert_array_equal(_stored(_scan(split, tmp_path / "other")), expected)


def test_the_default_cache_follows_its_variable_and_needs_no_home(
    images: list[np.ndarray],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "null").touch()
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "null" / "cache"))

    result = _scan(_split([_png(image) for image in images]), cache.folder(""))

    np.testing.assert_array_equal(_stored(result), images)
    assert "set REMEM_CACHE to" in caplog.text


@pytest.mark.parametrize("there", [False, True])
def test_without_locks_the_first_complete_entry_wins(
    there: bool, images: list[np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, rename = _split([_png(image) for image in images]), pathlib.Path.rename

    def rename_second(partial: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
        if there:
            shutil.copytree(partial, place)  # By another machine.
        return rename(partial, place)

    monkeypatch.setattr(locks, "_lock_error", lambda *_, **__: OSError(errno.ENOLCK, "No locks"))
    monkeypatch.setattr(pathlib.Path, "rename", rename_second)

    np.testing.assert_array_equal(_stored(_scan(split, tmp_path)), images)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


# Several processes.

# Scans 40 images; decoding takes 10 ms each and is logged.
_CHILD = """
import io, pathlib, sys, time
import numpy as np
from PIL import Image
from remem_jax.data import cache, sources
from remem_jax.data.images import decoding
from remem_jax.data.scan import ScanOptions

folder, decoded = map(pathlib.Path, sys.argv[1:])
decode = decoding.decode

def noted(encoded, **options):
    with decoded.open("a") as file:
        file.write("one\\n")
    time.sleep(0.01)
    return decode(encoded, **options)

decoding.decode = noted

def read(i):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(buffer, "PNG")
    return sources.Example(buffer.getvalue(), i)

split = sources.Split(read, str, 40, None, "key")
options = ScanOptions(stored_size=16, pixels=True, max_bytes=10**6, corrupt_limit=0)
result = cache.scan_split(split, options, title="Noise", folder=folder, threads=1)
print(result.pixels[:, 0, 0, 0].tolist() == list(range(40)), result.digest)
"""


def _child(tmp_path: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "cache"), str(tmp_path / "decoded")]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def _decoded(tmp_path: pathlib.Path) -> int:
    path = tmp_path / "decoded"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_two_processes_share_one_scan(tmp_path: pathlib.Path) -> None:
    children = [_child(tmp_path) for _ in range(2)]

    printed = [child.communicate(timeout=200)[0] for child in children]

    assert printed[0].startswith("True")
    assert printed[0] == printed[1]
    assert _decoded(tmp_path) == 40


@pytest.mark.parametrize("after", [1, 35])
def test_a_kill_leaves_no_partial_entry(tmp_path: pathlib.Path, after: int) -> None:
    child = _child(tmp_path)
    while _decoded(tmp_path) < after:
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    killed_after = _decoded(tmp_path)

    printed = _child(tmp_path).communicate(timeout=200)[0]

    assert printed.startswith("True")
    assert _decoded(tmp_path) == killed_after + 40
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_the_cached_image_equals_the_image_decoded_alone(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_noise(rng, (12, 9))[0]).save(buffer, "JPEG")

    result = _scan(_split([buffer.getvalue()]), tmp_path)

    np.testing.assert_array_equal(_stored(result)[0], decoding.decode(buffer.getvalue()))
