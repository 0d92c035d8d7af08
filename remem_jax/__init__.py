"""ReMem: fine-tunes a pretrained Vision Transformer so that small students learn well from it."""

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remem_jax.budget.function import Result
    from remem_jax.export.classifier import Classifier

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
            docs/own_data.md. "tfds:NAME" is a data set of TFDS; see docs/data_sets.md.
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


def load(
    path: str | os.PathLike[str], *, method: str = "", seed: int | None = None
) -> "Classifier":
    """Opens a student to classify images with; the same as the command `remem predict`.

        model = remem_jax.load("runs/mine")
        for found in model.predict("photographs"):
            print(found.path, found.class_name, found.probability)

    Args:
        path: Folder of a finished run; or a file or tree that `remem export` wrote, in any of its
            formats; or a student in a run's folder selected/.
        method: Method of the run; "" selects the student that is best on validation.
        seed: Seed of the student; None selects the one that is best on validation.

    Returns:
        The student. Its `predict` takes paths, folders, Pillow's images and uint8 arrays.

    Raises:
        SettingError: If there is no such run, student or export, or it is damaged.
    """
    function = importlib.import_module("remem_jax.export.classifier")
    return function.load(path, method=method, seed=seed)
