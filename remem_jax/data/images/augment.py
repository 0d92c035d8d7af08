"""Transforms of images between the data set and the models.

Each transform is defined once; if the host needs it too, in NumPy, tests check that both agree.
Teacher and student always get the same augmented images.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from remem_jax import random_streams
from remem_jax.data.images.boxes import Boxes, random_boxes
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.records import Key, Transform

# Up to this number of taps, summing pixels is three times as fast on a CPU as multiplying by a
# mostly zero matrix, as jax.image does.
_MOST_TAPS = 8


def to_model_range(images: Shaped[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Maps pixel values 0 to 255 to the range of the AugReg models, -1 to 1, in float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def crop_and_resize(
    images: Shaped[Array, "batch height width channel"],
    boxes: Boxes,
    size: int,
    *,
    mirrored: Bool[Array, " batch"] | None = None,
) -> Float[Array, "batch size size channel"]:
    """Crops boxes of images and resizes them to squares: bilinear, antialiased, in float32.

    The kernel is that of Pillow's `resize(BILINEAR, box=...)` (and tf.image's with antialias);
    `decoding.resize` is the same on the host, rounded to whole grey levels.

    Args:
        images: Pixel values from 0 to 255.
        boxes: One box for each image.
        size: Side of the result, in pixels.
        mirrored: Which images to flip horizontally; None is none.
    """
    if mirrored is None:
        mirrored = jnp.zeros(images.shape[:1], bool)

    def crop(image: Array, box: Any, mirror: Array) -> Array:
        height, width, channels = image.shape
        if max(_taps(height, size), _taps(width, size)) > _MOST_TAPS:
            scale = jnp.stack([size / box.height, size / box.width])
            shift = -jnp.stack([box.top, box.left]) * scale
            shape = (size, size, channels)
            image = jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, "linear")
            return jnp.where(mirror, image[:, ::-1], image)
        # Mirrored by resampling: afterwards, XLA would recompute the image for every pixel.
        places = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        across = jnp.where(mirror, places[::-1], places)
        image = _resample(image, 0, box.top, box.height, places)
        return _resample(image, 1, box.left, box.width, across)

    return jax.vmap(crop)(images.astype(jnp.float32), boxes, mirrored)


def _whole(batch: int, height: int, width: int) -> Boxes:
    return Boxes(*(jnp.full((batch,), edge) for edge in (0.0, 0.0, float(height), float(width))))


def _taps(extent: int, size: int) -> int:
    """Returns the largest number of pixels along an axis that one result pixel depends on."""
    return math.ceil(2 * max(extent / size, 1)) + 1


def _resample(
    image: Float[Array, "_ _ channel"],
    axis: int,
    start: Float[Array, ""],
    length: Float[Array, ""],
    places: Float[Array, " size"],
) -> Float[Array, "_ _ channel"]:
    """Resamples an axis of an image at places from 0 to 1 between `start` and `start + length`."""
    extent, size = image.shape[axis], len(places)
    reach = jnp.maximum(length / size, 1.0)
    centers = start + places * length
    first = jnp.floor(centers - reach).astype(jnp.int32)
    weights, values = [], []
    for tap in range(_taps(extent, size)):
        pixels = first + tap
        off = jnp.abs(pixels.astype(jnp.float32) + 0.5 - centers)
        inside = (pixels >= 0) & (pixels < extent)
        weights.append(jnp.where(inside, jnp.maximum(1.0 - off / reach, 0.0), 0.0))
        values.append(jnp.take(image, pixels, axis=axis, mode="clip"))
    total = functools.reduce(jnp.add, weights)
    along = [1 if other != axis else size for other in range(3)]
    return functools.reduce(
        jnp.add,
        [
            (weight / total).reshape(along) * value
            for weight, value in zip(weights, values, strict=True)
        ],
    )


def mixup_share(key: Key, alpha: float) -> Float[Array, ""]:
    """Draws the share of each image in its mixture, for `mix`; one draw for a whole batch.

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
    """Mixes each example's images or labels with those of the previous example."""
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


class Mixing(NamedTuple):
    """How the images of a batch are mixed; each value is both parameters of a Beta distribution.

    Attributes:
        mixup: Mixup; 0 is none.
        cutmix: CutMix; 0 is none. With both, each batch gets one of them, with equal chances.
    """

    mixup: float = 0.0
    cutmix: float = 0.0


def mix_images(
    images: Float[Array, "batch height width channel"], key: Key, mixing: Mixing
) -> tuple[Float[Array, "batch height width channel"], Float[Array, ""]]:
    """Mixes each image with the previous one, by Mixup or CutMix.

    Args:
        images: Model inputs.
        key: Key of the stage and this step. The streams are "mixup" and "cutmix".
        mixing: At least one of its values is above 0.

    Returns:
        The mixtures, and the share of each image in its mixture, for `mix` of the labels.
    """
    if not mixing.cutmix:
        share = mixup_share(random_streams.within(key, "mixup"), mixing.mixup)
        return mix(images, share), share
    keys = jax.random.split(random_streams.within(key, "cutmix"), 4)
    height, width = images.shape[1:3]
    share = jax.random.beta(keys[0], mixing.cutmix, mixing.cutmix)
    row, column = (jax.random.randint(keys[1 + i], (), 0, images.shape[1 + i]) for i in (0, 1))
    inside, share = cutmix_box(height, width, share, row, column)
    cut = jnp.where(inside[None, :, :, None], jnp.roll(images, 1, axis=0), images)
    if not mixing.mixup:
        return cut, share
    other = mixup_share(random_streams.within(key, "mixup"), mixing.mixup)
    cuts = jax.random.bernoulli(keys[3])
    return jnp.where(cuts, cut, mix(images, other)), jnp.where(cuts, share, other)


def cutmix_box(
    height: int, width: int, share: Float[Array, ""], row: Int[Array, ""], column: Int[Array, ""]
) -> tuple[Bool[Array, "height width"], Float[Array, ""]]:
    """Determines which pixels of an image CutMix replaces by those of another image.

    Args:
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        share: Share of the image's area that stays; the box is cut off at the borders.
        row: Row of the centre of the box, in pixels.
        column: Column of the centre of the box, in pixels.

    Returns:
        Whether each pixel is replaced, and the share that stays.

    Source: Yun et al. 2019, https://arxiv.org/abs/1905.04899, section 3.1.
    """

    def bounds(extent: int, center: Int[Array, ""]) -> tuple[Array, Array]:
        side = jnp.floor(extent * jnp.sqrt(1 - share)).astype(jnp.int32)
        start, end = center - side // 2, center + (side + 1) // 2
        return start.clip(0, extent), end.clip(0, extent)

    top, bottom = bounds(height, row)
    left, right = bounds(width, column)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    area = ((bottom - top) * (right - left)).astype(jnp.float32)
    return in_rows & in_columns, 1 - area / (height * width)


def make_train_transform(*, size: int, crop_area: tuple[float, float], flip: bool) -> Transform:
    """Builds the training transform: random crop, flip, resize and scaling to [-1, 1].

    Args:
        size: Side of the result, in pixels.
        crop_area: Smallest and largest share of the image's area; (1, 1) is the whole image.
        flip: Whether each image is mirrored with probability 0.5; wrong for digits.

    Returns:
        The transform. It draws from the streams "crops" and "flips" of the step's key.
    """

    def transform(key: Key, images: Array) -> Array:
        batch, height, width, _ = images.shape
        if crop_area == (1.0, 1.0):
            boxes = _whole(batch, height, width)
        else:
            draws = jax.random.uniform(random_streams.within(key, "crops"), (4, batch))
            boxes = random_boxes(draws, height=height, width=width, area=crop_area)
        mirrored = None
        if flip:
            mirrored = jax.random.bernoulli(random_streams.within(key, "flips"), shape=(batch,))
        return to_model_range(crop_and_resize(images, boxes, size, mirrored=mirrored))

    return transform


def make_evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Builds the evaluation transform of stored images; the key is not used.

    Args:
        preprocessing: Whether the whole image is resized, or its centre; `stored_size` is ignored.
    """

    def transform(key: Key, images: Array) -> Array:
        del key
        batch, height, width, _ = images.shape
        left, top, right, bottom = preprocessing.box(height, width)
        edges = top, left, bottom - top, right - left
        boxes = Boxes(*(jnp.full((batch,), edge) for edge in edges))
        return to_model_range(crop_and_resize(images, boxes, preprocessing.image_size))

    return transform


def streamed_transform(key: Key, images: Array) -> Array:
    """Scales images that the host has already cropped, resized and mirrored to [-1, 1]."""
    del key
    return to_model_range(images)
