"""ResNet with basic blocks, as torchvision and timm have it.

Source: He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models import layers

STEMS = ("imagenet", "small")


def _uniform_of_fan_in(features: int) -> nn.initializers.Initializer:
    """Uniform in +- 1 / sqrt(features): torch's linear layer."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = features**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual.

    Attributes:
        features: Channels of the output.
        stride: Stride of the first convolution and of the residual's projection, in pixels.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        out = layers.Conv(self.features, 3, self.stride, name="conv1")(maps)
        out = nn.relu(_norm("bn1", train=train)(out))
        out = layers.Conv(self.features, 3, 1, name="conv2")(out)
        # Zero scale: every block starts as the identity, as in timm.
        out = _norm("bn2", train=train, scale_init=nn.initializers.zeros)(out)
        if out.shape != maps.shape:
            maps = layers.Conv(self.features, 1, self.stride, name="downsample_conv")(maps)
            maps = _norm("downsample_bn", train=train)(maps)
        return nn.relu(out + maps)


class ResNet(nn.Module):
    """ResNet of basic blocks: ResNet-18 with depths (2, 2, 2, 2).

    With 1,000 classes ResNet-18 has 11,689,512 parameters and takes 1.8 GMAC at 224 pixels, as
    torchvision's and timm's `resnet18`. Padding, BatchNorm (momentum 0.9 in Flax's terms, epsilon
    1e-5) and initialisation are timm's; the running variance is the biased one.

    Attributes:
        depths: Blocks of each stage.
        classes: Number of classes.
        stem: "imagenet" (7x7 of stride 2, then a max-pool of stride 2) or "small" (3x3 of stride
            1, no pool), customary for images of 32 or 64 pixels.
    """

    depths: Sequence[int]
    classes: int
    stem: str = "imagenet"

    @nn.compact
    def __call__(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch klass"]:
        """Logits of float images in [-1, 1]."""
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"The model takes float images in [-1, 1], got {images.dtype}.")
        small = self.stem == "small"
        maps = layers.Conv(64, 3 if small else 7, 1 if small else 2, name="conv1")(images)
        maps = nn.relu(_norm("bn1", train=train)(maps))
        if not small:
            maps = layers.max_pool(maps)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                block = BasicBlock(64 * 2**stage, stride, name=f"layer{stage + 1}_{i}")
                maps = block(maps, train=train)
        features = jnp.mean(maps, axis=(1, 2))
        init = _uniform_of_fan_in(features.shape[-1])
        return nn.Dense(self.classes, kernel_init=init, bias_init=init, name="fc")(features)


def _norm(
    name: str, *, train: bool, scale_init: nn.initializers.Initializer = nn.initializers.ones
) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=scale_init,
        name=name,
    )


def make(*, depths: Sequence[int], classes: int, stem: str = "imagenet") -> ResNet:
    """A ResNet of basic blocks; raises ValueError for an unknown stem."""
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {STEMS}, got {stem!r}.")
    return ResNet(tuple(depths), classes, stem)
