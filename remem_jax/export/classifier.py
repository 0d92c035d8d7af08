"""Classifies images in Python: what `remem_jax.load` returns."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from remem_jax.checks import SettingError, at_least, printable, require
from remem_jax.data.images import decoding, formats
from remem_jax.export import images as image_files
from remem_jax.export import inference, options, predictors

# A file, a folder, an image that Pillow has opened or made, or uint8 (height, width, 3).
Images: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """The classes of one image.

    Attributes:
        path: File of the image; None for an image in memory.
        class_name: Likeliest class; None if the image cannot be read.
        probability: Probability of this class, from 0 to 1; None if the image cannot be read.
        top: Likeliest classes with their probabilities, likeliest first; () if it cannot be read.
        error: Why the image cannot be read; "" if it can.
    """

    path: pathlib.Path | None
    class_name: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str = ""


class _Read(NamedTuple):
    """An image after an attempt to read it: its preprocessed pixels, or the reason why not."""

    path: pathlib.Path | None
    pixels: np.ndarray | str


class Classifier(NamedTuple):
    """A student or an export, which classifies images.

    Attributes:
        predictor: The model, from preprocessed images to logits.
    """

    predictor: predictors.Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.predictor.classes

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.predictor.image_size

    def predict(
        self, images: Images | Iterable[Images], *, top: int = 5, batch_size: int = 0
    ) -> list[Prediction]:
        """Classifies images, preprocessed as in the evaluation of the run, like `remem predict`.

        Args:
            images: A path, a Pillow image, uint8 pixels (height, width, 3) in RGB, or any iterable
                of these, such as a generator or an array (image, height, width, 3). A folder
                stands for its images, sorted by name, in subfolders too. Images may differ in size.
            top: Number of classes for each image; at least 1, and at most all.
            batch_size: Number of images that are classified together; 0 is 32. An export with a
                fixed batch size uses its own.

        Returns:
            A prediction for each image, in the given order. Files that cannot be read have an
            `error`.

        Raises:
            SettingError: If none of the images can be read, a folder has no images, or something
                else than an image is given.
        """
        at_least("top", top, 1)
        at_least("batch_size", batch_size, 0)
        size = self.predictor.described.form.batch or batch_size or options.BATCH_SIZE
        found: list[Prediction] = []
        for batch in inference.read_ahead(self._read, _each(images), size):
            found += self._classified(batch, top, size if found else min(size, len(batch)))
        failed = [prediction for prediction in found if prediction.error]
        if found and len(failed) == len(found):
            first = failed[0]
            where = "" if first.path is None else f"{first.path} "
            raise SettingError(
                f"None of the images can be read: give others ({where}{first.error})"
            )
        return found

    def _read(self, image: Images) -> _Read:
        preprocessing = self.predictor.described.preprocessing
        path = pathlib.Path(image) if isinstance(image, str | os.PathLike) else None
        try:
            if path is not None:
                return _Read(path, image_files.read_image(path, preprocessing))
            pixels = decoding.of_pillow(image) if isinstance(image, Image.Image) else image
            return _Read(None, preprocessing(np.asarray(pixels)))
        except (SettingError, decoding.CorruptImageError) as error:
            return _Read(path, str(error).removeprefix(f"{printable(str(path))} "))

    def _classified(self, batch: Sequence[_Read], top: int, size: int) -> Iterator[Prediction]:
        """Yields the predictions of a batch; failed ones too."""
        pixels = [image.pixels for image in batch if isinstance(image.pixels, np.ndarray)]
        logits = self.predictor.predict(np.stack(pixels), batch_size=size) if pixels else []
        likeliest = inference.likeliest(np.asarray(logits), self.classes, top) if pixels else []
        rows = iter(likeliest)
        for image in batch:
            if isinstance(image.pixels, str):
                yield Prediction(image.path, None, None, (), image.pixels)
                continue
            row = tuple(next(rows))
            yield Prediction(image.path, *row[0], row)


def load(path: str | os.PathLike[str], *, method: str, seed: int | None) -> Classifier:
    """See `remem_jax.load`."""
    place = pathlib.Path(os.path.expanduser(path))  # noqa: PTH111  `Path.expanduser` raises.
    require(place.exists(), f"There is no run and no export {place}: give the path of one.")
    return Classifier(predictors.open_any(place, method=method, seed=seed))


def _each(images: Images | Iterable[Images]) -> Iterator[Images]:
    """Yields each image, with those of folders in place of the folders.

    Raises:
        SettingError: If something else than an image is given, or a folder has no images.
    """
    if isinstance(images, np.ndarray):
        images = images if images.ndim == 4 else [images]
    elif isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    for image in images:
        if isinstance(image, str | os.PathLike):
            yield from _files(pathlib.Path(os.path.expanduser(image)))  # noqa: PTH111
        elif isinstance(image, np.ndarray):
            is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
            require(
                is_rgb and image.size > 0,
                "Images in arrays must be uint8 of (height, width, 3), in RGB; got "
                f"{image.dtype} of {image.shape}.",
            )
            yield image
        else:
            require(
                isinstance(image, Image.Image),
                "Images must be paths, Pillow's images or uint8 arrays; got "
                f"{type(image).__name__}.",
            )
            yield image


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    found = image_files.image_paths(path)
    require(len(found) > 0, f"{path} contains no images ({formats.suffix_list()}): give another.")
    return found
