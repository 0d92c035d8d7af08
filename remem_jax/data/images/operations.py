"""Operations of augmentation policies on the device, equal to those of torchvision and Pillow.

Images have whole grey levels from 0 to 255, in float32, as Pillow's are uint8. Tests compare each
operation with torchvision's on Pillow images.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Image = Float[Array, "height width channel"]
Scalar = Float[Array, ""]

# In the order of torchvision's policies, whose indices are drawn.
NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_GREY = (19595, 38470, 7471)  # Weights of red, green and blue in Pillow's mode "L", times 2**16.
_LEVELS = 256


def apply(image: Image, operation: Int[Array, ""], magnitude: Scalar) -> Image:
    """Applies one of `NAMES` to an image.

    All operations are computed, because images of a batch differ in theirs. Geometric operations
    share one resampling, and operations on colours one blend.

    Args:
        image: Whole grey levels from 0 to 255.
        operation: Index in `NAMES`.
        magnitude: As in torchvision: a shear, pixels, degrees, the change of a factor, bits, a
            threshold. The others ignore it.
    """

    def chosen(name: str) -> Array:
        return operation == NAMES.index(name)

    moved = warp(image, _matrix(image, operation, magnitude))
    degenerates = {
        "Brightness": jnp.zeros_like(image),
        "Color": _in_all_channels(grey(image), image),
        "Contrast": _mean_grey(image),
        "Sharpness": _smooth(image),
    }
    results = {name: blend(other, image, 1 + magnitude) for name, other in degenerates.items()}
    results["Posterize"] = posterize(image, magnitude)
    results["Solarize"] = solarize(image, magnitude)
    results["AutoContrast"] = autocontrast(image)
    results["Equalize"] = equalize(image)
    return jnp.select([chosen(name) for name in results], list(results.values()), moved)


def _matrix(image: Image, operation: Int[Array, ""], magnitude: Scalar) -> Float[Array, "2 3"]:
    """Returns the matrix of `warp` for a geometric operation; otherwise the identity."""
    height, width, _ = image.shape
    zero, one = jnp.zeros(()), jnp.ones(())
    whole = jnp.trunc(magnitude)
    angle = jnp.deg2rad(magnitude)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    across, down = width / 2, height / 2
    matrices = {
        "ShearX": (one, magnitude, zero, zero, one, zero),
        "ShearY": (one, zero, zero, magnitude, one, zero),
        "TranslateX": (one, zero, -whole, zero, one, zero),
        "TranslateY": (one, zero, zero, zero, one, -whole),
        "Rotate": (
            *(cos, -sin, across - cos * across + sin * down),
            *(sin, cos, down - sin * across - cos * down),
        ),
    }
    stacked = [jnp.stack(matrix).reshape(2, 3) for matrix in matrices.values()]
    return jnp.select([operation == NAMES.index(name) for name in matrices], stacked, jnp.eye(2, 3))


def warp(image: Image, matrix: Float[Array, "2 3"]) -> Image:
    """Resamples an image at affinely transformed places; takes the nearest pixel.

    Args:
        image: The image.
        matrix: Maps the place (x, y, 1) of a pixel's centre in the result to its place (x, y) in
            the image, in pixels. Pixels from outside the image are black.
    """
    height, width, _ = image.shape
    x = jnp.arange(width, dtype=jnp.float32)[None] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    columns, rows = (
        jnp.floor(across * x + down * y + shift).astype(jnp.int32) for across, down, shift in matrix
    )
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return jnp.where(inside[:, :, None], pixels, 0.0)


def blend(degenerate: Image, image: Image, factor: Scalar) -> Image:
    """Interpolates from a degenerate image (factor 0) to the image (1), or extrapolates."""
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def grey(image: Image) -> Float[Array, "height width 1"]:
    """Converts an image to Pillow's mode "L"."""
    weighted = image.astype(jnp.int32) * jnp.asarray(_GREY, jnp.int32)[None, None]
    return ((weighted.sum(axis=-1, keepdims=True) + (1 << 15)) >> 16).astype(jnp.float32)


def jitter(image: Image, factors: Float[Array, " 3"], order: Int[Array, " 3"]) -> Image:
    """Changes brightness, contrast and saturation, as in torchvision's ColorJitter.

    Args:
        image: Whole grey levels from 0 to 255.
        factors: Factors of brightness, contrast and saturation; 1 changes nothing.
        order: Indices of the factors, in the order in which they are applied.
    """
    for index in range(len(order)):
        which = order[index]
        plane = grey(image)
        mean = jnp.floor(jnp.mean(plane) + 0.5)
        plane = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, plane))
        image = blend(_in_all_channels(plane, image), image, factors[which])
    return image


def posterize(image: Image, bits: Scalar) -> Image:
    """Keeps the upper bits of each grey level."""
    step = jnp.exp2(8 - bits)
    return jnp.floor(image / step) * step


def solarize(image: Image, threshold: Scalar) -> Image:
    """Inverts grey levels from a threshold on."""
    return jnp.where(image < threshold, image, 255 - image)


def autocontrast(image: Image) -> Image:
    """Stretches the grey levels of each channel to the whole range."""
    low, high = (reduce(image, axis=(0, 1), keepdims=True) for reduce in (jnp.min, jnp.max))
    stretched = jnp.floor((image - low) * 255 / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, image)


def equalize(image: Image) -> Image:
    """Equalises the histogram of each channel."""

    def channel(values: Float[Array, "height width"]) -> Float[Array, "height width"]:
        levels = values.astype(jnp.int32)
        counts = jax.lax.platform_dependent(levels, cpu=_scattered, default=_compared)
        last = counts[jnp.max(levels)]
        step = (jnp.sum(counts) - last) // 255
        below = jnp.cumsum(counts) - counts
        table = ((step // 2 + below) // jnp.maximum(step, 1)).clip(0, 255)
        return jnp.where(step > 0, table[levels], levels).astype(jnp.float32)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def _scattered(levels: Int[Array, "height width"]) -> Int[Array, " levels"]:
    """Counts the pixels of each level by scattering, which is fast on a CPU."""
    return jnp.zeros(_LEVELS, jnp.int32).at[levels.ravel()].add(1)


def _compared(levels: Int[Array, "height width"]) -> Int[Array, " levels"]:
    """Counts the pixels of each level by comparisons, which accelerators do in parallel."""
    is_level = levels.ravel()[:, None] == jnp.arange(_LEVELS)[None]
    return jnp.sum(is_level, axis=0, dtype=jnp.int32)


def _mean_grey(image: Image) -> Image:
    return jnp.full_like(image, jnp.floor(jnp.mean(grey(image)) + 0.5))


def _in_all_channels(plane: Float[Array, "height width 1"], image: Image) -> Image:
    return jnp.broadcast_to(plane, image.shape)


def _smooth(image: Image) -> Image:
    """Applies Pillow's filter SMOOTH, which leaves the border as it is."""
    height, width, channels = image.shape
    # Rows of pixels and channels together are long enough for a CPU's vectors.
    flat = image.reshape(height, width * channels)
    columns = flat[:-2] + flat[1:-1] + flat[2:]
    around = columns[:, : -2 * channels] + columns[:, channels:-channels]
    around += columns[:, 2 * channels :]
    inner = flat[1:-1, channels:-channels]
    smooth = jnp.floor((around + 4 * inner) / 13 + 0.5)
    return flat.at[1:-1, channels:-channels].set(smooth).reshape(image.shape)
