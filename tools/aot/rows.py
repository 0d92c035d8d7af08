"""The rows of the table: steps of `configs/remem.py`, with the devices that they should fit on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import remem
from remem_jax.workflow import context
from tools.aot import steps, targets, teachers

DATA = "flowers102"  # Its images are stored at 256 pixels, like those of most data sets.
SEVERAL = tuple(name for name, target in targets.TARGETS.items() if target.devices > 1)


class Row(NamedTuple):
    """One row of the table, for each of its targets.

    Attributes:
        title: Title in the table.
        options: Options of `configs/remem.py`.
        settings: Changed settings by name, as on the command line.
        make: Makes the step of a run.
        targets: Names of targets in `targets.TARGETS`.
        too_large: Targets that it is known not to fit on.
    """

    title: str
    options: str
    settings: Mapping[str, Any]
    make: Callable[[context.Run], steps.Step]
    targets: Sequence[str] = tuple(targets.TARGETS)
    too_large: Sequence[str] = ()

    def config(self) -> ConfigDict:
        """Returns all settings."""
        config = remem.get_config(f"{DATA},{self.options}")
        config.update_from_flattened_dict(dict(self.settings))
        return config


def _teacher(variant: str, method: str, **settings: Any) -> Row:
    """Returns the row of fine-tuning a ViT with a method, with or without FSDP."""
    optimiser = {"finetune": "plain", "remem": "SAM"}[method]
    title = f"ViT-{variant}, {optimiser}" + (", FSDP" if settings.get("fsdp") else "")
    return Row(
        title,
        f"variant={variant}",
        {"methods": (method,), **settings},
        steps.teacher,
        SEVERAL if settings.get("fsdp") else tuple(targets.TARGETS),
    )


def _student(title: str, options: str, **others: Any) -> Row:
    settings = {"methods": ("remem",), **others.pop("settings", {})}
    return Row(f"{title}, distilled from ViT-B/16", options, settings, steps.distillation, **others)


def _pretrained(init: str, network: teachers.Network) -> dict[str, Row]:
    """Returns the rows of a teacher from the hub, for one kind of GPU and one of TPU."""
    settings = {"methods": ("remem",), "teacher.init": init, "teacher.variant": ""}
    common = {"settings": settings, "targets": ("h100", "v5e-8")}
    return {
        f"{network.key}-sam": Row(
            f"{network.title}, SAM", "student=resnet18", make=steps.teacher, **common
        ),
        f"{network.key}-resnet18": Row(
            f"ResNet-18, distilled from {network.title}",
            "student=resnet18",
            make=steps.distillation,
            **common,
        ),
    }


# Students of other families, for one kind of GPU and one of TPU.
STUDENTS = (
    "resnet26d",
    "resnet50d",
    "regnety_004",
    "regnety_008",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_medium",
    *(f"efficientnet_lite{i}" for i in range(5)),
    "efficientnet_b0",
    "vit_tiny_patch16",
    "vit_small_patch16",
)

ROWS: dict[str, Row] = {
    **{
        f"{size}-{name}": _teacher(f"{size}/16", method)
        for size in ("Ti", "S", "B", "L")
        for name, method in (("plain", "finetune"), ("sam", "remem"))
    },
    **{f"{size}-sam-fsdp": _teacher(f"{size}/16", "remem", fsdp=True) for size in ("B", "L")},
    "resnet18": _student("ResNet-18", "student=resnet18"),
    "mobilenet_v2": _student("MobileNetV2", "student=mobilenet_v2"),
    # 26 GiB: batch normalisation needs the activations of the whole batch.
    "efficientnet_v2_s": _student(
        "EfficientNetV2-S", "student=efficientnet_v2_s", too_large=("rtx3090",)
    ),
    **{name: _student(name, f"student={name}", targets=("h100", "v5e-8")) for name in STUDENTS},
    "features": _student("ResNet-18, features", "student=resnet18,loss=features"),
    "resnet18-fsdp": _student(
        "ResNet-18, FSDP", "student=resnet18", settings={"fsdp": True}, targets=SEVERAL
    ),
    **{
        name: row
        for init, network in teachers.NETWORKS.items()
        for name, row in _pretrained(init, network).items()
    },
    "decoder": Row(
        "Decoder and critic of ViT-B/16",
        "variant=B/16",
        {"methods": ("remem",), "information.seeds": (0,)},
        steps.information,
    ),
    "evaluation": Row(
        "Evaluation of ViT-B/16", "variant=B/16", {"methods": ("remem",)}, steps.evaluation
    ),
}
