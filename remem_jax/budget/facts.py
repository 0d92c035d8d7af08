"""What a plan needs to know about the images and the device, found without decoding any image."""

import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import platforms
from remem_jax.data import sources, splitting
from remem_jax.data.images import decoding
from remem_jax.data.sources import Source, Split

_SAMPLED = 200  # Images whose size is read; enough for a median.
_SIDES = {"cpu": 1024}  # Sides of the matrices whose product is timed.
_LARGE = 8192
_ALL = splitting.Rules(validation=0.0, seed=0, near_duplicates=False)  # Holds out test alone.


class Facts(NamedTuple):
    """Facts about the images.

    Attributes:
        examples: Number of images by split, before validation is held out.
        classes: Number of classes.
        side: Median of the images' shorter sides, in pixels, of a sample.
        unlabelled: Number of images without labels.
    """

    examples: dict[str, int]
    classes: int
    side: int
    unlabelled: int = 0


def of_source(source: Source) -> Facts:
    """Returns the facts about a data set; reads the headers of some images."""
    split = source.splits[sources.TRAIN]
    chosen = np.linspace(0, split.examples - 1, min(_SAMPLED, split.examples)).astype(int)
    examples = {name: each.examples for name, each in source.splits.items()}
    sides = [side for i in chosen.tolist() if (side := _side(split, i))]
    return Facts(
        {**examples, sources.TRAIN: splitting.train_images(source, _ALL)},
        len(source.classes),
        round(statistics.median(sides)) if sides else 0,
        source.unlabelled.split.examples if source.unlabelled else 0,
    )


def _side(split: Split, i: int) -> int:
    """Returns the shorter side of an image; 0 if it cannot be read, which the scan reports."""
    try:
        image = split.read(i).image
        return min(decoding.size(image) if isinstance(image, bytes) else image.shape[:2])
    except decoding.CorruptImageError:
        return 0


def device_rate(device: Any, dtype: str) -> float:
    """Measures the floating-point operations per second of a large matrix product.

    Args:
        device: A `jax.Device`.
        dtype: Compute type of the networks.
    """
    side = _SIDES.get(platforms.of(device), _LARGE)
    with jax.default_device(device):
        matrix = jnp.ones((side, side), dtype)
        product = jax.jit(jnp.matmul)
        product(matrix, matrix).block_until_ready()  # Compiles.
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            product(matrix, matrix).block_until_ready()
            seconds.append(time.monotonic() - began)
    return 2 * side**3 / min(seconds)
