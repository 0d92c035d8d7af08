"""Random crop boxes from uniform draws: one definition for NumPy and JAX arrays."""

import math
from typing import Any, NamedTuple


class Boxes(NamedTuple):
    """One box per image, in pixels of the source; scalars, or arrays of one value per image."""

    top: Any
    left: Any
    height: Any
    width: Any


def random_boxes(draws: Any, *, height: int, width: int, area: tuple[float, float]) -> Boxes:
    """Returns boxes of random area, aspect ratio and position, as in Inception's crops.

    Args:
        draws: Uniform draws in [0, 1), of shape (4, ...): for area, ratio, top and left.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        area: Smallest and largest share of the image's area.

    Returns:
        Boxes inside the image, of the shape and kind of `draws[0]`: the area uniform, aspect
        ratios log-uniform in [3/4, 4/3]. A side longer than the image is clipped (others
        draw again, which jit cannot).

    Source: Szegedy et al. 2014, https://arxiv.org/abs/1409.4842, section 6.
    """
    area_draw, ratio_draw, top_draw, left_draw = draws
    pixels = (area[0] + (area[1] - area[0]) * area_draw) * (height * width)
    root = math.sqrt(4 / 3) ** (2 * ratio_draw - 1)  # The square root of the aspect ratio.
    side = pixels**0.5
    tall = (side / root).clip(max=height)
    wide = (side * root).clip(max=width)
    return Boxes(top_draw * (height - tall), left_draw * (width - wide), tall, wide)
