"""The single definition of how an image becomes the input of a model, and its record.

Evaluations, `predict` and the checks of exports all use `Preprocessing`; results, exports and model
cards contain its `record`, and the programs that they print do the same steps.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from remem_jax.data.images import decoding

RANGE = "-1 to 1"


class Preprocessing(NamedTuple):
    """The steps from a file to pixels.

    Attributes:
        image_size: Side of the models' input, in pixels.
        stored_size: Side of the squares that images are resized to before `image_size`, in pixels;
            0 if they are resized once.
        crop: Fraction of the shorter side that is cropped from the centre, as timm's `crop_pct`;
            0 resizes the whole image to a square, and ignores the aspect ratio.
    """

    image_size: int
    stored_size: int = 0
    crop: float = 0.0

    def __call__(self, image: bytes | np.ndarray) -> np.ndarray:
        """Returns the model's input, uint8 (side, side, 3), before it is scaled to [-1, 1].

        If images are resident on the device, the last step is done there in float32; the results
        differ by less than a grey level.

        Args:
            image: An encoded image, or its pixels: uint8 (height, width, 3).

        Raises:
            CorruptImageError: If it cannot be decoded.
        """
        pixels = decoding.decode(image) if isinstance(image, bytes) else image
        if self.crop:
            height, width = pixels.shape[:2]
            return decoding.resize(pixels, self.image_size, self.box(height, width))
        for size in self.sizes:
            pixels = decoding.resize(pixels, size)
        return pixels

    @property
    def shorter_side(self) -> int:
        """Shorter side of a resized image, from whose centre a square is cropped; 0 if none is."""
        return math.floor(self.image_size / self.crop) if self.crop else 0

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Returns the part of an image that becomes the models' input.

        With a crop, the image is resized to `shorter_side`, and a square is cropped from its
        centre. Both are one resampling of this box.

        Args:
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.

        Returns:
            Left, top, right and bottom in pixels of the image.
        """
        if not self.crop:
            return 0.0, 0.0, float(width), float(height)
        size, shorter = self.image_size, min(height, width)
        resized = [self.shorter_side * side // shorter for side in (width, height)]
        starts = [round((side - size) / 2) for side in resized]
        scales = [side / small for side, small in zip((width, height), resized, strict=True)]
        left, top = (start * scale for start, scale in zip(starts, scales, strict=True))
        right, bottom = (
            (start + size) * scale for start, scale in zip(starts, scales, strict=True)
        )
        return left, top, min(right, float(width)), min(bottom, float(height))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the squares that a whole image is resized to, in order; none with a crop."""
        if self.crop:
            return ()
        return (self.stored_size, self.image_size) if self.stored_size else (self.image_size,)

    def record(self) -> dict[str, Any]:
        """Returns the steps in order, as JSON values."""
        decode = {
            "step": "decode",
            "colours": "RGB; transparency is dropped",
            "depth": "8 bits; of 16, the upper 8",
            "orientation": "as EXIF says",
            "frame": "the first",
        }
        how = {
            "filter": "bilinear with antialiasing, as in Pillow",
            "values": "rounded to 8 bits",
        }
        whole = "the whole image, the aspect ratio ignored"
        resizes: list[dict[str, Any]] = [
            {"step": "resize", "to": [size, size], "what": whole, **how} for size in self.sizes
        ]
        if self.crop:
            kept = "the whole image, the aspect ratio kept; the longer side is rounded down"
            square = [self.image_size, self.image_size]
            resizes += [
                {"step": "resize_shorter_side", "to": self.shorter_side, "what": kept, **how},
                {"step": "center_crop", "to": square},
            ]
        scale = {"step": "scale", "from": "0 to 255", "to": RANGE}
        return {**self._asdict(), "steps": [decode, *resizes, scale]}

    def text(self) -> str:
        """Describes how images are resized, as part of a sentence."""
        if self.crop:
            return (
                f"the shorter side resized to {self.shorter_side} pixels, bilinear with "
                f"antialiasing, then the central {self.image_size} x {self.image_size} pixels"
            )
        squares = [f"to {size} x {size} pixels" for size in self.sizes]
        how = "bilinear with antialiasing, the aspect ratio ignored"
        return f"the whole image {', then '.join(squares)}, {how}"


def of_data(
    image_size: int, *, resized: bool, source_size: tuple[int, int] | None, crop: float
) -> Preprocessing:
    """Returns the preprocessing of a data set's evaluation.

    Args:
        image_size: Side of the models' input, in pixels.
        resized: See `data.Dataset`.
        source_size: See `data.Dataset`.
        crop: See `Preprocessing`. With a crop, resized images are evaluated from their files.
    """
    stored_size = source_size[0] if resized and source_size and not crop else 0
    return Preprocessing(image_size, stored_size, crop)


def of_results(results: Mapping[str, Any]) -> Preprocessing:
    """Returns the preprocessing of a run, from its results.json."""
    return Preprocessing(results["data"]["image_size"], stored_size(results), crop(results))


def stored_size(results: Mapping[str, Any]) -> int:
    """Returns `Preprocessing.stored_size` of a run, from its results.json.

    Results of early versions do not state whether squares of the stored size were resized; they are
    treated as resized.
    """
    data = results["data"]
    if "preprocessing" in data:
        return data["preprocessing"]["stored_size"]
    side = results["config"].get("data", {}).get("stored_size", 0)
    return side if data.get("source_size") == [side, side] else 0


def crop(results: Mapping[str, Any]) -> float:
    """Returns `Preprocessing.crop` of a run, from its results.json; 0 for earlier versions."""
    return results["data"].get("preprocessing", {}).get("crop", 0.0)
