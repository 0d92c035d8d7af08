"""Tiny data sets in TFDS's own format, by TFDS's own builders, without TensorFlow."""

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets
from PIL import Image

Examples = tuple[np.ndarray, np.ndarray]  # Images and labels.


def write(name: str, data_dir: pathlib.Path, splits: dict[str, Examples]) -> pathlib.Path:
    """Prepares the data set that TFDS calls `name` from other images; returns its folder.

    Only where the examples come from is ours: features, class names and storage are those of
    the real builder.
    """
    builder: Any = tensorflow_datasets.builder(name, data_dir=str(data_dir), try_gcs=False)
    features = builder.info.features
    builder._split_generators = lambda *_, **__: {
        split: _examples(features, *examples) for split, examples in splits.items()
    }
    builder.download_and_prepare(file_format="array_record")
    return pathlib.Path(builder.data_dir)


def _examples(
    features: Any, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        other = {
            key: _neutral(feature, i)
            for key, feature in features.items()
            if key not in ("image", "label")
        }
        yield f"{i:06d}", {**other, "image": _png(image), "label": int(label)}


def _neutral(feature: Any, i: int) -> Any:
    if isinstance(feature, tensorflow_datasets.features.Text):
        return f"{i:06d}"
    if isinstance(feature, tensorflow_datasets.features.Image):
        return _png(np.zeros((1, 1), np.uint8))
    return np.zeros(feature.shape, feature.np_dtype)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
