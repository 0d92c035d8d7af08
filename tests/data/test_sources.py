"""Sources of images: what is decoded, what is found, what is refused."""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets as sklearn_datasets
from sklearn import model_selection

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import registry, sources


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _write(path: pathlib.Path, color: tuple[int, int, int] = (0, 0, 0), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), color).save(path, **options)


# Decoding.


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    """Noise that is not square."""
    return rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_png_is_decoded_to_its_pixels(picture: np.ndarray) -> None:
    decoded = sources.decode(_encoded(Image.fromarray(picture)))

    np.testing.assert_array_equal(decoded, picture)


def test_decoded_images_are_uint8(picture: np.ndarray) -> None:
    assert sources.decode(_encoded(Image.fromarray(picture))).dtype == np.uint8


def test_jpeg_is_decoded_as_pillow_does(picture: np.ndarray) -> None:
    encoded = _encoded(Image.fromarray(picture), "JPEG")

    decoded = sources.decode(encoded)

    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize(
    ("mode", "color", "kind", "rgb"),
    [
        ("L", 7, "PNG", (7, 7, 7)),
        ("L", 7, "JPEG", (7, 7, 7)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (7, 100), "PNG", (7, 7, 7)),
        ("RGBA", (1, 2, 3, 100), "PNG", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 100), "WEBP", (1, 2, 3)),
        ("I;16", 200 * 257, "PNG", (200, 200, 200)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
    ],
)
def test_every_mode_is_decoded_to_rgb(mode: str, color: Any, kind: str, rgb: tuple) -> None:
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    encoded = _encoded(Image.new(mode, (16, 8), color), kind, **lossless)

    decoded = sources.decode(encoded)

    expected = np.broadcast_to(np.asarray(rgb), (8, 16, 3))
    np.testing.assert_allclose(decoded, expected, atol=2)  # JPEG rounds, in other axes.


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_palettes_are_decoded_to_their_colors(transparency: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    options = {} if transparency is None else {"transparency": transparency}

    decoded = sources.decode(_encoded(image, **options))

    np.testing.assert_array_equal(decoded, [[[10, 20, 30], [40, 50, 60]]])


_ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", _ORIENTATIONS)
def test_images_are_turned_upright(picture: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    decoded = sources.decode(_encoded(Image.fromarray(picture), exif=exif))

    np.testing.assert_array_equal(decoded, _ORIENTATIONS[orientation](picture))


def _bmp_of_billions_of_pixels(image: Image.Image) -> bytes:
    encoded = bytearray(_encoded(image, "BMP"))
    encoded[18:26] = (10**5).to_bytes(4, "little") * 2  # Width and height.
    return bytes(encoded)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: b"",
        lambda image: b"no image",
        lambda image: _encoded(image)[:60],
        lambda image: _encoded(image, "JPEG")[:-40],
        lambda image: _encoded(image).replace(b"IDAT", b"IDAX"),
        _bmp_of_billions_of_pixels,
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "wrong chunk", "wrong size"],
)
def test_what_cannot_be_decoded_is_said_to_be_corrupt(
    picture: np.ndarray, spoil: Callable[[Image.Image], bytes]
) -> None:
    with pytest.raises(sources.CorruptImageError, match=r"^\w"):
        sources.decode(spoil(Image.fromarray(picture)))


# Digits.


@pytest.fixture(scope="module")
def digits() -> sources.Source:
    """scikit-learn's digits."""
    return data.open_source("digits", path="", data_dir="")


def test_digits_are_ten_classes(digits: sources.Source) -> None:
    assert digits.classes == tuple("0123456789")


def test_digits_must_not_be_mirrored(digits: sources.Source) -> None:
    assert not digits.flip


@pytest.mark.parametrize(("part", "name"), [(0, "train"), (1, "test")])
def test_digits_are_split_as_by_scikit_learn(digits: sources.Source, part: int, name: str) -> None:
    bunch: Any = sklearn_datasets.load_digits()
    images = model_selection.train_test_split(
        bunch.images, test_size=0.2, stratify=bunch.target, random_state=0
    )[part]
    split = digits.splits[name]

    decoded = np.stack([split.image(i) for i in range(len(split.labels))])

    # Sixteenths of black to white; half a grey level is lost.
    expected = np.repeat(images[..., None], 3, axis=-1) * 255 / 16
    np.testing.assert_allclose(decoded.astype(np.float64), expected, atol=0.5)


@pytest.mark.parametrize(("part", "name"), [(2, "train"), (3, "test")])
def test_digits_have_the_labels_of_scikit_learn(
    digits: sources.Source, part: int, name: str
) -> None:
    bunch: Any = sklearn_datasets.load_digits()
    labels = model_selection.train_test_split(
        bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0
    )[part]

    np.testing.assert_array_equal(digits.splits[name].labels, labels)


# Folders.


@pytest.fixture
def flat(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two classes, 10 dark images and 20 light ones."""
    for i in range(10):
        _write(tmp_path / "night" / f"{i}.png", (0, 0, i))
    for i in range(20):
        _write(tmp_path / "day" / f"{i}.png", (255, 255, i))
    return tmp_path


def _folder(path: pathlib.Path) -> sources.Source:
    return data.open_source("folder", path=str(path), data_dir="")


def test_class_folders_are_the_classes(flat: pathlib.Path) -> None:
    assert _folder(flat).classes == ("day", "night")


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_a_folder_have_its_label(flat: pathlib.Path, split: str) -> None:
    found = _folder(flat).splits[split]

    red = np.asarray([found.image(i)[0, 0, 0] for i in range(len(found.labels))])
    np.testing.assert_array_equal(red, np.where(found.labels == 0, 255, 0))


def test_a_fifth_of_each_class_of_a_flat_folder_is_its_test_split(flat: pathlib.Path) -> None:
    labels = _folder(flat).splits["test"].labels

    np.testing.assert_array_equal(np.bincount(labels), [4, 2])


def _names(source: sources.Source, split: str) -> set[str]:
    found = source.splits[split]
    return {found.name(i) for i in range(len(found.labels))}


def test_train_and_test_of_a_flat_folder_are_all_of_it_and_share_nothing(
    flat: pathlib.Path,
) -> None:
    source = _folder(flat)

    train, test = _names(source, "train"), _names(source, "test")

    assert not train & test
    assert train | test == {str(file) for file in flat.glob("*/*.png")}


def test_a_flat_folder_is_split_the_same_way_each_time(flat: pathlib.Path) -> None:
    assert _names(_folder(flat), "test") == _names(_folder(flat), "test")


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_folders_of_splits_are_the_splits(tmp_path: pathlib.Path, name: str) -> None:
    for split, count in (("train", 3), ("test", 2), (name, 1)):
        for i in range(count):
            _write(tmp_path / split / "a" / f"{i}.png")
            _write(tmp_path / split / "b" / f"{i}.png")

    source = _folder(tmp_path)

    counts = {split: np.bincount(found.labels).tolist() for split, found in source.splits.items()}
    assert counts == {"train": [3, 3], "test": [2, 2], "validation": [1, 1]}


def test_folders_of_splits_have_one_numbering_of_classes(tmp_path: pathlib.Path) -> None:
    for path in ("train/b/0.png", "train/c/0.png", "test/c/0.png"):
        _write(tmp_path / path)

    source = _folder(tmp_path)

    assert [source.classes[i] for i in source.splits["test"].labels] == ["c"]


def test_a_folder_is_searched_for_images_alone(tmp_path: pathlib.Path) -> None:
    wanted = ["a/1.JPG", "a/2.jpeg", "a/3.png", "b/4.webp", "b/5.bmp", "b/6.png"]
    for name in wanted:
        _write(tmp_path / name)
    _write(tmp_path / "stray.png")
    _write(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("none")

    source = _folder(tmp_path)

    names = _names(source, "train") | _names(source, "test")
    assert names == {str(tmp_path / name) for name in wanted}


def test_the_tilde_in_a_folder_is_the_home(
    flat: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(flat.parent))

    assert _folder(pathlib.Path("~") / flat.name).classes == ("day", "night")


def test_a_file_that_cannot_be_read_is_corrupt(flat: pathlib.Path) -> None:
    (flat / "day" / "link.png").symlink_to(flat / "gone.png")
    source = _folder(flat)
    (split, i) = next(
        (split, i)
        for split in source.splits.values()
        for i in range(len(split.labels))
        if split.name(i).endswith("link.png")
    )

    with pytest.raises(sources.CorruptImageError, match=r"^No such file"):
        split.image(i)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_folder_that_is_missing_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match=rf"'{path}'.*config\.data\.path"):
        data.open_source("folder", path=path, data_dir="")


def test_a_folder_without_images_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()

    with pytest.raises(SettingError, match=r"holds no images.*config\.data\.path"):
        _folder(tmp_path)


def test_a_split_without_images_is_refused(flat: pathlib.Path) -> None:
    (flat / "train").mkdir()
    (flat / "test").mkdir()

    with pytest.raises(SettingError, match=r"holds no images.*config\.data\.path"):
        _folder(flat)


def test_a_single_class_is_refused(tmp_path: pathlib.Path) -> None:
    for i in range(5):
        _write(tmp_path / "cat" / f"{i}.png")

    with pytest.raises(SettingError, match=r"one class only \(cat\).*config\.data\.path"):
        _folder(tmp_path)


# Arrays.


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What an .npz holds: three images to train on, two to test, of two classes."""
    return {
        "train_image": rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8),
        "train_label": np.asarray([0, 1, 1]),
        "test_image": rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8),
        "test_label": np.asarray([1, 0]),
        "classes": np.asarray(["cat", "dog"]),
    }


def _stored(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> sources.Source:
    np.savez(path / "mine.npz", allow_pickle=False, **arrays)
    return data.open_source("arrays", path=str(path / "mine.npz"), data_dir="")


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_come_back_as_they_were_stored(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], split: str
) -> None:
    found = _stored(tmp_path, arrays).splits[split]

    images = [found.image(i) for i in range(len(found.labels))]
    np.testing.assert_array_equal(images, arrays[f"{split}_image"])
    np.testing.assert_array_equal(found.labels, arrays[f"{split}_label"])


def test_arrays_name_their_classes(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    assert _stored(tmp_path, arrays).classes == ("cat", "dog")


def test_arrays_may_have_a_validation_split(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]
) -> None:
    arrays |= {"validation_image": arrays["test_image"], "validation_label": np.asarray([1, 1])}

    source = _stored(tmp_path, arrays)

    np.testing.assert_array_equal(source.splits["validation"].labels, [1, 1])


@pytest.mark.parametrize("name", ["train_image", "train_label", "test_label", "classes"])
def test_an_array_that_is_missing_is_named(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], name: str
) -> None:
    del arrays[name]

    with pytest.raises(SettingError, match=rf"mine\.npz lacks the arrays {name};"):
        _stored(tmp_path, arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_image", np.zeros((3, 4, 5, 3))),  # Of 0 to 1, all would become black.
        ("train_image", np.zeros((3, 4, 5), np.uint8)),
        ("train_image", np.zeros((3, 4, 5, 1), np.uint8)),
        ("train_label", np.asarray([0, 1])),
        ("train_label", np.asarray([0.0, 1.0, 1.0])),
        ("train_label", np.asarray([[0], [1], [1]])),
        ("train_label", np.asarray([0, 1, 2])),
        ("train_label", np.asarray([0, -1, 1])),
    ],
)
def test_an_array_of_another_form_is_named(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], name: str, value: np.ndarray
) -> None:
    arrays[name] = value

    with pytest.raises(SettingError, match=rf"{name} must be .*config\.data\.path"):
        _stored(tmp_path, arrays)


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 cut"])
def test_a_file_of_no_arrays_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)

    with pytest.raises(SettingError, match=r"mine\.npz.*config\.data\.path"):
        data.open_source("arrays", path=str(path), data_dir="")


def test_a_single_array_is_refused(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros(3))

    with pytest.raises(SettingError, match=r"mine\.npy.*config\.data\.path"):
        data.open_source("arrays", path=str(tmp_path / "mine.npy"), data_dir="")


@pytest.mark.parametrize("path", ["", "nowhere.npz"])
def test_a_file_that_is_missing_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match=r"config\.data\.path"):
        data.open_source("arrays", path=path, data_dir="")


# Names, and shares of classes.


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    known = ", ".join(("digits", "folder", "arrays", *registry.RECORDS))

    with pytest.raises(SettingError, match=rf"'imagenet'; config\.data\.name: {known}"):
        data.open_source("imagenet", path="", data_dir="")


def test_a_share_is_taken_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 50, 100])

    chosen = sources.stratified(labels, 0.2, seed=0)

    np.testing.assert_array_equal(np.bincount(labels[chosen]), [2, 10, 20])


def test_a_share_holds_nothing_twice() -> None:
    chosen = sources.stratified(np.repeat([0, 1, 2], [10, 50, 100]), 0.2, seed=0)

    assert len(set(chosen.tolist())) == len(chosen)


def test_a_share_leaves_one_of_each_class_and_takes_one_where_there_are_two() -> None:
    labels = np.repeat([0, 1, 2], [1, 2, 3])

    chosen = sources.stratified(labels, 0.01, seed=0)

    np.testing.assert_array_equal(labels[chosen], [1, 2])


def test_two_seeds_take_two_shares() -> None:
    labels = np.zeros(1000, np.int32)

    one, two = (sources.stratified(labels, 0.5, seed=seed) for seed in (1, 2))

    assert not np.array_equal(one, two)
