"""Normalises images as a pretrained network expects them."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.checks import require

Channels = tuple[float, float, float]


class Normalisation(NamedTuple):
    """The mean and the standard deviation that a network's images are normalised with.

    The pipeline gives every network images in [-1, 1], which is mean 0.5 and deviation 0.5; a
    network with others converts them first. So teacher and student take the same images.

    Attributes:
        mean: Means of red, green and blue, as fractions of the pixel range, as in timm.
        std: Standard deviations, as fractions of the pixel range; above 0.
    """

    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)

    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch height width 3"]:
        """Converts images in [-1, 1] to (pixels - mean) / std, with pixels in [0, 1]."""
        if self == IDENTITY:
            return images
        mean, std = (jnp.asarray(values, images.dtype)[None, None, None] for values in self)
        shape = images.shape
        return images * jnp.broadcast_to(0.5 / std, shape) + jnp.broadcast_to(
            (0.5 - mean) / std, shape
        )


IDENTITY = Normalisation()  # Leaves images in [-1, 1] unchanged.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def parse(mean: Any, std: Any) -> Normalisation | None:
    """Returns the normalisation with values from a file; None unless they are usable.

    Args:
        mean: What the file has as means: three finite numbers are usable.
        std: What it has as standard deviations: three finite numbers above 0.
    """
    if not (_are_channels(mean) and _are_channels(std) and min(std) > 0):
        return None
    red, green, blue = map(float, mean)
    red_std, green_std, blue_std = map(float, std)
    return Normalisation((red, green, blue), (red_std, green_std, blue_std))


def given(setting: str, mean: Sequence[float], std: Sequence[float]) -> Normalisation | None:
    """Returns the normalisation of the settings `mean` and `std`; None if both are empty.

    Args:
        setting: Where the settings are, "config.teacher" or "config.student".
        mean: Means of red, green and blue.
        std: Standard deviations.

    Raises:
        SettingError: If they are not three numbers each, or a deviation is not above 0.
    """
    if not mean and not std:
        return None
    require(
        len(mean) == len(std) == 3,
        f"{setting}.mean and {setting}.std must both have a value for red, green and blue, or both "
        f"be empty; got {tuple(mean)} and {tuple(std)}.",
    )
    require(min(std) > 0, f"{setting}.std must be above 0, got {tuple(std)}.")
    return parse(mean, std)


def _are_channels(values: Any) -> bool:
    return (
        isinstance(values, Collection)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )
