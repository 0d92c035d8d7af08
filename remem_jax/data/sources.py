"""Random access to images: TFDS, a folder of class folders, arrays, scikit-learn's digits."""

import io
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn import datasets as sklearn_datasets
from sklearn import model_selection

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import registry

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TRAIN, VALIDATION, TEST = "train", "validation", "test"
_FOLDER_NAMES = {TRAIN: ("train",), VALIDATION: ("validation", "val", "valid"), TEST: ("test",)}


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message says why."""


class Split(NamedTuple):
    """Images of one split, decoded when asked for.

    Attributes:
        image: Index -> uint8 array (height, width, 3), or raises `CorruptImageError`.
        name: Index -> what to call the image in messages.
        labels: int32, one per image.
    """

    image: Callable[[int], np.ndarray]
    name: Callable[[int], str]
    labels: np.ndarray


class Source(NamedTuple):
    """A data set before it is decoded.

    Attributes:
        title: What to call it.
        splits: "train" and "test", and "validation" where the source has its own.
        classes: Names of the classes, in the order of the labels.
        metric: `registry.TOP1` or `registry.MEAN_PER_CLASS`.
        flip: Whether mirrored images keep their class.
        official: Images of the official train and test, where there is such a thing.
    """

    title: str
    splits: dict[str, Split]
    classes: tuple[str, ...]
    metric: str
    flip: bool
    official: tuple[int, int] | None = None


def digits() -> Source:
    """scikit-learn's 1,797 grey digits of 8 x 8 pixels; a fifth, stratified, is the test split."""
    bunch: Any = sklearn_datasets.load_digits()
    images = np.repeat(np.round(bunch.images * (255 / 16))[..., None], 3, axis=-1)
    rows = np.arange(len(images))
    train, test = model_selection.train_test_split(
        rows, test_size=0.2, stratify=bunch.target, random_state=0
    )
    splits = {
        name: _arrays(images[chosen].astype(np.uint8), bunch.target[chosen], "digit")
        for name, chosen in ((TRAIN, train), (TEST, test))
    }
    classes = tuple(str(name) for name in bunch.target_names)
    return Source("scikit-learn's digits", splits, classes, registry.TOP1, flip=False)


def arrays(path: str) -> Source:
    """Arrays of an .npz: `train_image`, `train_label`, `test_image`, `test_label`, `classes`.

    Images are uint8 (example, height, width, 3), labels whole numbers from 0, classes their
    names; `validation_image` and `validation_label` may be there too.

    Raises:
        SettingError: If there is no such file, or it has another form.
    """
    data = _read_npz(path)
    names = [TRAIN, TEST]
    if f"{VALIDATION}_image" in data:
        names.append(VALIDATION)
    wanted = ["classes", *(f"{name}_{part}" for name in names for part in ("image", "label"))]
    missing = [name for name in wanted if name not in data]
    checks.require(
        not missing, f"{path} lacks the arrays {', '.join(missing)}; see the README for its form."
    )
    classes = tuple(str(name) for name in data["classes"])
    splits = {}
    for name in names:
        images, labels = data[f"{name}_image"], data[f"{name}_label"]
        _require_form(f"{path}: {name}", images, labels, len(classes))
        splits[name] = _arrays(images, labels, f"{name} image")
    title = pathlib.Path(path).stem
    return Source(title, splits, classes, registry.TOP1, flip=True)


def folder(path: str) -> Source:
    """A folder of class folders of images.

    Either PATH/class/*.jpg, of which a stratified fifth becomes the test split, or
    PATH/train/class/*.jpg and PATH/test/class/*.jpg, with PATH/validation if there is one.

    Raises:
        SettingError: If there is no such folder, or it holds no images.
    """
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise SettingError(f"There is no folder {path!r}; set config.data.path to your images.")
    parts = {
        split: root / name
        for split, names in _FOLDER_NAMES.items()
        for name in names
        if (root / name).is_dir()
    }
    if {TRAIN, TEST} <= set(parts):
        files = {split: _files(part) for split, part in parts.items()}
    else:
        files = _held_out(_files(root))
    classes = tuple(sorted({file.parent.name for found in files.values() for file in found}))
    for split, found in files.items():
        checks.require(
            len(found) > 0,
            f"{path} holds no images in class folders for the {split} split (looked for "
            f"{', '.join(SUFFIXES)}): expected PATH/class/image.jpg, at least two to a class, or "
            "PATH/train/class/... and PATH/test/class/...; set config.data.path.",
        )
    splits = {split: _encoded_files(found, classes) for split, found in files.items()}
    return Source(root.name, splits, classes, registry.TOP1, flip=True)


def tfds(name: str, data_dir: str) -> Source:
    """A data set of the registry, prepared on disk by TFDS as array_record; no TensorFlow.

    Args:
        name: In the registry.
        data_dir: Of TFDS; empty is its own default.

    Raises:
        SettingError: If it is not prepared, or in another format.
    """
    import tensorflow_datasets

    record = registry.RECORDS[name]
    place = str(pathlib.Path(data_dir).expanduser()) if data_dir else None
    builder: Any = tensorflow_datasets.builder(record.tfds, data_dir=place, try_gcs=False)
    # Of other formats, Parquet would read all of train for train[:80%], without a word.
    if not builder.is_prepared() or builder.info.file_format.value != "array_record":
        raise SettingError(
            f"{record.tfds} is not prepared as array_record in {builder.data_dir}: prepare it "
            "there with TFDS, or set config.data.dir to where it is."
        )
    features: Any = builder.info.features
    skip = tensorflow_datasets.decode.SkipDecoding()
    decoders = {
        key: skip
        for key, feature in features.items()
        if isinstance(feature, tensorflow_datasets.features.Image)
    }
    splits = {}
    for split, expression in ((TRAIN, record.train), (TEST, record.test)):
        stored: Any = builder.as_data_source(expression, decoders=decoders)
        splits[split] = _tfds_split(stored, f"{name} {expression}")
    classes = tuple(features["label"].names)
    return Source(name, splits, classes, record.metric, record.flip, record.examples)


def decode(encoded: bytes) -> np.ndarray:
    """Pixels of an encoded image as uint8 RGB, turned as its EXIF says."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(_upright_rgb(image))
    except UnidentifiedImageError as error:  # Its own message is an address in memory.
        raise CorruptImageError("not an image") from error
    # A decompression bomb is what a broken header may look like.
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(str(error)) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut what is above 255, not scale.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # Or Pillow warns of palettes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        place = pathlib.Path(path).expanduser()
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise SettingError(f"There is no file {path}; set config.data.path.") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise SettingError(
            f"{path!r} is no .npz of arrays ({error}); set config.data.path."
        ) from None


def _require_form(name: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    checks.require(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3,
        f"{name}_image must be uint8 of shape (example, height, width, 3), got {images.dtype} of "
        f"{images.shape}; mend the file that config.data.path names.",
    )
    checks.require(
        labels.dtype.kind in "iu" and labels.shape == images.shape[:1],
        f"{name}_label must be one whole number per image, got {labels.dtype} of {labels.shape} "
        f"for {len(images)} images; mend the file that config.data.path names.",
    )
    checks.require(
        set(np.unique(labels).tolist()) <= set(range(classes)),
        f"{name}_label must be from 0 to {classes - 1}, one below the number of classes; mend "
        "the file that config.data.path names.",
    )


def _arrays(images: np.ndarray, labels: np.ndarray, noun: str) -> Split:
    return Split(images.__getitem__, lambda i: f"{noun} {i}", labels.astype(np.int32))


def _encoded_files(files: Sequence[pathlib.Path], classes: Sequence[str]) -> Split:
    index = {name: i for i, name in enumerate(classes)}
    labels = np.asarray([index[file.parent.name] for file in files], np.int32)

    def image(i: int) -> np.ndarray:
        try:
            encoded = files[i].read_bytes()
        except OSError as error:
            raise CorruptImageError(str(error.strerror)) from error
        return decode(encoded)

    return Split(image, lambda i: str(files[i]), labels)


def _tfds_split(stored: Any, noun: str) -> Split:
    labels = np.asarray([stored[i]["label"] for i in range(len(stored))], np.int32)
    return Split(lambda i: decode(stored[i]["image"]), lambda i: f"{noun} {i}", labels)


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    """Images in the class folders of a folder, in an order that no file system changes."""
    return sorted(
        file
        for file in root.glob("*/*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def _held_out(files: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    labels = np.unique([file.parent.name for file in files], return_inverse=True)[1]
    held = stratified(labels, 0.2, seed=0)
    chosen = set(held.tolist())
    return {
        TRAIN: [file for i, file in enumerate(files) if i not in chosen],
        TEST: [files[i] for i in held],
    }


def stratified(labels: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Sorted indices of a share of every class, at least one of each class that has two."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen.extend(members[:count])
    return np.sort(np.asarray(chosen, np.int64))
