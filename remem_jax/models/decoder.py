"""Decoder from a teacher's patch tokens back to the image, as which I(X; F) is estimated.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, appendix A.5 and table 7; what the table
leaves open is as in InfoPro's decoder for ImageNet, Wang et al. 2021,
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

# Table 7: after each resizing, the share of the image's side, kernel's side, and channels.
STAGES = ((8, 1, 128), (4, 3, 32), (2, 3, 12))
COARSEST = STAGES[0][0]


class Decoder(nn.Module):
    """Table 7: the maps are resized and convolved four times, up to the size of the image.

        resize to 1/8 of the side    convolve 1x1, 128    BatchNorm, ReLU
        resize to 1/4                convolve 3x3, 32     BatchNorm, ReLU
        resize to 1/2                convolve 3x3, 12     BatchNorm, ReLU
        resize to the side           convolve 3x3, 3      (the sigmoid is in the loss)

    The shares are those of 28, 56 and 112 to the paper's 224 pixels. Tokens of 768 features make
    139,467 parameters. Resizing is bilinear and never averages, as torch's: a grid finer than 1/8
    of the side, as of patches of 4 pixels, loses tokens in the first.

    Kernels start as Kaiming's of the fan out, and BatchNorm's scales at 1, as in InfoPro. Differs
    from InfoPro: biases start at 0, not at random; BatchNorm takes those of three of the four out
    again.

    Attributes:
        image_size: Side of the images, in pixels; a multiple of 8.
        align_corners: Whether the outermost pixels of a resized map are those of the map, as in
            InfoPro, whose decoder table 7 is; else the maps' outer edges meet (half-pixel
            centres). The tokens see patches about half-pixel centres, so that aligned corners
            show a token up to half a patch away from what it has seen.
        channels: Of the images.
        rematerialise: What the backward pass computes again; a block is a resizing with what
            follows it. See `rematerialisation.RECOMPUTED`.
    """

    image_size: int
    align_corners: bool = True
    channels: int = 3
    rematerialise: str = "nothing"

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch side side feature"], *, train: bool = False
    ) -> Float[Array, "batch height width channel"]:
        """Logits of the image's values in [0, 1]; see `grid` for the features of a ViT."""
        maps = features.astype(jnp.float32)
        for number in range(1, len(STAGES) + 1):
            maps = self._checkpointed(functools.partial(_stage, number=number, train=train), maps)
        return self._checkpointed(_last, maps)

    def _checkpointed(self, function: Callable[..., Array], maps: Array) -> Array:
        if self.rematerialise != "nothing":
            function = nn.remat(function, policy=policy(self.rematerialise))
        return function(self, maps)


def _stage(decoder: Decoder, maps: Array, *, number: int, train: bool) -> Array:
    """One of `STAGES`, with parameters of the decoder."""
    share, kernel, channels = STAGES[number - 1]
    conv = layers.Conv(channels, kernel, has_bias=True, name=f"conv{number}")
    side = decoder.image_size // share
    if kernel == 1 and side > maps.shape[1]:
        # They commute, and the map is smaller before it is resized.
        maps = kept("convolution", conv(maps))
        maps = resized(maps, side, align_corners=decoder.align_corners)
    else:
        maps = conv(resized(maps, side, align_corners=decoder.align_corners))
        maps = kept("convolution", maps)
    return nn.relu(layers.BatchNorm(name=f"bn{number}")(maps, train=train))


def _last(decoder: Decoder, maps: Array) -> Array:
    """The last convolution, at the side of the image."""
    maps = resized(maps, decoder.image_size, align_corners=decoder.align_corners)
    name = f"conv{len(STAGES) + 1}"
    return layers.Conv(decoder.channels, 3, has_bias=True, name=name)(maps)


def make(*, image_size: int, align_corners: bool = True) -> Decoder:
    """A decoder for square images; raises ValueError where their size does not divide by 8."""
    if image_size < COARSEST or image_size % COARSEST:
        raise ValueError(
            f"The decoder needs images of a multiple of {COARSEST} pixels, got {image_size}; "
            "set config.data.image_size."
        )
    return Decoder(image_size, align_corners)


def make_init(decoder: Decoder, *, side: int, width: int) -> Callable[[Key], Variables]:
    """First variables by key, `(key) -> variables`, compiled once for all seeds.

    Args:
        decoder: The decoder.
        side: Of the grid of tokens.
        width: Of a token.
    """
    features = jnp.zeros((1, side, side, width))

    def init(key: Key) -> Variables:
        return decoder.init(key, features)

    return jax.jit(init)


def grid(tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch side side feature"]:
    """Patch tokens on their square grid, such as `Outputs.patches`; without [CLS].

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
    """Square maps of another side, bilinear as torch's `interpolate`: never antialiased."""
    if maps.shape[1:3] == (side, side):
        return maps
    down, across = (
        jnp.asarray(_weights(old, side, align_corners=align_corners)) for old in maps.shape[1:3]
    )
    # Two products, whose gradients are products; those of gathered pixels would be scattered.
    precision = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("ri,bijc->brjc", down, maps, precision=precision)
    return jnp.einsum("sj,brjc->brsc", across, tall, precision=precision)


def _weights(old: int, new: int, *, align_corners: bool) -> Float[np.ndarray, "new old"]:
    """What each new pixel of a line takes of each old one."""
    if align_corners:
        centres = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    distances = np.abs(centres[:, None] - np.arange(old)[None])
    return np.maximum(1 - distances, 0).astype(np.float32)
