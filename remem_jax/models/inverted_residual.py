"""Inverted-residual networks, built from the tables in `architectures`; equal to timm's."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models import layers
from remem_jax.models.architectures import Architecture
from remem_jax.models.inverted_blocks import BLOCKS, Layers
from remem_jax.models.normalisation import IDENTITY, Normalisation


class InvertedResidualNetwork(nn.Module):
    """A stem, stages of blocks, a 1x1 convolution and a linear classifier.

    Attributes:
        architecture: The table of the network.
        classes: Number of classes.
        stem: "imagenet", whose convolution has stride 2, or "small", for images of 32 or 64
            pixels: stride 1 there and nothing else changed, so that all maps have twice the side.
        dropout: Share of the features dropped before the classifier in training.
        drop_path: Stochastic depth: share of the images for which a block is left out in training.
            The rate rises linearly from 0 at the first block, and would reach this value one block
            after the last. timm's `drop_path_rate`, torchvision's `stochastic_depth_prob`.
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
        make, stages = Layers(self.architecture, self.dtype), self.architecture.stages
        stride = 1 if self.stem == "small" else 2
        maps = self.normalisation(images)
        maps = make.conv(self.architecture.stem, 3, stride, "conv_stem")(maps)
        maps = make.activation()(make.norm("bn1")(maps, train=train))
        done, total = 0, sum(row.repeats for rows in stages for row in rows)
        for number, rows in enumerate(stages):
            repeated = [(row, i) for row in rows for i in range(row.repeats)]
            for index, (row, i) in enumerate(repeated):
                stride, rate = row.stride if i == 0 else 1, self.drop_path * done / total
                name = f"blocks_{number}_{index}"
                block = BLOCKS[row.block](row, stride, rate, make, name=name)
                maps, done = block(maps, train=train), done + 1
        if self.architecture.head.after_pooling:
            return maps
        return self._widened(maps, "bn2", train=train)

    @nn.compact
    def head(
        self, maps: Float[Array, "batch rows columns feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the last maps."""
        after_pooling = self.architecture.head.after_pooling
        means = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32, keepdims=after_pooling)
        if after_pooling:
            means = jnp.squeeze(self._widened(means, "norm_head", train=train), axis=(1, 2))
            means = means.astype(jnp.float32)
        features = nn.Dropout(self.dropout, deterministic=not train)(means)
        init = layers.uniform_of_fan(self.classes)
        return nn.Dense(self.classes, kernel_init=init, name="classifier")(features)

    def _widened(self, maps: Array, norm: str, *, train: bool) -> Array:
        """Applies the last convolution; see `architectures.Head`."""
        head, make = self.architecture.head, Layers(self.architecture, self.dtype)
        conv = make.conv(head.channels, 1, 1, "conv_head", has_bias=not head.has_norm)
        out = conv(maps)
        if head.has_norm:
            out = make.norm(norm)(out, train=train)
        return make.activation()(out)

    def __call__(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of float images in [-1, 1]."""
        return self.head(self.trunk(images, train=train), train=train)


def make(
    architecture: Architecture,
    *,
    classes: int,
    padding: str = "",
    stem: str = "imagenet",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    dtype: Any = jnp.float32,
    normalisation: Normalisation = IDENTITY,
) -> InvertedResidualNetwork:
    """Builds a network.

    By default it has neither dropout nor stochastic depth, as timm's; torchvision's
    EfficientNetV2 has a dropout of 0.2 (M: 0.3) and a stochastic depth of 0.2.

    Args:
        architecture: The table of the network.
        classes: Number of classes.
        padding: One of `layers.PADDINGS`; "" for that of the architecture.
        stem: See `InvertedResidualNetwork`.
        dropout: See `InvertedResidualNetwork`.
        drop_path: See `InvertedResidualNetwork`.
        dtype: See `InvertedResidualNetwork`.
        normalisation: See `InvertedResidualNetwork`.

    Raises:
        ValueError: If an option's value is unknown.
    """
    architecture = architecture._replace(padding=padding or architecture.padding)
    layers.require_options(stem=stem, padding=architecture.padding, dtype=dtype)
    return InvertedResidualNetwork(
        architecture, classes, stem, dropout, drop_path, dtype, normalisation
    )
