"""Changes of training images that follow crops and flips: policies, colour jitter and erasing.

They run on the device, in the jitted step, on model inputs. So resident and streamed images share
them, and so do teacher and students. Their streams are "policy", "colors" and "erasing".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remem_jax import random_streams
from remem_jax.data.images import augment, operations
from remem_jax.records import Key, Transform

POLICIES = ("none", "trivial", "rand")
BINS = 31  # Magnitudes of each operation.
# Relative areas and aspect ratios of erased rectangles, and attempts to find one, as in timm.
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_ATTEMPTS = 10


class Changes(NamedTuple):
    """Changes of training images; the defaults change nothing.

    Attributes:
        policy: "trivial" (TrivialAugment), "rand" (RandAugment) or "none".
        operations: Operations of RandAugment for each image.
        magnitude: Magnitude of RandAugment, from 0 to `BINS` - 1.
        jitter: Largest relative change of brightness, contrast and saturation.
        erasing: Probability that a rectangle of an image is erased.
    """

    policy: str = "none"
    operations: int = 2
    magnitude: int = 9
    jitter: float = 0.0
    erasing: float = 0.0


def extended(transform: Transform, changes: Changes) -> Transform:
    """Adds changes to a transform; returns the transform itself if there are none.

    Args:
        transform: Crops and flips training images, and returns model inputs.
        changes: What is added, in the order of the attributes of `Changes`.
    """
    has_policy = changes.policy != "none"
    if not (has_policy or changes.jitter or changes.erasing):
        return transform

    def extended_transform(key: Key, images: Array) -> Array:
        inputs = transform(key, images)
        if has_policy or changes.jitter:
            pixels = jnp.round(jnp.clip((inputs + 1) * 127.5, 0, 255))
            if has_policy:
                stream = random_streams.within(key, "policy")
                pixels = apply_policy(stream, pixels, changes)
            if changes.jitter:
                pixels = jitter(random_streams.within(key, "colors"), pixels, changes.jitter)
            inputs = augment.to_model_range(pixels)
        if changes.erasing:
            stream, (batch, height, width, _) = random_streams.within(key, "erasing"), inputs.shape
            erased = erased_pixels(stream, (batch, height, width), changes.erasing)
            inputs = jnp.where(erased[:, :, :, None], 0.0, inputs)
        return inputs

    return extended_transform


def apply_policy(
    key: Key, images: Float[Array, "batch height width channel"], changes: Changes
) -> Float[Array, "batch height width channel"]:
    """Applies random operations to each image.

    TrivialAugment draws one operation and its magnitude; RandAugment draws several, whose
    magnitude is fixed. Operations with a direction have a random sign.

    Args:
        key: Key of the stream.
        images: Whole grey levels from 0 to 255.
        changes: The policy and its settings.

    Source: Müller & Hutter 2021, https://arxiv.org/abs/2103.10158 (the wide space); Cubuk et al.
    2019, https://arxiv.org/abs/1909.13719. Operations and magnitudes as in torchvision.
    """
    batch, height, width, _ = images.shape
    magnitudes, signed = magnitude_table(changes.policy, height, width)
    count = changes.operations if changes.policy == "rand" else 1
    which_key, bin_key, sign_key = jax.random.split(key, 3)
    which = jax.random.randint(which_key, (count, batch), 0, len(operations.NAMES))
    bins = jax.random.randint(bin_key, (count, batch), 0, BINS)
    if changes.policy == "rand":
        bins = jnp.full_like(bins, changes.magnitude)
    negative = jax.random.bernoulli(sign_key, shape=(count, batch)) & jnp.asarray(signed)[which]
    magnitude = jnp.asarray(magnitudes)[which, bins] * jnp.where(negative, -1.0, 1.0)

    def step(pixels: Array, drawn: tuple[Array, Array]) -> tuple[Array, None]:
        return jax.vmap(operations.apply)(pixels, *drawn), None

    changed, _ = jax.lax.scan(step, images, (which, magnitude))  # Compiles one operation.
    return changed


def magnitude_table(policy: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the magnitudes of a policy's operations, and which of them have a random sign.

    Args:
        policy: "trivial" or "rand".
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.

    Returns:
        Magnitudes, float32, (operation, bin), in the order of `operations.NAMES`; and bool,
        (operation,).
    """
    wide = policy == "trivial"
    shear, degrees, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    across, down = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    signed = {
        **{"ShearX": shear, "ShearY": shear, "TranslateX": across, "TranslateY": down},
        **{"Rotate": degrees},
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor),
    }
    rows = {name: np.linspace(0, largest, BINS) for name, largest in signed.items()}
    rows["Posterize"] = 8 - np.round(np.arange(BINS) / ((BINS - 1) / bits))
    rows["Solarize"] = np.linspace(255, 0, BINS)
    table = [rows.get(name, np.zeros(BINS)) for name in operations.NAMES]
    return np.asarray(table, np.float32), np.asarray([name in signed for name in operations.NAMES])


def jitter(
    key: Key, images: Float[Array, "batch height width channel"], strength: float
) -> Float[Array, "batch height width channel"]:
    """Changes brightness, contrast and saturation of each image, in a random order.

    Args:
        key: Key of the stream.
        images: Whole grey levels from 0 to 255.
        strength: The factors are uniform from 1 - strength, at least 0, to 1 + strength.
    """
    factor_key, order_key = jax.random.split(key)
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = jax.random.uniform(factor_key, (len(images), 3), minval=low, maxval=high)
    order = jnp.argsort(jax.random.uniform(order_key, (len(images), 3)), axis=-1)
    return jax.vmap(operations.jitter)(images, factors, order)


def erased_pixels(
    key: Key, shape: tuple[int, int, int], probability: float
) -> Bool[Array, "batch height width"]:
    """Draws rectangles that are erased: made grey, the middle of the models' input range.

    The area of a rectangle is uniform, and its aspect ratio log-uniform. The first of ten
    rectangles that fits into the image is used; if none fits, nothing is erased.

    Args:
        key: Key of the stream.
        shape: Number, height and width of the images.
        probability: Probability that a rectangle of an image is erased.

    Source: Zhong et al. 2017, https://arxiv.org/abs/1708.04896; the ranges are timm's.
    """
    batch, height, width = shape
    chosen_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
    draws = (batch, _ATTEMPTS)
    low, high = _ERASED_AREA
    area = jax.random.uniform(area_key, draws, minval=low, maxval=high) * (height * width)
    low, high = np.log(_ERASED_RATIO).tolist()
    ratio = jnp.exp(jax.random.uniform(ratio_key, draws, minval=low, maxval=high))
    tall, wide = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    tall, wide, any_fits = (
        jnp.take_along_axis(values, first, axis=1) for values in (tall, wide, fits)
    )
    top = jnp.floor(jax.random.uniform(top_key, (batch, 1)) * (height - tall + 1))
    left = jnp.floor(jax.random.uniform(left_key, (batch, 1)) * (width - wide + 1))
    rows, columns = (jnp.arange(side, dtype=jnp.float32)[None] for side in (height, width))
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    chosen = any_fits & jax.random.bernoulli(chosen_key, probability, (batch, 1))
    return in_rows[:, :, None] & in_columns[:, None] & chosen[:, :, None]
