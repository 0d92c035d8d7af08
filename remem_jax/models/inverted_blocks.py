"""Blocks of inverted-residual networks, equal to timm's and under timm's names.

Sources: Sandler et al. 2018, https://arxiv.org/abs/1801.04381 (MobileNetV2); Tan and Le 2021,
https://arxiv.org/abs/2104.00298 (the "fused" block); Qin et al. 2024,
https://arxiv.org/abs/2404.10518 (the "universal" block).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from remem_jax.models import layers
from remem_jax.models.architectures import Architecture, Row, rounded
from remem_jax.models.squeeze_excite import SqueezeExcite


class Layers(NamedTuple):
    """Makes the layers of one network.

    Attributes:
        architecture: The network.
        dtype: Type of the computation; parameters are float32.
    """

    architecture: Architecture
    dtype: Any

    def conv(
        self, channels: int, kernel: int, stride: int, name: str, *, has_bias: bool = False
    ) -> layers.Conv:
        """Returns a convolution."""
        padding = self.architecture.padding
        return layers.Conv(channels, kernel, stride, padding, has_bias, self.dtype, name=name)

    def depthwise(self, kernel: int, stride: int, name: str) -> layers.DepthwiseConv:
        """Returns a depthwise convolution."""
        return layers.DepthwiseConv(
            kernel, stride, self.architecture.padding, self.dtype, name=name
        )

    def norm(self, name: str) -> layers.BatchNorm:
        """Returns a BatchNorm."""
        return layers.BatchNorm(self.architecture.momentum, self.architecture.epsilon, name=name)

    def activation(self, row: Row | None = None) -> Callable[[Array], Array]:
        """Returns the activation function of a row, or of the network."""
        name = (row.activation if row else "") or self.architecture.activation
        return layers.ACTIVATIONS[name]


class Block(nn.Module):
    """One block of a row; each kind of block is a subclass.

    Attributes:
        row: See `Row`.
        stride: Stride of this block, in pixels.
        drop_path: Share of the images for which the block is left out in training.
        make: Makes the layers.
    """

    row: Row
    stride: int
    drop_path: float
    make: Layers

    def squeezed(self, maps: Array, inputs: int) -> Array:
        """Applies squeeze-and-excitation if the row has one."""
        if not self.row.squeeze:
            return maps
        style, squeeze = self.make.architecture.squeeze, self.row.squeeze
        channels = maps.shape[-1]
        reduced = rounded(channels * squeeze) if style.of_expanded else round(inputs * squeeze)
        activation = self.make.activation(self.row)
        if style.activation:
            activation = layers.ACTIVATIONS[style.activation]
        gate, dtype = layers.GATES[style.gate], self.make.dtype
        squeeze_excite = SqueezeExcite(
            reduced, activation=activation, gate=gate, dtype=dtype, name="se"
        )
        return squeeze_excite(maps)

    def residual(
        self,
        maps: Float[Array, "batch height width channel"],
        out: Float[Array, "batch rows columns feature"],
        *,
        train: bool,
    ) -> Float[Array, "batch rows columns feature"]:
        """Adds the block's input to its output if both have the same shape."""
        if not self.row.has_residual or self.stride > 1 or out.shape[-1] != maps.shape[-1]:
            return out
        return layers.drop_path(self.drop_path, train=train)(out) + maps


class ConvBlock(Block):
    """A convolution."""

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        make, row = self.make, self.row
        out = make.conv(row.channels, row.kernel, self.stride, "conv")(maps)
        out = make.activation(row)(make.norm("bn1")(out, train=train))
        return self.residual(maps, out, train=train)


class DepthwiseSeparable(Block):
    """A depthwise convolution and a linear 1x1 convolution."""

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        make, row = self.make, self.row
        out = make.depthwise(row.kernel, self.stride, "conv_dw")(maps)
        out = make.activation(row)(make.norm("bn1")(out, train=train))
        out = self.squeezed(out, maps.shape[-1])
        out = make.conv(row.channels, 1, 1, "conv_pw")(out)
        return self.residual(maps, make.norm("bn2")(out, train=train), train=train)


class InvertedResidual(Block):
    """A 1x1 convolution that widens, a depthwise one, and a linear 1x1 one that narrows."""

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        make, row, inputs = self.make, self.row, maps.shape[-1]
        activation = make.activation(row)
        out = make.conv(rounded(row.expansion * inputs), 1, 1, "conv_pw")(maps)
        out = activation(make.norm("bn1")(out, train=train))
        out = make.depthwise(row.kernel, self.stride, "conv_dw")(out)
        out = activation(make.norm("bn2")(out, train=train))
        out = self.squeezed(out, inputs)
        out = make.conv(row.channels, 1, 1, "conv_pwl")(out)
        return self.residual(maps, make.norm("bn3")(out, train=train), train=train)


class FusedResidual(Block):
    """A convolution that widens, and a linear 1x1 one that narrows (Fused-MBConv)."""

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        make, row, inputs = self.make, self.row, maps.shape[-1]
        out = make.conv(rounded(row.expansion * inputs), row.kernel, self.stride, "conv_exp")(maps)
        out = make.activation(row)(make.norm("bn1")(out, train=train))
        out = self.squeezed(out, inputs)
        out = make.conv(row.channels, 1, 1, "conv_pwl")(out)
        return self.residual(maps, make.norm("bn2")(out, train=train), train=train)


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm, under one name.

    Attributes:
        make: Makes the layers.
        channels: Channels of the output; None for a depthwise convolution.
        kernel: Side of the kernel, in pixels.
        stride: Stride, in pixels.
    """

    make: Layers
    channels: int | None
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        if self.channels is None:
            conv = self.make.depthwise(self.kernel, self.stride, "conv")
        else:
            conv = self.make.conv(self.channels, self.kernel, self.stride, "conv")
        return self.make.norm("bn")(conv(maps), train=train)


class UniversalInverted(Block):
    """An inverted residual whose depthwise convolutions, before and after widening, are optional.

    If there is none after widening, the one before it has the stride.
    """

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        make, row, inputs = self.make, self.row, maps.shape[-1]
        activation, out = make.activation(row), maps
        if row.start_kernel:
            stride = 1 if row.kernel else self.stride
            depthwise = ConvNorm(make, None, row.start_kernel, stride, name="dw_start")
            out = depthwise(out, train=train)
        expanded = rounded(row.expansion * inputs)
        out = activation(ConvNorm(make, expanded, name="pw_exp")(out, train=train))
        if row.kernel:
            depthwise = ConvNorm(make, None, row.kernel, self.stride, name="dw_mid")
            out = activation(depthwise(out, train=train))
        out = self.squeezed(out, inputs)
        out = ConvNorm(make, row.channels, name="pw_proj")(out, train=train)
        return self.residual(maps, out, train=train)


BLOCKS: dict[str, type[Block]] = {
    "conv": ConvBlock,
    "separable": DepthwiseSeparable,
    "inverted": InvertedResidual,
    "fused": FusedResidual,
    "universal": UniversalInverted,
}
