"""What is done to images between the data set and the models.

Each transform is defined once; where the host needs it too, in NumPy, both are tested to agree.
Teacher and student always see the same view.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.data.boxes import Boxes, random_boxes
from remem_jax.records import Key, View


def to_model_range(images: Shaped[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Maps pixel values 0 to 255 to the range of the AugReg models, -1 to 1, in float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def crop_and_resize(
    images: Shaped[Array, "batch height width channel"], boxes: Boxes, size: int
) -> Float[Array, "batch size size channel"]:
    """Boxes of images, resized to squares: bilinear, antialiased, in float32.

    The kernel is that of Pillow's `resize(BILINEAR, box=...)` (and tf.image's with antialias);
    `decoding.resize` is the same on the host, rounded to whole grey levels.
    """

    def one(image: Array, box: Any) -> Array:
        scale = jnp.stack([size / box.height, size / box.width])
        shift = -jnp.stack([box.top, box.left]) * scale
        shape = (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, "linear")

    return jax.vmap(one)(images.astype(jnp.float32), boxes)


def resize(
    images: Shaped[Array, "batch height width channel"], size: int
) -> Float[Array, "batch size size channel"]:
    """Whole images as squares, the aspect ratio ignored, as in VTAB and vit_jax."""
    shape = (images.shape[0], size, size, images.shape[-1])
    return jax.image.resize(images.astype(jnp.float32), shape, "linear")


def mixup_share(key: Key, alpha: float) -> Float[Array, ""]:
    """The share of each image in its mixture, for `mix`; one draw for a whole batch.

    Args:
        key: Random key.
        alpha: Both parameters of the Beta distribution, above 0.

    Returns:
        The larger of the two shares: an image is never less than half of its mixture.

    Source: Zhang et al. 2018, https://arxiv.org/abs/1710.09412; one draw per batch as in Beyer et
    al. 2022, https://arxiv.org/abs/2106.05237.
    """
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1 - share)


def mix(values: Float[Array, "*dims"], share: Float[Array, ""]) -> Float[Array, "*dims"]:
    """Mixes each example's values, images or shares of classes, with those of the one before it."""
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


def make_train_view(*, size: int, crop_area: tuple[float, float], flip: bool) -> View:
    """The view of training: random crop, flip, resize, range.

    Args:
        size: Side of the result, in pixels.
        crop_area: Smallest and largest share of the image's area; (1, 1) takes all of it.
        flip: Whether to mirror half of the images; wrong for digits.
    """

    def view(key: Key, images: Array) -> Array:
        batch, height, width, _ = images.shape
        crop_key, flip_key = jax.random.split(key)
        if crop_area == (1.0, 1.0):
            images = resize(images, size)
        else:
            draws = jax.random.uniform(crop_key, (4, batch))
            boxes = random_boxes(draws, height=height, width=width, area=crop_area)
            images = crop_and_resize(images, boxes, size)
        if flip:
            mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return to_model_range(images)

    return view


def make_evaluation_view(*, size: int) -> View:
    """The view of evaluation: the whole image, resized; the key is not used."""
    return lambda key, images: to_model_range(resize(images, size))


def streamed_view(key: Key, images: Array) -> Array:
    """The view of images that the host has cropped, resized and mirrored already: range alone."""
    del key
    return to_model_range(images)
