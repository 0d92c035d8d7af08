"""ResNets, equal to torchvision's and timm's, and timm's ResNet-D.

Sources: He et al. 2016, https://arxiv.org/abs/1512.03385; He et al. 2019,
https://arxiv.org/abs/1812.01187 (ResNet-D).
"""

import functools
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
        drop_path: Share of the images for which the block is left out in training.
        pooled: Whether the residual is averaged over 2 x 2 pixels instead of having a stride.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    pooled: bool = False

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        out = layers.Conv(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(maps)
        out = nn.relu(layers.BatchNorm(name="bn1")(out, train=train))
        out = layers.Conv(self.features, 3, dtype=self.dtype, name="conv2")(out)
        # Zero scale: every block starts as the identity, as in timm.
        out = layers.BatchNorm(scale_init=nn.initializers.zeros, name="bn2")(out, train=train)
        residual = _projected(maps, out, self.stride, pooled=self.pooled, train=train)
        return nn.relu(layers.drop_path(self.drop_path, train=train)(out) + residual)


class Bottleneck(nn.Module):
    """A 1x1 convolution that narrows, a 3x3 one, a 1x1 one that widens, and a residual.

    Attributes:
        features: Channels of the 3x3 convolution; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the residual's projection, in pixels.
        dtype: Type of the computation.
        drop_path: Share of the images for which the block is left out in training.
        pooled: Whether the residual is averaged over 2 x 2 pixels instead of having a stride.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    pooled: bool = False

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
        residual = _projected(maps, out, self.stride, pooled=self.pooled, train=train)
        return nn.relu(layers.drop_path(self.drop_path, train=train)(out) + residual)


class ResNet(nn.Module):
    """A ResNet, equal to torchvision's and timm's of the same depth.

    With 1,000 classes, at 224 pixels:

        depths         block       parameters    GMAC
        (2, 2, 2, 2)   basic       11,689,512    1.8    resnet18
        (3, 4, 6, 3)   basic       21,797,672    3.7    resnet34
        (3, 4, 6, 3)   bottleneck  25,557,032    4.1    resnet50
        (2, 2, 2, 2)   bottleneck  16,014,408    2.6    resnet26d
        (3, 4, 6, 3)   bottleneck  25,576,264    4.3    resnet50d

    Padding, BatchNorm and initialisation are timm's. Differs from the paper: the stride of the
    bottleneck is in the 3x3 convolution, as in torchvision and timm, not in the first 1x1 one.

    The last two are ResNet-D: three 3x3 convolutions in place of the 7x7 one of the stem, and
    projections of stride 1 after an average pooling over 2 x 2 pixels.

    Attributes:
        depths: Number of blocks of each stage.
        classes: Number of classes.
        bottleneck: Whether the blocks are `Bottleneck` rather than `BasicBlock`.
        stem: "imagenet" (7x7 of stride 2, then a max-pool of stride 2) or "small" (3x3 of stride
            1, no max-pool), usual for images of 32 or 64 pixels.
        dtype: Type of the computation; parameters, BatchNorm and logits are float32.
        normalisation: Normalisation of the images.
        variant: "" or "d", for ResNet-D. With "d", the stem "small" has its three convolutions,
            all of stride 1, and no max-pool.
        dropout: Share of the features dropped before the classifier in training.
        drop_path: Stochastic depth: share of the images for which a block is left out in training.
            The rate rises linearly from 0 at the first block to this value at the last.
    """

    depths: Sequence[int]
    classes: int
    bottleneck: bool = False
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    normalisation: Normalisation = IDENTITY
    variant: str = ""
    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.compact
    def trunk(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch rows columns feature"]:
        """Returns the last maps, of float images in [-1, 1]."""
        layers.require_float(images)
        maps = self._stem(self.normalisation(images), train=train)
        maps = nn.relu(layers.BatchNorm(name="bn1")(maps, train=train))
        if self.stem != "small":
            maps = layers.MaxPool(name="maxpool")(maps)
        block_class = Bottleneck if self.bottleneck else BasicBlock
        done, last = 0, max(sum(self.depths) - 1, 1)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride, rate = 2 if stage > 0 and i == 0 else 1, self.drop_path * done / last
                features, name = 64 * 2**stage, f"layer{stage + 1}_{i}"
                block = block_class(
                    features, stride, self.dtype, rate, self.variant == "d", name=name
                )
                maps, done = block(maps, train=train), done + 1
        return maps

    def _stem(self, images: Array, *, train: bool) -> Array:
        """Applies the convolutions before the first BatchNorm that all ResNets have."""
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        if self.variant != "d":
            kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
            return conv(64, kernel, stride, name="conv1")(images)
        maps = conv(32, 3, 1 if self.stem == "small" else 2, name="conv1_0")(images)
        maps = nn.relu(layers.BatchNorm(name="conv1_1")(maps, train=train))
        maps = conv(32, 3, name="conv1_3")(maps)
        maps = nn.relu(layers.BatchNorm(name="conv1_4")(maps, train=train))
        return conv(64, 3, name="conv1_6")(maps)

    @nn.compact
    def head(
        self, maps: Float[Array, "batch rows columns feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the last maps."""
        features = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
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
    pooled: bool,
    train: bool,
) -> Float[Array, "batch rows columns feature"]:
    """Returns the residual, projected to the shape of the output by layers of the calling block."""
    features = out.shape[-1]
    if stride == 1 and maps.shape[-1] == features:
        return maps.astype(out.dtype)
    if not pooled:
        conv = layers.Conv(features, 1, stride, dtype=out.dtype, name="downsample_conv")
        return layers.BatchNorm(name="downsample_bn")(conv(maps), train=train)
    if stride == 2:
        maps = layers.AveragePool(name="pool")(maps)
    conv = layers.Conv(features, 1, dtype=out.dtype, name="pooled_conv")
    return layers.BatchNorm(name="pooled_bn")(conv(maps), train=train)


def make(
    *,
    depths: Sequence[int],
    classes: int,
    bottleneck: bool = False,
    variant: str = "",
    stem: str = "imagenet",
    **options: Any,
) -> ResNet:
    """Builds a ResNet; raises `ValueError` for an unknown stem or type.

    Args:
        depths: See `ResNet`.
        classes: See `ResNet`.
        bottleneck: See `ResNet`.
        variant: See `ResNet`.
        stem: See `ResNet`.
        **options: The other attributes of `ResNet`.
    """
    layers.require_options(stem=stem, dtype=options.get("dtype", "float32"))
    return ResNet(tuple(depths), classes, bottleneck, stem, variant=variant, **options)
