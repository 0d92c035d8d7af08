"""Small photographs: tiles of the two that scikit-learn has, and changed copies of them."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from sklearn import datasets

Pixels = UInt8[np.ndarray, "height width 3"]


def tiles(side: int) -> list[Pixels]:
    """Returns all tiles, some of which are almost plain sky."""
    pictures = datasets.load_sample_images().images
    return [
        np.ascontiguousarray(picture[top : top + side, left : left + side])
        for picture in pictures
        for top in range(0, picture.shape[0] - side + 1, side)
        for left in range(0, picture.shape[1] - side + 1, side)
    ]


def clear_tiles(side: int) -> list[Pixels]:
    """Returns the tiles without plain sky, in which coding errors are as large as the picture."""
    found = tiles(side)
    small = [Image.fromarray(tile).convert("L").reduce(side // 8) for tile in found]
    contrast = [np.asarray(image).std() for image in small]
    return [tile for tile, deviation in zip(found, contrast, strict=True) if deviation > 5]


def jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encodes an image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def reencoded(pixels: Pixels, quality: int) -> Pixels:
    """Returns an image after it was encoded as JPEG."""
    return np.asarray(Image.open(io.BytesIO(jpeg(pixels, quality))))


def resized(pixels: Pixels, factor: float) -> Pixels:
    """Returns an image with its sides multiplied by a factor."""
    side = round(len(pixels) * factor)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
