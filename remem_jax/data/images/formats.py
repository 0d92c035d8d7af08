"""Supported image formats and sizes, for folders, lists and predictions."""

import os
import stat
import warnings

import pi_heif
from PIL import features

pi_heif.register_heif_opener()  # For HEIC and HEIF, which Pillow alone does not read.
# Pillow warns about metadata, palettes and large images, all of which are handled here.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's name of a format -> suffixes.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
# Formats that are opened, whatever the suffix. Others are refused: for some, Pillow starts other
# programs, such as Ghostscript for EPS.
FORMATS = tuple(name for name in _SUFFIXES if name != "AVIF" or features.check("avif"))
SUFFIXES = tuple(suffix for name in FORMATS for suffix in _SUFFIXES[name])
# Pillow's default limit: an image of 512 MiB as 8-bit RGB.
MAX_PIXELS = 2 * ((1 << 30) // 4 // 3)
# No image of at most MAX_PIXELS needs a larger file, even uncompressed.
MAX_BYTES = 512 * 2**20


def suffix_list() -> str:
    """Returns the supported suffixes, for messages."""
    return ", ".join(SUFFIXES)


def read(path: str | os.PathLike[str]) -> bytes:
    """Reads a file that may be an image.

    Only regular files are opened: a pipe would wait for its writer, a device may never end.

    Raises:
        OSError: If the file is missing, unreadable, not a regular file or above `MAX_BYTES`.
    """
    _require_regular(os.stat(path))  # noqa: PTH116  Called for each image.
    # The file may be replaced meanwhile, so it is opened without blocking and checked again.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        _require_regular(status)
        return file.read(status.st_size)


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(0, f"{status.st_size:,} bytes, more than the {MAX_BYTES:,} of an image")
