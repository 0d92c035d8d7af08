"""The modules of networks by timm's names and by torchvision's; those of ResNets are the same.

timm's names, which are ours, count the blocks of each stage. torchvision counts all blocks of
MobileNetV2, and names the layers of a block by their place in it.

Source: github.com/pytorch/vision, `mobilenetv2.py`, `efficientnet.py` and `regnet.py`.
"""

from collections.abc import Iterator, Mapping, Sequence

from remem_jax.models.architectures import Architecture

_MOBILENET: Mapping[str, Mapping[str, str]] = {
    "separable": {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"},
    "inverted": {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
    | {"conv_pwl": "2", "bn3": "3"},
}
_EFFICIENTNET: Mapping[str, Mapping[str, str]] = {
    "separable": {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "2.0", "bn2": "2.1"}
    | {"se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2"},
    "conv": {"conv": "0.0", "bn1": "0.1"},
    "fused": {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"},
    "inverted": {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
    | {"se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2", "conv_pwl": "3.0", "bn3": "3.1"},
}
_REGNET: Mapping[str, str] = {
    **{
        f"conv{i}.{layer}": f"f.{letter}.{place}"
        for i, letter in ((1, "a"), (2, "b"), (3, "c"))
        for layer, place in (("conv", 0), ("bn", 1))
    },
    "se.fc1": "f.se.fc1",
    "se.fc2": "f.se.fc2",
}
_PROJECTION = {"downsample.conv": "proj.0", "downsample.bn": "proj.1"}


def mobilenet_v2(architecture: Architecture) -> dict[str, str]:
    """Returns torchvision's names of the modules of a MobileNetV2, by timm's."""
    names, count = {}, 0
    for kind, stage, block in _blocks(architecture):
        count += 1
        for timm, torchvision in _MOBILENET[kind].items():
            names[f"blocks.{stage}.{block}.{timm}"] = f"features.{count}.conv.{torchvision}"
    return names | _ends(count + 1)


def efficientnet(architecture: Architecture) -> dict[str, str]:
    """Returns torchvision's names of the modules of an EfficientNet, by timm's."""
    names = {}
    for kind, stage, block in _blocks(architecture):
        place = f"features.{stage + 1}.{block}.block"
        for timm, torchvision in _EFFICIENTNET[kind].items():
            names[f"blocks.{stage}.{block}.{timm}"] = f"{place}.{torchvision}"
    return names | _ends(len(architecture.stages) + 1)


def regnet(depths: Sequence[int]) -> dict[str, str]:
    """Returns torchvision's names of the modules of a RegNet, by timm's.

    Args:
        depths: Number of blocks of each stage.
    """
    names = {"stem.conv": "stem.0", "stem.bn": "stem.1", "head.fc": "fc"}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            place = f"trunk_output.block{stage}.block{stage}-{block}"
            layers = {**_REGNET, **(_PROJECTION if block == 0 else {})}
            for timm, torchvision in layers.items():
                names[f"s{stage}.b{block + 1}.{timm}"] = f"{place}.{torchvision}"
    return names


def _blocks(architecture: Architecture) -> Iterator[tuple[str, int, int]]:
    """Yields the kind of each block, its stage and its place in the stage."""
    for stage, rows in enumerate(architecture.stages):
        kinds = [row.block for row in rows for _ in range(row.repeats)]
        for block, kind in enumerate(kinds):
            yield kind, stage, block


def _ends(last: int) -> dict[str, str]:
    """Returns the names of the stem, the last convolution (number `last`) and the classifier."""
    return {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }
