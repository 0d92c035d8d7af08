"""ReMem: fine-tunes a pretrained Vision Transformer so that small students learn well from it."""

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remem_jax.budget.function import Result

__version__ = "0.1.0"


def distil(
    images: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    hours: float = 1.0,
    settings: Mapping[str, Any] | None = None,
) -> "Result":
    """Makes a small model from images in a given time; the same as the command `remem distil`.

    Args:
        images: A folder with one folder per class, a list (.csv, .jsonl) or an .npz; see
            docs/own_data.md.
        out: Folder of the run. A run that was stopped goes on from it, and one that is finished
            trains longer if it gets more hours.
        hours: Time for everything, above 0.
        settings: Other settings by name, such as {"student.model": "resnet18"}; see
            docs/configuration.md.

    Returns:
        The folder and the results. The report is in the folder.

    Raises:
        SettingError: If the images, the weights, a setting or the folder cannot be used.
    """
    # By name, because modules of all layers import this one, for its version. It imports JAX.
    function = importlib.import_module("remem_jax.budget.function")
    return function.distil(images, out=out, hours=hours, settings=settings or {})
