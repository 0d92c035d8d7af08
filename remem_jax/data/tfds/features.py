"""Finds the image and the label among the features of a data set of TFDS."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from remem_jax.checks import SettingError

IMAGE, LABEL = "image", "label"  # The names of most data sets.


class Pair(NamedTuple):
    """The names of the features that are read.

    Attributes:
        image: An `Image`.
        label: A `ClassLabel`, an integer or a text.
    """

    image: str
    label: str


def find(info: Any, image: str, label: str) -> Pair:
    """Finds the features of a data set that a classifier is trained on.

    A feature that is not given is the one that TFDS itself trains on (`supervised_keys`), the only
    one of its kind (`Image`, `ClassLabel`), or the one called "image" or "label".

    Args:
        info: TFDS's `DatasetInfo`.
        image: Value of `config.data.image_feature`; empty finds it.
        label: Value of `config.data.label_feature`; empty finds it.

    Raises:
        SettingError: If there is no such feature, or it is not of a kind that can be read.
    """
    keys = info.supervised_keys
    known = keys if isinstance(keys, tuple) and len(keys) == 2 else (IMAGE, LABEL)
    features = dict(info.features.items())
    images = [name for name, feature in features.items() if _is_image(feature)]
    labels = [name for name, feature in features.items() if _is_label(feature)]
    classes = [name for name in labels if is_class_label(features[name])]
    return Pair(
        _chosen(info, IMAGE, image, images, images, known[0]),
        _chosen(info, LABEL, label, labels, classes, known[1]),
    )


def require_group(info: Any, group: str) -> None:
    """Raises `SettingError` unless a data set has a feature that can name groups of images.

    Args:
        info: TFDS's `DatasetInfo`.
        group: Value of `config.data.group_feature`.
    """
    features = dict(info.features.items())
    possible = [name for name, feature in features.items() if _is_label(feature)]
    if group not in possible:
        raise SettingError(
            f"config.data.group_feature is {group!r}, and {info.full_name} has no such text or "
            f"integer: set it to one of {_listed(possible)}, or leave it empty."
        )


def is_class_label(feature: Any) -> bool:
    """Returns whether a feature numbers classes, so that their number is known."""
    import tensorflow_datasets

    is_one = isinstance(feature, tensorflow_datasets.features.ClassLabel)
    return is_one and feature.num_classes is not None


def _is_image(feature: Any) -> bool:
    """Returns whether a feature is an encoded image of 8 or 16 bits, and no mask."""
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    masks = isinstance(feature, kinds.LabeledImage)
    # TFDS stores the four bytes of a float32 as the four channels of a PNG.
    return isinstance(feature, kinds.Image) and not masks and feature.np_dtype != np.float32


def _is_label(feature: Any) -> bool:
    """Returns whether a feature is one integer or one text."""
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    if isinstance(feature, kinds.Text):
        return True
    if not isinstance(feature, kinds.Tensor) or feature.shape != ():
        return False
    return np.issubdtype(feature.np_dtype, np.integer) or feature.np_dtype == np.bool_


def _chosen(
    info: Any,
    what: str,
    given: str,
    possible: Collection[str],
    likely: Collection[str],
    known: Any,
) -> str:
    """Returns the name of a feature: the given one, or the one that is found."""
    setting = f"config.data.{what}_feature"
    if given:
        if given not in possible:
            raise SettingError(
                f"{setting} is {given!r}, and {info.full_name} has no such {what}: set it to one "
                f"of {_listed(possible)}, or leave it empty."
            )
        return given
    for name in (known, *(likely if len(likely) == 1 else ()), what):
        if isinstance(name, str) and name in possible:
            return name
    raise SettingError(
        f"Which feature of {info.full_name} is the {what} is not clear: set {setting} to one of "
        f"{_listed(possible)}, or config.data.name to another data set; it has the features "
        f"{_described(dict(info.features.items()))}."
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none that can be read"


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
