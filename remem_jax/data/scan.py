"""Scans every image of a split once: checks that it decodes; reads label, size and pixels."""

import concurrent.futures
import functools
import hashlib
import io
import math
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

from remem_jax import display
from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.data.inspection import thumbnails

DIGEST_BYTES = hashlib.sha256().digest_size
_CHUNK = 32  # Images per thread between two checks of the results.


class ScanOptions(NamedTuple):
    """What a scan stores, and how many errors it accepts.

    Attributes:
        stored_size: Largest side of a stored image, in pixels.
        pixels: Whether pixels are stored.
        max_bytes: Largest size of all pixels; if they are larger, none are stored.
        corrupt_limit: Largest number of images of this split that cannot be decoded.
    """

    stored_size: int
    pixels: bool
    max_bytes: int
    corrupt_limit: int


class ScanResult(NamedTuple):
    """The result of a scan.

    Attributes:
        kept: Rows of the images that can be decoded, int64.
        labels: Labels of these images, int32.
        corrupt: Name of each other image, and why it cannot be decoded.
        digest: Hash of the encoded images and the labels.
        resized: Whether any image was resized to be stored.
        pixels: uint8 (kept, height, width, 3), memory-mapped if it is cached; None if no pixels
            are stored. The images' own size if all have the same, of at most the stored size;
            else squares of the stored size.
        shapes: Height and width of each kept image in its file, int32.
        digests: `digest` of each kept image, uint8; only its first 8 bytes in a cache that an
            earlier version wrote.
        thumbnails: Thumbnail of each kept image; see `inspection.thumbnails`.
    """

    kept: np.ndarray
    labels: np.ndarray
    corrupt: tuple[str, ...]
    digest: str
    resized: bool
    pixels: np.ndarray | None
    shapes: np.ndarray
    digests: np.ndarray
    thumbnails: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """The beginning of each kept image's digest, uint64; equal for the same stored image."""
        return np.ascontiguousarray(self.digests[:, :8]).view(np.uint64)[:, 0]

    def select(self, places: np.ndarray) -> "ScanResult":
        """Returns the result for some of the kept images, as if the others were not there.

        Args:
            places: Their indices among the kept images, increasing.
        """
        labels, digests = self.labels[places], self.digests[places]
        content = hashlib.sha256()
        for image, label in zip(digests, labels.tolist(), strict=True):
            content.update(_identity(image.tobytes(), label))
        return self._replace(
            kept=self.kept[places],
            labels=labels,
            digest=content.hexdigest()[:16],
            pixels=None if self.pixels is None else self.pixels[places],
            shapes=self.shapes[places],
            digests=digests,
            thumbnails=self.thumbnails[places],
        )


class TooManyCorruptError(Exception):
    """More images cannot be decoded than are accepted; the arguments are the first of them."""


class _Image(NamedTuple):
    """One scanned image.

    Attributes:
        label: Index of its class, or `sources.NO_LABEL`.
        digest: Hash of the image as it is stored at the source.
        shape: Height and width.
        pixels: Pixels, at most `stored_size` high and wide; None if they are not stored.
        thumbnail: See `inspection.thumbnails`; None if the image cannot be decoded.
        error: Why it cannot be decoded; "" if it can.
    """

    label: int
    digest: bytes
    shape: tuple[int, int]
    pixels: np.ndarray | None
    thumbnail: np.ndarray | None
    error: str


def in_memory(split: sources.Split, options: ScanOptions, title: str, threads: int) -> ScanResult:
    """Scans a split and keeps its pixels in memory.

    Raises:
        TooManyCorruptError: See `Scanner.run`.
    """
    scanner = Scanner(split, options, title, io.BytesIO)
    scanner.run(threads)
    return scanner.result(scanner.pixels_in_memory())


def digest(image: bytes | np.ndarray) -> bytes:
    """Returns the hash of an image as it is stored at its source."""
    return hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()


def _identity(image_digest: bytes, label: int) -> bytes:
    """Returns what the hash of a split has of an image."""
    return image_digest + label.to_bytes(4, "little", signed=True)


def _scan_image(split: sources.Split, stored_size: int, pixels: bool, row: int) -> _Image:
    try:
        image, label = split.read(row)
        image_digest = digest(image)
        if isinstance(image, bytes):
            shape = decoding.size(image)
            # Even at an eighth of its size, a whole JPEG is read, so truncated files are detected.
            at_least = None if pixels else (thumbnails.DECODED, thumbnails.DECODED)
            image = decoding.decode(image, at_least=at_least)
        else:
            shape = image.shape[:2]
    except decoding.CorruptImageError as error:
        return _Image(0, b"", (0, 0), None, None, str(error))
    if pixels and max(shape) > stored_size:
        image = decoding.resize(image, stored_size)
    thumbnail = thumbnails.of_pixels(image)
    return _Image(label, image_digest, shape, image if pixels else None, thumbnail, "")


class Scanner:
    """Scans the images of a split in order, and accumulates the result."""

    def __init__(
        self,
        split: sources.Split,
        options: ScanOptions,
        title: str,
        make_file: Callable[[], BinaryIO],
    ) -> None:
        """Creates the scanner.

        Args:
            split: The split.
            options: Options of the scan.
            title: Name of the split, for progress.
            make_file: Returns an empty file that pixels are written to and read back from.
        """
        self.split, self.options, self.title = split, options, title
        self._make_file = make_file
        self.file = make_file() if options.pixels else None
        self.shape: tuple[int, int] | None = None  # Shape in which all images are stored.
        self._digests: list[bytes] = []
        self._thumbnails: list[np.ndarray] = []
        self._kept: list[int] = []
        self._labels: list[int] = []
        self._shapes: list[tuple[int, int]] = []
        self._corrupt: list[str] = []
        self._resized = False
        self._digest = hashlib.sha256()

    def run(self, threads: int) -> None:
        """Scans all images.

        Raises:
            TooManyCorruptError: As soon as more images are corrupt than are accepted.
        """
        options, examples = self.options, self.split.examples
        scan = functools.partial(_scan_image, self.split, options.stored_size, options.pixels)
        with (
            display.stage(f"Scan of {self.title}", examples, unit="image") as stage,
            concurrent.futures.ThreadPoolExecutor(threads) as pool,
        ):
            for start in range(0, examples, _CHUNK * threads):
                rows = range(start, min(start + _CHUNK * threads, examples))
                for row, image in zip(rows, pool.map(scan, rows), strict=True):
                    self._add(row, image)
                stage.advance(rows.stop)

    def result(self, pixels: np.ndarray | None) -> ScanResult:
        """Returns the result, with these pixels."""
        return ScanResult(
            np.asarray(self._kept, np.int64),
            np.asarray(self._labels, np.int32),
            tuple(self._corrupt),
            self._digest.hexdigest()[:16],
            self._resized,
            pixels,
            np.asarray(self._shapes, np.int32).reshape(-1, 2),
            np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, DIGEST_BYTES),
            np.asarray(self._thumbnails, np.uint8).reshape(-1, thumbnails.BYTES),
        )

    def pixels_in_memory(self) -> np.ndarray | None:
        """Returns the pixels that were written to the file; None if none are stored."""
        if self.file is None or self.shape is None:
            return None
        self.file.seek(0)
        file = self.file
        content = file.getbuffer() if isinstance(file, io.BytesIO) else file.read()
        stored = np.frombuffer(content, np.uint8)
        return stored.reshape(len(self._kept), *self.shape, 3)

    def _add(self, row: int, image: _Image) -> None:
        if image.thumbnail is None:
            self._corrupt.append(f"{self.split.name(row)}: {image.error}")
            if len(self._corrupt) > self.options.corrupt_limit:
                raise TooManyCorruptError(*self._corrupt)
            return
        side = self.options.stored_size
        shape = image.shape if max(image.shape) <= side else (side, side)
        if self.shape is None:
            self.shape = shape
        elif self.shape != shape:
            self._convert_to_squares()
        self._resized |= image.shape != self.shape
        self._kept.append(row)
        self._labels.append(image.label)
        self._shapes.append(image.shape)
        self._digests.append(image.digest)
        self._thumbnails.append(image.thumbnail)
        self._digest.update(_identity(image.digest, image.label))
        if self.file is None or image.pixels is None:
            return
        if math.prod(self.shape) * 3 * self.split.examples > self.options.max_bytes:
            self.file.close()
            self.file = None
            return
        self.file.write(_fitted(image.pixels, self.shape).tobytes())

    def _convert_to_squares(self) -> None:
        """Rewrites the stored images as squares, because images have more than one shape."""
        before, side = self.shape, self.options.stored_size
        self.shape = (side, side)
        self._resized = True
        if self.file is None or before in (None, self.shape):
            return
        old, self.file = self.file, self._make_file()
        old.seek(0)
        with old:
            for _ in self._kept:
                image = np.frombuffer(old.read(math.prod(before) * 3), np.uint8)
                self.file.write(_fitted(image.reshape(*before, 3), self.shape).tobytes())


def _fitted(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return image if image.shape[:2] == shape else decoding.resize(image, shape[0])
