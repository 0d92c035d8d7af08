"""The ResNet stem of a hybrid ViT: weight-standardised convolutions and group norms.

Source: Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370. Names are vit_jax's.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models.rematerialisation import kept, policy

WIDTH = 64  # Channels of the root, and of the first stage's bottleneck.


class StdConv(nn.Module):
    """A convolution whose kernel is standardised over its inputs, with TensorFlow's SAME padding.

    Attributes:
        features: Channels of the output.
        kernel: Side of the kernel, in pixels.
        stride: Stride, in pixels.
        dtype: Type of the computation; the kernel is standardised in float32.
    """

    features: int
    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        shape = (self.kernel, self.kernel, maps.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        axes = (0, 1, 2)
        kernel = kernel - jnp.mean(kernel, axis=axes, keepdims=True)
        kernel = kernel / (jnp.std(kernel, axis=axes, keepdims=True) + 1e-5)
        out = jax.lax.conv_general_dilated(
            maps.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return kept("convolution", out)


class Unit(nn.Module):
    """A bottleneck with its residual.

    Attributes:
        features: Channels of the bottleneck; the output has four times as many.
        stride: Stride, in pixels.
        dtype: Type of the computation.
    """

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        def conv(features: int, kernel: int, stride: int, name: str) -> StdConv:
            return StdConv(features, kernel, stride, self.dtype, name=name)

        out = conv(self.features, 1, 1, "conv1")(maps)
        out = nn.relu(_norm(self.dtype, "gn1")(out))
        out = conv(self.features, 3, self.stride, "conv2")(out)
        out = nn.relu(_norm(self.dtype, "gn2")(out))
        out = conv(4 * self.features, 1, 1, "conv3")(out)
        out = _norm(self.dtype, "gn3", nn.initializers.zeros)(out)
        if maps.shape[-1] != 4 * self.features or self.stride > 1:
            maps = conv(4 * self.features, 1, self.stride, "conv_proj")(maps)
            maps = _norm(self.dtype, "gn_proj")(maps)
        return nn.relu(out + maps)


class Stage(nn.Module):
    """Units of one width, of which the first may halve the maps.

    Attributes:
        units: Number of units.
        features: Channels of their bottlenecks.
        stride: Stride of the first unit, in pixels.
        dtype: Type of the computation.
        rematerialise: One of `rematerialisation.RECOMPUTED`; a block is a unit.
    """

    units: int
    features: int
    stride: int
    dtype: Any
    rematerialise: str

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        unit: Any = Unit
        if self.rematerialise != "nothing":
            unit = nn.remat(Unit, policy=policy(self.rematerialise))
        for i in range(self.units):
            stride = self.stride if i == 0 else 1
            maps = unit(self.features, stride, self.dtype, name=f"unit{i + 1}")(maps)
        return maps


def stem(
    images: Float[Array, "batch height width channel"],
    units: Sequence[int],
    dtype: Any,
    rematerialise: str = "nothing",
) -> Float[Array, "batch rows columns feature"]:
    """Applies the root and the stages. The calling compact method gets the parameters.

    Args:
        images: Images in [-1, 1].
        units: Number of units of each stage; empty for the root only, which reduces the side to a
            quarter.
        dtype: Type of the computation.
        rematerialise: See `Stage`.
    """
    maps = StdConv(WIDTH, 7, 2, dtype, name="conv_root")(images)
    maps = nn.relu(_norm(dtype, "gn_root")(maps))
    maps = nn.max_pool(maps, (3, 3), (2, 2), padding="SAME")
    for i, count in enumerate(units):
        width, stride = WIDTH * 2**i, 2 if i else 1
        maps = Stage(count, width, stride, dtype, rematerialise, name=f"block{i + 1}")(maps)
    return maps


def _norm(
    dtype: Any, name: str, scale_init: nn.initializers.Initializer = nn.initializers.ones
) -> nn.GroupNorm:
    return nn.GroupNorm(32, dtype=dtype, scale_init=scale_init, name=name)
