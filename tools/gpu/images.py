"""Packs the images of a data set as JPEGs of one size in one .npz file, and unpacks them."""

import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from remem_jax import data
from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.weights import augreg
from tools.gpu import programs

FILE = "images.npz"
QUALITY = 87  # Quality of the JPEGs.


def pack(path: pathlib.Path, source: sources.Source, pixels: int, most: int) -> dict[str, Any]:
    """Writes all splits of a data set, or the first images of each.

    Images are resized to squares with this side, ignoring the aspect ratio, as in the paper.

    Returns:
        A description for the record.
    """
    arrays: dict[str, Any] = {"classes": np.asarray(source.classes)}
    counts = {
        name: min(split.examples, most or split.examples) for name, split in source.splits.items()
    }
    for name, split in source.splits.items():
        examples = [split.read(i) for i in range(counts[name])]
        encoded = [_encoded(example.image, pixels) for example in examples]
        arrays[f"{name}_label"] = np.asarray([example.label for example in examples], np.int32)
        arrays[f"{name}_end"] = np.cumsum([len(jpeg) for jpeg in encoded])
        arrays[f"{name}_jpeg"] = np.frombuffer(b"".join(encoded), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # The headers of the JPEGs are similar.
    return {
        "title": source.title,
        "images": counts,
        "classes": len(source.classes),
        "pixels": pixels,
        "quality": QUALITY,
    }


def unpack(packed: pathlib.Path, path: pathlib.Path) -> None:
    """Writes packed images as the arrays that docs/own_data.md describes."""
    with np.load(packed, allow_pickle=False) as stored:
        arrays: dict[str, Any] = {"classes": stored["classes"]}
        for name in (name.removesuffix("_jpeg") for name in stored.files if name.endswith("_jpeg")):
            arrays[f"{name}_label"] = stored[f"{name}_label"]
            arrays[f"{name}_image"] = np.stack(_decoded(stored, name))
    with path.open("wb") as file:
        np.savez(file, **arrays)


def examples(packed: pathlib.Path, weights: pathlib.Path, count: int) -> programs.Inputs:
    """Returns some images at the size of a ViT's input, with random labels of its classes."""
    checkpoint = augreg.read(weights)
    with np.load(packed, allow_pickle=False) as stored:
        images = _decoded(stored, sources.TRAIN, count)
    pixels = np.stack([decoding.resize(image, checkpoint.image_size) for image in images])
    labels = np.random.default_rng(0).integers(0, checkpoint.classes, len(images))
    return programs.Inputs(weights, pixels, labels)


def _decoded(stored: Any, split: str, count: int | None = None) -> list[np.ndarray]:
    content, ends = stored[f"{split}_jpeg"].tobytes(), stored[f"{split}_end"][:count].tolist()
    begins = [0, *ends[:-1]]
    return [decoding.decode(content[i:j]) for i, j in zip(begins, ends, strict=True)]


def open_source(name: str, path: str, data_dir: str) -> sources.Source:
    """Opens a data set by its values of `config.data`."""
    return data.open_source(name, path=path, data_dir=data_dir)


def _encoded(image: bytes | np.ndarray, pixels: int) -> bytes:
    whole = decoding.decode(image) if isinstance(image, bytes) else image
    file = io.BytesIO()
    Image.fromarray(decoding.resize(whole, pixels)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
