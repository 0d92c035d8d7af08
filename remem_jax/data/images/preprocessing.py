"""The single definition of how an image becomes the input of a model, and its record.

Evaluations, `predict` and the checks of exports all use `Preprocessing`; results, exports and model
cards contain its `record`, and the programs that they print do the same steps.
"""

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
    """

    image_size: int
    stored_size: int = 0

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
        for size in self.sizes:
            pixels = decoding.resize(pixels, size)
        return pixels

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the squares that an image is resized to, in order."""
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
        resizes = [
            {
                "step": "resize",
                "to": [size, size],
                "what": "the whole image, the aspect ratio ignored",
                "filter": "bilinear with antialiasing, as in Pillow",
                "values": "rounded to 8 bits",
            }
            for size in self.sizes
        ]
        scale = {"step": "scale", "from": "0 to 255", "to": RANGE}
        return {**self._asdict(), "steps": [decode, *resizes, scale]}

    def text(self) -> str:
        """Describes how images are resized, as part of a sentence."""
        squares = [f"to {size} x {size} pixels" for size in self.sizes]
        how = "bilinear with antialiasing, the aspect ratio ignored"
        return f"the whole image {', then '.join(squares)}, {how}"


def of_data(
    image_size: int, *, resized: bool, source_size: tuple[int, int] | None
) -> Preprocessing:
    """Returns the preprocessing of a data set's evaluation.

    Args:
        image_size: Side of the models' input, in pixels.
        resized: See `data.Dataset`.
        source_size: See `data.Dataset`.
    """
    return Preprocessing(image_size, source_size[0] if resized and source_size else 0)


def of_results(results: Mapping[str, Any]) -> Preprocessing:
    """Returns the preprocessing of a run, from its results.json."""
    return Preprocessing(results["data"]["image_size"], stored_size(results))


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
