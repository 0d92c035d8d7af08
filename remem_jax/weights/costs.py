"""Parameters and operations of the networks, with heads of 1,000 classes.

`COSTS` has them by student, variant of a ViT or, for recommended teachers, timm's name of the
network, and by the side of the images in pixels.
"""

from collections.abc import Mapping
from typing import NamedTuple

from remem_jax.weights import catalog


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: Number of parameters.
        gflops: Billions of floating-point operations in the forward pass of one image, two for each
            multiplication and addition, of matrix products and convolutions alone.
    """

    parameters: int
    gflops: float


def pixels_of(published: catalog.Published) -> int:
    """Returns the side of the images that a published ViT was last trained with, in pixels."""
    return 384 if "at 384 pixels" in published.note or "-res_384" in published.path else 224


# Written by tools/make_costs.py.
COSTS: Mapping[str, Mapping[int, Cost]] = {
    "resnet18": {224: Cost(11_689_512, 3.628)},
    "resnet34": {224: Cost(21_797_672, 7.328)},
    "resnet50": {176: Cost(25_557_032, 5.216), 224: Cost(25_557_032, 8.178)},
    "resnet26d": {224: Cost(16_014_408, 5.164)},
    "resnet50d": {224: Cost(25_576_264, 8.658)},
    "regnety_004": {224: Cost(4_344_144, 0.804)},
    "regnety_008": {224: Cost(6_263_168, 1.594)},
    "mobilenet_v2": {224: Cost(3_504_872, 0.602)},
    "mobilenet_v2_035": {224: Cost(1_677_128, 0.119)},
    "mobilenet_v2_050": {224: Cost(1_968_680, 0.194)},
    "mobilenet_v2_075": {224: Cost(2_636_424, 0.418)},
    "mobilenet_v2_140": {224: Cost(6_108_776, 1.164)},
    "mobilenetv3_small_100": {224: Cost(2_542_856, 0.113)},
    "mobilenetv3_large_100": {224: Cost(5_483_032, 0.433)},
    "mobilenetv4_conv_small": {224: Cost(3_774_024, 0.372), 256: Cost(3_774_024, 0.484)},
    "mobilenetv4_conv_medium": {
        224: Cost(9_715_512, 1.655),
        256: Cost(9_715_512, 2.16),
        384: Cost(9_715_512, 4.855),
    },
    "efficientnet_lite0": {224: Cost(4_652_008, 0.77)},
    "efficientnet_lite1": {224: Cost(5_416_680, 1.005), 240: Cost(5_416_680, 1.2)},
    "efficientnet_lite2": {224: Cost(6_092_072, 1.153), 260: Cost(6_092_072, 1.719)},
    "efficientnet_lite3": {224: Cost(8_197_096, 1.704), 300: Cost(8_197_096, 3.215)},
    "efficientnet_lite4": {224: Cost(13_006_568, 2.695), 380: Cost(13_006_568, 7.887)},
    "efficientnet_b0": {224: Cost(5_288_548, 0.772)},
    "efficientnet_v2_b0": {192: Cost(7_139_704, 1.056), 224: Cost(7_139_704, 1.436)},
    "efficientnet_v2_s": {224: Cost(21_458_488, 5.7), 300: Cost(21_458_488, 10.615)},
    "efficientnet_v2_m": {224: Cost(54_139_356, 10.724), 384: Cost(54_139_356, 31.474)},
    "vit_tiny_patch16": {224: Cost(5_717_416, 2.507)},
    "vit_small_patch16": {224: Cost(22_050_664, 9.198)},
    "Ti/16": {224: Cost(5_717_416, 2.507), 384: Cost(5_790_376, 9.364)},
    "S/32": {224: Cost(22_878_952, 2.286), 384: Cost(22_915_432, 6.886)},
    "S/16": {224: Cost(22_050_664, 9.198), 384: Cost(22_196_584, 30.981)},
    "B/32": {224: Cost(88_224_232, 8.818), 384: Cost(88_297_192, 26.087)},
    "B/16": {224: Cost(86_567_656, 35.128), 384: Cost(86_859_496, 110.969)},
    "B/8": {224: Cost(86_576_872, 156.297), 384: Cost(87_744_232, 588.089)},
    "L/32": {224: Cost(306_535_400, 30.755), 384: Cost(306_632_680, 90.552)},
    "L/16": {224: Cost(304_326_632, 123.109), 384: Cost(304_715_752, 382.133)},
    "So400m/14": {224: Cost(413_597_656, 219.857)},
    "H/14": {224: Cost(632_045_800, 334.59)},
    "g/14": {224: Cost(1_012_611_432, 534.063)},
    "G/14": {224: Cost(1_844_440_680, 967.495)},
    "R+Ti/16": {224: Cost(6_337_704, 0.867), 384: Cost(6_355_944, 2.654)},
    "R26+S/32": {224: Cost(36_431_912, 6.928), 384: Cost(36_468_392, 20.527)},
    "R50+B/16": {224: Cost(98_659_112, 43.071), 384: Cost(98_950_952, 134.312)},
    "R50+L/32": {224: Cost(328_994_856, 38.827), 384: Cost(329_092_136, 114.272)},
    "vit_small_patch16_dinov3": {224: Cost(21_971_944, 9.397), 256: Cost(21_971_944, 12.491)},
    "vit_small_patch14_reg4_dinov2": {224: Cost(22_014_952, 12.456), 518: Cost(22_442_344, 93.766)},
    "deit3_small_patch16_224": {224: Cost(22_059_880, 9.198)},
    "eva02_small_patch14_336": {224: Cost(22_006_120, 12.248), 336: Cost(22_129_000, 30.901)},
    "vit_small_patch16_dinov3_qkvb": {224: Cost(21_981_160, 9.397), 256: Cost(21_981_160, 12.491)},
    "vit_base_patch16_dinov3": {224: Cost(86_410_216, 35.866), 256: Cost(86_410_216, 47.151)},
    "vit_base_patch14_reg4_dinov2": {224: Cost(86_496_232, 47.08), 518: Cost(87_351_016, 304.233)},
    "vit_base_patch16_siglip_224": {224: Cost(93_653_224, 35.418)},
    "vit_base_patch16_clip_quickgelu_224": {224: Cost(86_568_424, 35.128)},
    "vit_base_patch16_clip_224": {224: Cost(86_568_424, 35.128)},
    "vit_pe_core_base_patch16_224": {224: Cost(93_655_528, 35.605)},
    "vit_large_patch16_dinov3": {224: Cost(304_104_424, 125.682), 256: Cost(304_104_424, 164.74)},
    "vit_large_patch14_reg4_dinov2": {
        224: Cost(304_255_976, 164.646),
        518: Cost(305_395_688, 1017.105),
    },
    "vit_large_patch16_siglip_256": {
        224: Cost(316_919_784, 123.311),
        256: Cost(316_981_224, 162.562),
    },
    "vit_large_patch14_clip_quickgelu_224": {224: Cost(304_204_776, 162.026)},
    "eva02_large_patch14_448": {224: Cost(304_293_800, 162.001), 448: Cost(305_080_232, 723.494)},
}
