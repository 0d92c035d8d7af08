"""Decodes images and resizes them to squares, fast.

libjpeg-turbo decodes JPEGs, a SIMD convolution with the kernel of Pillow's bilinear filter resizes,
and Pillow reads all headers and every other format of `formats`.
"""

import concurrent.futures
import contextlib
import functools
import io
import math
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cykooz_resizer
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Exif

from remem_jax.data.images import formats

# Exceptions that Pillow raises for truncated or altered files. A broken header may look like a
# decompression bomb.
_BROKEN = (
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_REDUCTIONS = (8, 4, 2)  # Scales of libjpeg's inverse DCT, largest first.
# EXIF orientation -> function that turns the pixels upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
_TRANSPOSED = (5, 6, 7, 8)  # Orientations that exchange height and width.
_UPRIGHT_ALREADY = ("TIFF", "HEIF")  # Formats whose decoders apply the orientation.
_PNG_METADATA = re.compile(rb"eXIf|Raw profile type|XML:com\.adobe\.xmp")
_BILINEAR = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
_RGB = cykooz_resizer.PixelType.U8x3
_of_this_thread = threading.local()  # Resizers have buffers, so each thread has its own.


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message says why, in one line."""


class Opened(NamedTuple):
    """An encoded image with its header; use it inside `opened`.

    Attributes:
        encoded: The encoded file.
        image: The image that Pillow opened.
        orientation: EXIF orientation.
    """

    encoded: bytes
    image: Image.Image
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        width, height = self.image.size
        return (width, height) if self.orientation in _TRANSPOSED else (height, width)

    def decode(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """See the function `decode`."""
        reduction = _reduction(self, at_least)
        pixels = _turbo(self.encoded, self.image, reduction)
        if pixels is None:
            size = self.image.size
            pixels = np.asarray(_rgb(self.image, reduction))
            if reduction == 1 and pixels.shape[1::-1] != size:
                raise CorruptImageError("the header gives another size than the pixels have")
        return _upright(pixels, self.orientation)


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Opened]:
    """Opens an encoded image and reads its header.

    Raises:
        CorruptImageError: If its format is not in `formats.FORMATS`, it is truncated or broken, or
            has more than `formats.MAX_PIXELS`; here, or when it is decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=formats.FORMATS) as image:
            if math.prod(image.size) > formats.MAX_PIXELS:
                raise CorruptImageError(
                    f"{math.prod(image.size):,} pixels, more than {formats.MAX_PIXELS:,}"
                )
            yield Opened(encoded, image, _orientation(image, encoded))
    except UnidentifiedImageError as error:  # Its message has a memory address.
        raise CorruptImageError("not an image") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise CorruptImageError(reason or type(error).__name__) from error


def decode(encoded: bytes, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image to uint8 RGB (height, width, 3), upright by its EXIF orientation.

    JPEGs have the same pixels as in Pillow. Alpha is dropped, 16 bits become 8, and the first of
    several frames is used. The result may be read-only.

    Args:
        encoded: File in one of `formats.FORMATS`.
        at_least: Smallest height and width of the result. A JPEG may then be decoded at a half, a
            quarter or an eighth of its size; with twice the size that it is resized to, the
            difference is hardly visible. None decodes at full size.

    Raises:
        CorruptImageError: See `opened`.
    """
    with opened(encoded) as image:
        return image.decode(at_least)


def of_pillow(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image that Pillow has opened or made, as `decode` does.

    Raises:
        CorruptImageError: If it cannot be decoded.
    """
    try:
        orientation = 1 if image.format in _UPRIGHT_ALREADY else _in_exif(image)
        return _upright(np.asarray(_rgb(image, reduction=1)), orientation)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise CorruptImageError(reason or type(error).__name__) from error


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return (
        np.ascontiguousarray(_UPRIGHT[orientation](pixels)) if orientation in _UPRIGHT else pixels
    )


def size(encoded: bytes) -> tuple[int, int]:
    """Returns height and width of the decoded image, from its header.

    Raises:
        CorruptImageError: See `opened`.
    """
    with opened(encoded) as image:
        return image.size


def resize(
    pixels: np.ndarray,
    size: int | tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes an image, or a box of it: bilinear and antialiased.

    Args:
        pixels: uint8 (height, width, 3).
        size: Height and width of the result, or the side of a square.
        box: Left, top, right and bottom in pixels, which may be fractions; None is the whole
            image. As in Pillow, pixels around the box contribute to its borders.

    Returns:
        uint8 (height, width, 3), within a grey level of Pillow's BILINEAR; read-only. The same
        array if there is nothing to do.
    """
    height, width, _ = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    down, across = (size, size) if isinstance(size, int) else size
    if (left, top, right, bottom) == (0, 0, across, down) == (0, 0, width, height):
        return pixels
    # The resizer copies its input, so it only gets the pixels that its kernel reaches.
    columns = _reach(left, right, across, width)
    rows = _reach(top, bottom, down, height)
    options = cykooz_resizer.ResizeOptions(
        resize_alg=_BILINEAR,
        crop_box=cykooz_resizer.CropBox(
            left - columns.start, top - rows.start, right - left, bottom - top
        ),
    )
    region = cykooz_resizer.ImageData(
        columns.stop - columns.start,
        rows.stop - rows.start,
        _RGB,
        pixels[rows, columns].tobytes(),
    )
    resized = cykooz_resizer.ImageData(across, down, _RGB)
    _resizer().resize(region, resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(down, across, 3)


def resize_all(images: np.ndarray, shape: tuple[int, int], *, threads: int) -> np.ndarray:
    """Resizes images (image, height, width, 3) of one shape; see `resize`.

    Args:
        images: The images.
        shape: Height and width of the results.
        threads: Number of threads.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return np.stack([*pool.map(functools.partial(resize, size=shape), images)])


def _orientation(image: Image.Image, encoded: bytes) -> int:
    """Returns the orientation in EXIF or XMP; 1 if there is none, or it cannot be read."""
    if image.format in _UPRIGHT_ALREADY:
        return 1
    if image.format == "PNG":
        # Pillow decodes a whole PNG to look for metadata at its end.
        if not _PNG_METADATA.search(encoded):
            return 1
        image.load()  # A truncated image is an error, unlike broken metadata.
    return _in_exif(image)


def _in_exif(image: Image.Image) -> int:
    with contextlib.suppress(*_BROKEN):
        value = image.getexif().get(Exif.Orientation)
        return value if isinstance(value, int) else 1  # Broken metadata may have any value.
    return 1


def _reduction(opened: Opened, at_least: tuple[int, int] | None) -> int:
    """Returns the scale at which a JPEG may be decoded; 1 for other formats."""
    if at_least is None or not _is_jpeg(opened.image):
        return 1
    height, width = opened.size
    for reduction in _REDUCTIONS:
        reduced = math.ceil(height / reduction), math.ceil(width / reduction)
        if reduced[0] >= at_least[0] and reduced[1] >= at_least[1]:
            return reduction
    return 1


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")  # The latter is a JPEG followed by others.


def _turbo(encoded: bytes, image: Image.Image, reduction: int) -> np.ndarray | None:
    """Decodes a JPEG by libjpeg-turbo, without its orientation; None if Pillow must decode it.

    Raises:
        CorruptImageError: If parts of the image are missing, which Pillow would fill with grey.
    """
    if not _is_jpeg(image):
        return None
    width, height = image.size
    try:
        pixels = simplejpeg.decode_jpeg(
            encoded,
            "RGB",
            min_height=math.ceil(height / reduction),
            min_width=math.ceil(width / reduction),
            min_factor=reduction,
        )
    except ValueError as error:
        # Extraneous bytes are harmless. After errors other than libjpeg's warnings ("Corrupt...")
        # Pillow may be able to read the image, or has its own message.
        message = str(error)
        if message.startswith("Corrupt") and "extraneous" not in message:
            raise CorruptImageError(message) from error
        return None
    return None if image.mode == "CMYK" else pixels  # Pillow converts CMYK to RGB.


def _rgb(image: Image.Image, reduction: int) -> Image.Image:
    if reduction > 1:
        width, height = image.size
        image.draft(None, (max(width // reduction, 1), max(height // reduction, 1)))
    image.load()
    sixteen_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if sixteen_bits:  # Pillow would clip values above 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise CorruptImageError("grey levels of 32 bits, whose range is unknown: store 8 or 16")
    if "transparency" in image.info:  # Otherwise Pillow warns about palettes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reach(low: float, high: float, size: int, end: int) -> slice:
    """Returns the pixels along an axis that `size` results between low and high depend on."""
    reach = math.ceil(max((high - low) / size, 1))
    return slice(max(math.floor(low) - reach, 0), min(math.ceil(high) + reach, end))


def _resizer() -> cykooz_resizer.Resizer:
    if not hasattr(_of_this_thread, "resizer"):
        _of_this_thread.resizer = cykooz_resizer.Resizer()
    return _of_this_thread.resizer
