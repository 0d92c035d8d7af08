"""The worst mistakes of a student on test, with thumbnails of the images."""

import base64
import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.storage import results

MOST = 24  # Mistakes with a thumbnail; about 4 kB each.
SIDE = 96  # Longer side of a thumbnail, in pixels.
_QUALITY = 80  # Of JPEG.


def worst(
    predicted: Int[np.ndarray, " image"],
    confidences: Float[np.ndarray, " image"],
    labels: Int[np.ndarray, " image"],
) -> list[dict[str, Any]]:
    """Returns the wrong predictions with the highest confidences, at most `MOST`, highest first.

    Args:
        predicted: Predicted classes.
        confidences: Softmax probabilities of these classes.
        labels: True classes.

    Returns:
        "image", the index in these arrays, "label", "predicted" and "confidence".
    """
    wrong = np.flatnonzero(predicted != labels)
    chosen = wrong[np.argsort(-confidences[wrong], kind="stable")][:MOST]
    return [
        {
            "image": int(i),
            "label": int(labels[i]),
            "predicted": int(predicted[i]),
            "confidence": float(confidences[i]),
        }
        for i in chosen
    ]


def write(directory: pathlib.Path, method: str, test: sources.Subset) -> None:
    """Writes the worst mistakes of a method's student to selected/METHOD_mistakes.json.

    Each has the "file" and the "thumbnail", so that a report needs no images: a JPEG in base64, of
    at most `SIDE` pixels a side; "" if the image can no longer be read. Nothing is written for a
    student that an earlier version tested.

    Args:
        directory: Folder of the run.
        method: Name of the method.
        test: Test images of the run.
    """
    tested = results.read(directory / "selected" / f"{method}.json") or {}
    if "mistakes" not in tested:
        return
    entries = [
        {
            **mistake,
            "file": test.split.name(int(test.rows[mistake["image"]])),
            "thumbnail": _thumbnail(test, mistake["image"]),
        }
        for mistake in tested["mistakes"]
    ]
    results.write(directory / "selected" / f"{method}_mistakes.json", entries)


def _thumbnail(test: sources.Subset, i: int) -> str:
    try:
        encoded = test.split.read(int(test.rows[i])).image
        pixels = (
            encoded
            if isinstance(encoded, np.ndarray)
            else decoding.decode(encoded, at_least=(SIDE, SIDE))
        )
    except (decoding.CorruptImageError, OSError):  # Removed, or replaced, since it was scanned.
        return ""
    return base64.b64encode(jpeg(pixels)).decode()


def jpeg(pixels: np.ndarray) -> bytes:
    """Encodes an image as a JPEG whose longer side is at most `SIDE`, with its aspect ratio.

    Small images are enlarged by a whole number, so that their pixels can be seen.

    Args:
        pixels: uint8 (height, width, 3).
    """
    image, longer = Image.fromarray(pixels), max(pixels.shape[:2])
    if longer > SIDE:
        image.thumbnail((SIDE, SIDE))
    elif SIDE // longer > 1:
        width, height = (side * (SIDE // longer) for side in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
