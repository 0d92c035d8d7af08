"""Encoded small images in every mode and format that users may have."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

_HEIGHT, _WIDTH = 60, 90


def _pixels() -> np.ndarray:
    """Returns gradients with noise; no flip or rotation leaves them unchanged."""
    rng = np.random.default_rng(3)
    down, across = np.mgrid[:_HEIGHT, :_WIDTH]
    slopes = np.stack([2 * across, 3 * down, 255 - 2 * across - down], -1)
    return np.clip(slopes + rng.normal(0, 6, slopes.shape), 0, 255).astype(np.uint8)


def _rgb() -> Image.Image:
    return Image.fromarray(_pixels())


def _with_alpha(image: Image.Image) -> Image.Image:
    """Makes the left side transparent."""
    image.putalpha(Image.fromarray((np.mgrid[:_HEIGHT, :_WIDTH][1] * 2).astype(np.uint8)))
    return image


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _grey_of_16_bits() -> Image.Image:
    return Image.fromarray(np.asarray(_rgb().convert("L")).astype(np.uint16) * 257)


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_rgb(), "JPEG", exif=exif, quality=90)


def _rgb_of_16_bits() -> bytes:
    """Encodes a 16-bit RGB PNG, which Pillow can read but not write."""
    rows = (_pixels().astype(">u2") * 257).tobytes()
    stride = 6 * _WIDTH
    raw = b"".join(b"\0" + rows[i : i + stride] for i in range(0, len(rows), stride))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, 16, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _palette() -> Image.Image:
    return _rgb().quantize(32)


MODES: dict[str, Callable[[], bytes]] = {
    "1": lambda: _saved(_rgb().convert("1"), "PNG"),
    "L": lambda: _saved(_rgb().convert("L"), "PNG"),
    "L, one grey transparent": lambda: _saved(_rgb().convert("L"), "PNG", transparency=90),
    "LA": lambda: _saved(_with_alpha(_rgb().convert("L")), "PNG"),
    "P": lambda: _saved(_palette(), "PNG"),
    "P, one colour transparent": lambda: _saved(_palette(), "PNG", transparency=3),
    "P, alpha by colour": lambda: _saved(_palette(), "PNG", transparency=bytes(range(0, 256, 8))),
    "PA": lambda: _saved(_with_alpha(_rgb()).quantize(32), "PNG"),
    "RGB": lambda: _saved(_rgb(), "PNG"),
    "RGB, one colour transparent": lambda: _saved(_rgb(), "PNG", transparency=(0, 0, 255)),
    "RGBA": lambda: _saved(_with_alpha(_rgb()), "PNG"),
    "RGB of 16 bits": _rgb_of_16_bits,
    "I;16": lambda: _saved(_grey_of_16_bits(), "PNG"),
    "I;16 in TIFF": lambda: _saved(_grey_of_16_bits(), "TIFF"),
    "JPEG": lambda: _saved(_rgb(), "JPEG", quality=90),
    "JPEG, turned by EXIF": _rotated,
    "JPEG, grey": lambda: _saved(_rgb().convert("L"), "JPEG", quality=90),
    "CMYK": lambda: _saved(_rgb().convert("CMYK"), "JPEG", quality=90),
    "YCbCr in TIFF": lambda: _saved(_rgb().convert("YCbCr"), "TIFF"),
    "GIF": lambda: _saved(_rgb(), "GIF"),
    "GIF, of two frames": lambda: _saved(
        _rgb(), "GIF", save_all=True, append_images=[_rgb().rotate(180)]
    ),
    "TIFF": lambda: _saved(_rgb(), "TIFF"),
    "BMP": lambda: _saved(_rgb(), "BMP"),
    "WebP": lambda: _saved(_rgb(), "WEBP", lossless=True),
    "WebP, RGBA": lambda: _saved(_with_alpha(_rgb()), "WEBP", lossless=True),
}


def encoded(mode: str) -> bytes:
    """Returns an encoded image in the given mode."""
    return MODES[mode]()
