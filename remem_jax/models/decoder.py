"""Decoder from a teacher's patch tokens to the image, for estimating I(X; F).

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, appendix A.5 and table 7. What the table
does not state is as in InfoPro's decoder for ImageNet, Wang et al. 2021,
https://arxiv.org/abs/2101.10832, and its code, https://github.com/blackfeather-wang/InfoPro-Pytorch.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.models import layers
from remem_jax.models.rematerialisation import kept, policy
from remem_jax.records import Key, Variables

# Table 7: the image's side over the maps' side after each resizing, side of the kernel, channels.
STAGES = ((8, 1, 128), (4, 3, 32), (2, 3, 12))
COARSEST = STAGES[0][0]


class Decoder(nn.Module):
    """Resizes and convolves the maps four times, up to the size of the image (table 7).

        resize to 1/8 of the side    convolve 1x1, 128    BatchNorm, ReLU
        resize to 1/4                convolve 3x3, 32     BatchNorm, ReLU
        resize to 1/2                convolve 3x3, 12     BatchNorm, ReLU
        resize to the side           convolve 3x3, 3      (the sigmoid is in the loss)

    The paper resizes to 28, 56, 112 and 224 pixels. With tokens of 768 features, the decoder has
    139,467 parameters. Resizing is bilinear and never averages, as in torch: if the grid of tokens
    is finer than 1/8 of the side, as with patches of 4 pixels, the first resizing drops tokens.

    Kernels are initialised by Kaiming's method with the fan-out, and BatchNorm's scales with 1, as
    in InfoPro. Differs from InfoPro: biases start at 0, not at random. BatchNorm removes three of
    the four.

    Attributes:
        image_size: Side of the images, in pixels; a multiple of 8.
        align_corners: Whether resizing maps the centres of the corner pixels to each other, as in
            InfoPro, or the outer edges (half-pixel centres). The patches of tokens have half-pixel
            centres, so with aligned corners a token is up to half a patch away from its patch.
        channels: Number of channels of the images.
        rematerialise: One of `rematerialisation.RECOMPUTED`; a block is a resizing and its
            convolution.
    """

    image_size: int
    align_corners: bool = True
    channels: int = 3
    rematerialise: str = "nothing"

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch side side feature"], *, train: bool = False
    ) -> Float[Array, "batch height width channel"]:
        """Returns logits of the image's values in [0, 1]; `grid` converts the tokens of a ViT."""
        maps = features.astype(jnp.float32)
        for number in range(1, len(STAGES) + 1):
            maps = self._checkpointed(functools.partial(_stage, number=number, train=train), maps)
        return self._checkpointed(_last, maps)

    def _checkpointed(self, function: Callable[..., Array], maps: Array) -> Array:
        if self.rematerialise != "nothing":
            function = nn.remat(function, policy=policy(self.rematerialise))
        return function(self, maps)


def _stage(decoder: Decoder, maps: Array, *, number: int, train: bool) -> Array:
    """Applies one of `STAGES`, with parameters of the decoder."""
    ratio, kernel, channels = STAGES[number - 1]
    conv = layers.Conv(channels, kernel, has_bias=True, name=f"conv{number}")
    side = decoder.image_size // ratio
    if kernel == 1 and side > maps.shape[1]:
        # The two commute, and the convolution is cheaper before resizing.
        maps = kept("convolution", conv(maps))
        maps = resized(maps, side, align_corners=decoder.align_corners)
    else:
        maps = conv(resized(maps, side, align_corners=decoder.align_corners))
        maps = kept("convolution", maps)
    return nn.relu(layers.BatchNorm(name=f"bn{number}")(maps, train=train))


def _last(decoder: Decoder, maps: Array) -> Array:
    """Applies the last convolution, at the size of the image."""
    maps = resized(maps, decoder.image_size, align_corners=decoder.align_corners)
    name = f"conv{len(STAGES) + 1}"
    return layers.Conv(decoder.channels, 3, has_bias=True, name=name)(maps)


def make(*, image_size: int, align_corners: bool = True) -> Decoder:
    """Builds a decoder for square images; raises `ValueError` if 8 does not divide their side."""
    if image_size < COARSEST or image_size % COARSEST:
        raise ValueError(
            f"The decoder needs images of a multiple of {COARSEST} pixels, got {image_size}; "
            "set config.data.image_size."
        )
    return Decoder(image_size, align_corners)


def make_init(decoder: Decoder, *, side: int, width: int) -> Callable[[Key], Variables]:
    """Returns a function that initialises the variables, compiled once for all keys.

    Args:
        decoder: The decoder.
        side: Side of the grid of tokens.
        width: Number of features of a token.
    """
    features = jnp.zeros((1, side, side, width))

    def init(key: Key) -> Variables:
        return decoder.init(key, features)

    return jax.jit(init)


def grid(tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch side side feature"]:
    """Arranges patch tokens, such as `Outputs.patches`, on their square grid; without [CLS].

    Raises:
        ValueError: If the tokens do not fill a square.
    """
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens fill no square; give patches alone, no [CLS].")
    return tokens.reshape(tokens.shape[0], side, side, tokens.shape[-1])


def resized(
    maps: Float[Array, "batch height width channel"], side: int, *, align_corners: bool
) -> Float[Array, "batch side side channel"]:
    """Resizes maps to a square, bilinearly as torch's `interpolate`, without antialiasing."""
    if maps.shape[1:3] == (side, side):
        return maps
    down, across = (
        jnp.asarray(_weights(old, side, align_corners=align_corners)) for old in maps.shape[1:3]
    )
    # Two matrix products: their gradients are matrix products, those of a gather would be scatters.
    precision = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("ri,bijc->brjc", down, maps, precision=precision)
    return jnp.einsum("sj,brjc->brsc", across, tall, precision=precision)


def _weights(old: int, new: int, *, align_corners: bool) -> Float[np.ndarray, "new old"]:
    """Returns the weight of each old pixel in each new pixel, along one axis."""
    if align_corners:
        centres = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    distances = np.abs(centres[:, None] - np.arange(old)[None])
    return np.maximum(1 - distances, 0).astype(np.float32)
