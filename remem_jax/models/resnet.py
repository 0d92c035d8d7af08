"""ResNets, equal to torchvision's and timm's.

Source: He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models import layers
from remem_jax.models.normalisation import IDENTITY, Normalisation

STEMS = layers.STEMS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual.

    Attributes:
        features: Channels of the convolutions and of the output.
        stride: Stride of the first convolution and of the residual's projection, in pixels.
        dtype: Type of the computation.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        out = layers.Conv(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(maps)
        out = nn.relu(layers.BatchNorm(name="bn1")(out, train=train))
        out = layers.Conv(self.features, 3, dtype=self.dtype, name="conv2")(out)
        # Zero scale: every block starts as the identity, as in timm.
        out = layers.BatchNorm(scale_init=nn.initializers.zeros, name="bn2")(out, train=train)
        return nn.relu(out + _projected(maps, out, self.stride, train=train))


class Bottleneck(nn.Module):
    """A 1x1 convolution that narrows, a 3x3 one, a 1x1 one that widens, and a residual.

    Attributes:
        features: Channels of the 3x3 convolution; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the residual's projection, in pixels.
        dtype: Type of the computation.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        out = layers.Conv(self.features, 1, dtype=self.dtype, name="conv1")(maps)
        out = nn.relu(layers.BatchNorm(name="bn1")(out, train=train))
        out = layers.Conv(self.features, 3, self.stride, dtype=self.dtype, name="conv2")(out)
        out = nn.relu(layers.BatchNorm(name="bn2")(out, train=train))
        out = layers.Conv(4 * self.features, 1, dtype=self.dtype, name="conv3")(out)
        out = layers.BatchNorm(scale_init=nn.initializers.zeros, name="bn3")(out, train=train)
        return nn.relu(out + _projected(maps, out, self.stride, train=train))


class ResNet(nn.Module):
    """A ResNet, equal to torchvision's and timm's of the same depth.

    With 1,000 classes, at 224 pixels:

        depths         block       parameters    GMAC
        (2, 2, 2, 2)   basic       11,689,512    1.8    resnet18
        (3, 4, 6, 3)   basic       21,797,672    3.7    resnet34
        (3, 4, 6, 3)   bottleneck  25,557,032    4.1    resnet50

    Padding, BatchNorm and initialisation are timm's. Differs from the paper: the stride of the
    bottleneck is in the 3x3 convolution, as in torchvision and timm, not in the first 1x1 one.

    Attributes:
        depths: Number of blocks of each stage.
        classes: Number of classes.
        bottleneck: Whether the blocks are `Bottleneck` rather than `BasicBlock`.
        stem: "imagenet" (7x7 of stride 2, then a max-pool of stride 2) or "small" (3x3 of stride
            1, no max-pool), usual for images of 32 or 64 pixels.
        dtype: Type of the computation; parameters, BatchNorm and logits are float32.
        normalisation: Normalisation of the images.
    """

    depths: Sequence[int]
    classes: int
    bottleneck: bool = False
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    normalisation: Normalisation = IDENTITY

    @nn.compact
    def trunk(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch rows columns feature"]:
        """Returns the last maps, of float images in [-1, 1]."""
        layers.require_float(images)
        images = self.normalisation(images)
        kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
        maps = layers.Conv(64, kernel, stride, dtype=self.dtype, name="conv1")(images)
        maps = nn.relu(layers.BatchNorm(name="bn1")(maps, train=train))
        if self.stem != "small":
            maps = layers.MaxPool(name="maxpool")(maps)
        block_class = Bottleneck if self.bottleneck else BasicBlock
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                block = block_class(64 * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")
                maps = block(maps, train=train)
        return maps

    @nn.compact
    def head(
        self, maps: Float[Array, "batch rows columns feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the last maps."""
        del train
        features = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        init = layers.uniform_of_fan(features.shape[-1])
        return nn.Dense(self.classes, kernel_init=init, bias_init=init, name="fc")(features)

    def __call__(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of float images in [-1, 1]."""
        return self.head(self.trunk(images, train=train), train=train)


def _projected(
    maps: Float[Array, "batch height width channel"],
    out: Float[Array, "batch rows columns feature"],
    stride: int,
    *,
    train: bool,
) -> Float[Array, "batch rows columns feature"]:
    """Returns the residual, projected to the shape of the output by layers of the calling block."""
    features = out.shape[-1]
    if stride == 1 and maps.shape[-1] == features:
        return maps.astype(out.dtype)
    conv = layers.Conv(features, 1, stride, dtype=out.dtype, name="downsample_conv")
    return layers.BatchNorm(name="downsample_bn")(conv(maps), train=train)


def make(
    *,
    depths: Sequence[int],
    classes: int,
    bottleneck: bool = False,
    stem: str = "imagenet",
    dtype: Any = jnp.float32,
    normalisation: Normalisation = IDENTITY,
) -> ResNet:
    """Builds a ResNet; raises `ValueError` for an unknown stem or type."""
    layers.require_options(stem=stem, dtype=dtype)
    return ResNet(tuple(depths), classes, bottleneck, stem, dtype, normalisation)
