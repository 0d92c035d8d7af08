"""Encoded images to pixels, and pixels to squares, as fast as one core can.

JPEGs go through libjpeg-turbo without Pillow's detours, squares through a SIMD convolution with the
kernel of Pillow's bilinear filter; Pillow reads all headers and every other format of `formats`.
"""

import contextlib
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

# What Pillow raises of files that were cut or altered. A decompression bomb is what a broken header
# may look like.
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
_REDUCTIONS = (8, 4, 2)  # Of libjpeg's inverse DCT, best first.
# EXIF's orientation -> the pixels upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
_LYING = (5, 6, 7, 8)  # Orientations in which height and width change places.
_UPRIGHT_ALREADY = ("TIFF", "HEIF")  # Formats that are turned as they are decoded.
_PNG_METADATA = re.compile(rb"eXIf|Raw profile type|XML:com\.adobe\.xmp")
_BILINEAR = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
_RGB = cykooz_resizer.PixelType.U8x3
_of_this_thread = threading.local()  # A resizer has buffers, so that each thread has its own.


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message says why, in one line."""


class Opened(NamedTuple):
    """An encoded image whose header was read; use it inside `opened`.

    Attributes:
        encoded: The file.
        image: As Pillow has opened it.
        orientation: EXIF's.
    """

    encoded: bytes
    image: Image.Image
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture upright."""
        width, height = self.image.size
        return (width, height) if self.orientation in _LYING else (height, width)

    def decode(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """See the function `decode`."""
        reduction = _reduction(self, at_least)
        pixels = _turbo(self.encoded, self.image, reduction)
        if pixels is None:
            size = self.image.size
            pixels = np.asarray(_rgb(self.image, reduction))
            if reduction == 1 and pixels.shape[1::-1] != size:
                raise CorruptImageError("the header gives another size than the pixels have")
        if self.orientation in _UPRIGHT:
            pixels = np.ascontiguousarray(_UPRIGHT[self.orientation](pixels))
        return pixels


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Opened]:
    """Reads the header of an image, for its size and then its pixels.

    Raises:
        CorruptImageError: If it is no image of `formats.FORMATS`, is cut off or broken, or claims
            more than `formats.MAX_PIXELS`; here, or when it is decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=formats.FORMATS) as image:
            if math.prod(image.size) > formats.MAX_PIXELS:
                raise CorruptImageError(
                    f"{math.prod(image.size):,} pixels, more than {formats.MAX_PIXELS:,}"
                )
            yield Opened(encoded, image, _orientation(image, encoded))
    except UnidentifiedImageError as error:  # Its own message is an address in memory.
        raise CorruptImageError("not an image") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise CorruptImageError(reason or type(error).__name__) from error


def decode(encoded: bytes, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of an encoded image as uint8 RGB (height, width, 3), turned as its EXIF says.

    A JPEG has the pixels that Pillow gives it. Alpha is dropped, 16 bits become 8, and of several
    frames the first is taken. The result may be read-only.

    Args:
        encoded: A file of one of `formats.FORMATS`.
        at_least: Height and width that are enough. A JPEG is then decoded at a half, a quarter or
            an eighth of its size, while both sides stay that long; ask for twice what you resize
            to, and it hardly shows. None decodes at full size.

    Raises:
        CorruptImageError: See `opened`.
    """
    with opened(encoded) as image:
        return image.decode(at_least)


def size(encoded: bytes) -> tuple[int, int]:
    """Height and width that `decode` gives, as the header has them.

    Raises:
        CorruptImageError: If there is no such header.
    """
    with opened(encoded) as image:
        return image.size


def resize(
    pixels: np.ndarray, size: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resizes a part of an image to a square, bilinear and antialiased.

    Args:
        pixels: uint8 (height, width, 3).
        size: Side of the square.
        box: Left, top, right and bottom of the part, in pixels, fractions too; None is all. As in
            Pillow, what lies around the box takes part in its borders.

    Returns:
        uint8 (size, size, 3), within a grey level of what Pillow's BILINEAR gives; read-only.
        The same array where there is nothing to do.
    """
    height, width, _ = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    if (left, top, right, bottom) == (0, 0, size, size) == (0, 0, width, height):
        return pixels
    # The resizer copies what it is given: that is what its kernel reaches, and no more.
    columns = _reach(left, right, size, width)
    rows = _reach(top, bottom, size, height)
    options = cykooz_resizer.ResizeOptions(
        resize_alg=_BILINEAR,
        crop_box=cykooz_resizer.CropBox(
            left - columns.start, top - rows.start, right - left, bottom - top
        ),
    )
    part = cykooz_resizer.ImageData(
        columns.stop - columns.start,
        rows.stop - rows.start,
        _RGB,
        pixels[rows, columns].tobytes(),
    )
    square = cykooz_resizer.ImageData(size, size, _RGB)
    _resizer().resize(part, square, options)
    return np.frombuffer(square.get_buffer(), np.uint8).reshape(size, size, 3)


def _orientation(image: Image.Image, encoded: bytes) -> int:
    """Orientation in EXIF or XMP; 1 where there is none, or it cannot be read."""
    if image.format in _UPRIGHT_ALREADY:
        return 1
    if image.format == "PNG":
        # Pillow decodes all of a PNG to look for what may stand at its end.
        if not _PNG_METADATA.search(encoded):
            return 1
        image.load()  # What is cut off is an error, unlike broken metadata.
    with contextlib.suppress(*_BROKEN):
        found = image.getexif().get(Exif.Orientation)
        return found if isinstance(found, int) else 1  # Broken metadata may hold anything.
    return 1


def _reduction(opened: Opened, at_least: tuple[int, int] | None) -> int:
    """By how much a JPEG may be reduced; 1 for what is none."""
    if at_least is None or not _is_jpeg(opened.image):
        return 1
    height, width = opened.size
    for reduction in _REDUCTIONS:
        reduced = math.ceil(height / reduction), math.ceil(width / reduction)
        if reduced[0] >= at_least[0] and reduced[1] >= at_least[1]:
            return reduction
    return 1


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")  # The latter is a JPEG that others follow.


def _turbo(encoded: bytes, image: Image.Image, reduction: int) -> np.ndarray | None:
    """Pixels as stored, by libjpeg-turbo; None for what is left to Pillow.

    Raises:
        CorruptImageError: If parts of the picture are missing, which Pillow would paint grey.
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
        # Bytes to spare do no harm. What is no warning of libjpeg's ("Corrupt...") Pillow may be
        # able to read, or says in its own words why not.
        message = str(error)
        if message.startswith("Corrupt") and "extraneous" not in message:
            raise CorruptImageError(message) from error
        return None
    return None if image.mode == "CMYK" else pixels  # Pillow knows how to make RGB of inks.


def _rgb(image: Image.Image, reduction: int) -> Image.Image:
    if reduction > 1:
        width, height = image.size
        image.draft(None, (max(width // reduction, 1), max(height // reduction, 1)))
    image.load()
    sixteen_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if sixteen_bits:  # Pillow would cut what is above 255, not scale.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise CorruptImageError("grey levels of 32 bits, whose range is unknown: store 8 or 16")
    if "transparency" in image.info:  # Or Pillow warns of palettes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reach(low: float, high: float, size: int, end: int) -> slice:
    """Pixels along an axis of which the kernel's `size` places between low and high are made."""
    reach = math.ceil(max((high - low) / size, 1))
    return slice(max(math.floor(low) - reach, 0), min(math.ceil(high) + reach, end))


def _resizer() -> cykooz_resizer.Resizer:
    if not hasattr(_of_this_thread, "resizer"):
        _of_this_thread.resizer = cykooz_resizer.Resizer()
    return _of_this_thread.resizer
