"""RegNetY, equal to timm's and under timm's names.

Source: Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models import layers
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.models.squeeze_excite import SqueezeExcite

_STEM = 32  # Channels of the first convolution.


class Architecture(NamedTuple):
    """The table of a RegNetY.

    Attributes:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        group: Channels of a group of the 3x3 convolutions.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group: int


# Table 9 of the paper: the widths follow from a linear rule, quantised.
REGNETY_400MF = Architecture((1, 3, 6, 6), (48, 104, 208, 440), 8)
REGNETY_800MF = Architecture((1, 3, 8, 2), (64, 128, 320, 768), 16)


class ConvNorm(nn.Module):
    """A convolution, its BatchNorm and, if `has_relu`, a ReLU.

    Attributes:
        channels: Channels of the output.
        kernel: Side of the kernel, in pixels.
        stride: Stride, in pixels.
        group: Channels of a group; 0 for a single group.
        has_relu: Whether a ReLU follows.
        scale_init: Initialiser of BatchNorm's scale.
        dtype: Type of the computation.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    group: int = 0
    has_relu: bool = True
    scale_init: layers.Init = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        groups = self.channels // self.group if self.group else 1
        conv = layers.Conv(
            self.channels, self.kernel, self.stride, dtype=self.dtype, groups=groups, name="conv"
        )
        norm = layers.BatchNorm(scale_init=self.scale_init, name="bn")
        out = norm(conv(maps), train=train)
        return nn.relu(out) if self.has_relu else out


class Block(nn.Module):
    """A 1x1, a grouped 3x3 and a 1x1 convolution, with squeeze-and-excitation, and a residual.

    Attributes:
        channels: Channels of the convolutions.
        stride: Stride of the 3x3 convolution and of the residual's projection, in pixels.
        group: Channels of a group.
        drop_path: Share of the images for which the block is left out in training.
        dtype: Type of the computation.
    """

    channels: int
    stride: int
    group: int
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        channels, stride, dtype, inputs = self.channels, self.stride, self.dtype, maps.shape[-1]
        out = ConvNorm(channels, dtype=dtype, name="conv1")(maps, train=train)
        out = ConvNorm(channels, 3, stride, self.group, dtype=dtype, name="conv2")(out, train=train)
        out = SqueezeExcite(round(inputs / 4), ("fc1", "fc2"), dtype=dtype, name="se")(out)
        # Zero scale: every block starts without its convolutions, as in timm.
        zeros = nn.initializers.zeros
        last = ConvNorm(channels, has_relu=False, scale_init=zeros, dtype=dtype, name="conv3")
        out = last(out, train=train)
        if stride > 1 or inputs != channels:
            projection = ConvNorm(
                channels, stride=stride, has_relu=False, dtype=dtype, name="downsample"
            )
            maps = projection(maps, train=train)
        return nn.relu(layers.drop_path(self.drop_path, train=train)(out) + maps)


class RegNetY(nn.Module):
    """A RegNetY, equal to timm's of the same table.

    With 1,000 classes, at 224 pixels:

        table            parameters   GMAC
        REGNETY_400MF    4,344,144    0.4    regnety_004
        REGNETY_800MF    6,263,168    0.8    regnety_008

    Attributes:
        architecture: The table of the network.
        classes: Number of classes.
        stem: "imagenet", whose convolution has stride 2, or "small", for images of 32 or 64
            pixels: stride 1 there and nothing else changed, so that all maps have twice the side.
        dropout: Share of the features dropped before the classifier in training.
        drop_path: Stochastic depth: share of the images for which a block is left out in training.
            The rate rises linearly from 0 at the first block to this value at the last.
        dtype: Type of the computation; parameters, BatchNorm and logits are float32.
        normalisation: Normalisation of the images.
    """

    architecture: Architecture
    classes: int
    stem: str = "imagenet"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    normalisation: Normalisation = IDENTITY

    @nn.compact
    def trunk(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch rows columns feature"]:
        """Returns the last maps, of float images in [-1, 1]."""
        layers.require_float(images)
        stride, depths = 1 if self.stem == "small" else 2, self.architecture.depths
        stem = ConvNorm(_STEM, 3, stride, dtype=self.dtype, name="stem")
        maps = stem(self.normalisation(images), train=train)
        done, last = 0, sum(depths) - 1
        for stage, (channels, depth) in enumerate(
            zip(self.architecture.widths, depths, strict=True)
        ):
            for i in range(depth):
                stride, rate = 2 if i == 0 else 1, self.drop_path * done / last
                name = f"s{stage + 1}_b{i + 1}"
                block = Block(
                    channels, stride, self.architecture.group, rate, self.dtype, name=name
                )
                maps, done = block(maps, train=train), done + 1
        return maps

    @nn.compact
    def head(
        self, maps: Float[Array, "batch rows columns feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the last maps."""
        features = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.classes, kernel_init=init, name="head_fc")(features)

    def __call__(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of float images in [-1, 1]."""
        return self.head(self.trunk(images, train=train), train=train)


def make(
    architecture: Architecture, *, classes: int, stem: str = "imagenet", **options: Any
) -> RegNetY:
    """Builds a RegNetY; raises `ValueError` for an unknown stem or type.

    Args:
        architecture: The table of the network.
        classes: Number of classes.
        stem: See `RegNetY`.
        **options: The other attributes of `RegNetY`.
    """
    layers.require_options(stem=stem, dtype=options.get("dtype", "float32"))
    return RegNetY(architecture, classes, stem, **options)
