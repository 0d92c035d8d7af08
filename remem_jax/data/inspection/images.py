"""Reads every image of a source, and records what it is and why it cannot be read."""

import concurrent.futures
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image

from remem_jax import display
from remem_jax.data import scan, sources
from remem_jax.data.images import decoding
from remem_jax.data.inspection import thumbnails

ARRAY = "array"  # Format of an image that is not a file.
_CHUNK = 32  # Images per thread between two reports of progress.
_COLOURS = {"1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


class Content(NamedTuple):
    """What an image that can be read is.

    Attributes:
        form: Name of its format, such as "JPEG"; `ARRAY` for pixels in memory.
        colour: Colour mode in words, such as "RGB", "grey" or "palette with alpha".
        turned: Whether its EXIF orientation turns or mirrors it.
        size: Height and width, upright.
        file: Digest of the image as it is stored.
        pixels: Size and digest of its pixels.
        thumbnail: See `thumbnails`.
    """

    form: str
    colour: str
    turned: bool
    size: tuple[int, int]
    file: bytes
    pixels: tuple[tuple[int, int], bytes]
    thumbnail: np.ndarray


class Image(NamedTuple):
    """An image of a source.

    Attributes:
        split: "train", "validation" or "test", as a run uses it.
        row: Its index in the source's split.
        name: Its name for messages: the path of a file.
        label: Index of its class; None if it is unknown because the image cannot be read.
        content: What it is; None if it cannot be read.
        error: Why it cannot be read; "" if it can.
        origin: The source's split; train, if a run holds the image out of it.
    """

    split: str
    row: int
    name: str
    label: int | None
    content: Content | None
    error: str
    origin: str


def read(source: sources.Source, *, threads: int) -> list[Image]:
    """Reads all images of a source, split by split, in order; shows the progress."""
    images: list[Image] = []
    total = sum(split.examples for split in source.splits.values())
    with (
        display.stage(f"Reading {source.title}", total, unit="image") as stage,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        for rows in _chunks(source, _CHUNK * threads):
            images += pool.map(lambda row: _image(source.splits[row[0]], *row), rows)
            stage.advance(len(images))
    return images


def colour(image: PIL.Image.Image) -> str:
    """Describes the colour mode of an image that is not loaded yet."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        name = "grey of 16 bits"
    else:
        name = _COLOURS.get(image.mode, image.mode.replace("RGBA", "RGB").replace("RGBa", "RGB"))
    has_alpha = image.mode in _ALPHA or "transparency" in image.info
    return f"{name} with alpha" if has_alpha else name


def _chunks(source: sources.Source, images: int) -> Iterator[list[tuple[str, int]]]:
    """Yields names of splits with rows, a number of images at a time; train first."""
    for name in sorted(source.splits, key=sources.SPLITS.index):
        split = source.splits[name]
        for start in range(0, split.examples, images):
            yield [(name, row) for row in range(start, min(start + images, split.examples))]


def _image(split: sources.Split, name: str, row: int) -> Image:
    known = None if split.labels is None else int(split.labels[row])
    try:
        stored, label = split.read(row)
        content = _encoded(stored) if isinstance(stored, bytes) else _pixels(stored)
    except decoding.CorruptImageError as error:
        return Image(name, row, split.name(row), known, None, str(error), name)
    return Image(name, row, split.name(row), label, content, "", name)


def _encoded(file: bytes) -> Content:
    with decoding.opened(file) as opened:
        mode, turned = colour(opened.image), opened.orientation != 1
        form = opened.image.format or ""
        return _content(form, mode, turned, scan.digest(file), opened.decode())


def _pixels(pixels: np.ndarray) -> Content:
    return _content(ARRAY, "RGB", False, scan.digest(pixels), pixels)


def _content(form: str, mode: str, turned: bool, file: bytes, pixels: np.ndarray) -> Content:
    size = (pixels.shape[0], pixels.shape[1])
    content = size, scan.digest(pixels)
    return Content(form, mode, turned, size, file, content, thumbnails.of_pixels(pixels))
