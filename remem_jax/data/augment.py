"""What happens to uint8 images inside the jitted step: crop, flip, resize, range.

Teacher and student always see the same view.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.records import Key, View


class Boxes(NamedTuple):
    """A box per image, in pixels of the source."""

    top: Float[Array, " batch"]
    left: Float[Array, " batch"]
    height: Float[Array, " batch"]
    width: Float[Array, " batch"]


def to_model_range(images: Shaped[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Maps pixel values 0 to 255 to the range of the AugReg models, -1 to 1, in float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def random_boxes(
    key: Key, batch: int, *, height: int, width: int, area: tuple[float, float]
) -> Boxes:
    """Boxes of random area, aspect ratio and place, as in Inception's crops.

    Args:
        key: Random key.
        batch: How many boxes.
        height: Of the images, in pixels.
        width: The same.
        area: Smallest and largest share of the image's area, drawn uniformly.

    Returns:
        Boxes inside the image, of aspect ratios log-uniform in [3/4, 4/3]. A side that would
        leave the image is cut to it (others draw again, which jit cannot).

    Source: Szegedy et al. 2014, https://arxiv.org/abs/1409.4842, section 6.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    pixels = jax.random.uniform(area_key, (batch,), minval=area[0], maxval=area[1]) * height * width
    edge = jnp.log(4 / 3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (batch,), minval=-edge, maxval=edge))
    tall = jnp.minimum(jnp.sqrt(pixels / ratio), height)
    wide = jnp.minimum(jnp.sqrt(pixels * ratio), width)
    top = jax.random.uniform(top_key, (batch,)) * (height - tall)
    left = jax.random.uniform(left_key, (batch,)) * (width - wide)
    return Boxes(top, left, tall, wide)


def crop_and_resize(
    images: Shaped[Array, "batch height width channel"], boxes: Boxes, size: int
) -> Float[Array, "batch size size channel"]:
    """Boxes of images, resized to squares: bilinear, antialiased, in float32.

    The kernel is that of Pillow's `resize(BILINEAR, box=...)` (and tf.image's with antialias).
    """

    def one(image: Array, box: Boxes) -> Array:
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
            boxes = random_boxes(crop_key, batch, height=height, width=width, area=crop_area)
            images = crop_and_resize(images, boxes, size)
        if flip:
            mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return to_model_range(images)

    return view


def make_evaluation_view(*, size: int) -> View:
    """The view of evaluation: the whole image, resized; the key is not used."""
    return lambda key, images: to_model_range(resize(images, size))
