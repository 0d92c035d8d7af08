"""Describes an export in texts that are stored as metadata of every file."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import remem_jax
from remem_jax.checks import SettingError, require
from remem_jax.data.images import preprocessing
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export.options import Form
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.weights import student_normalisation

_RANGES = {"float": preprocessing.RANGE, "uint8": "0 to 255"}
_TYPES = {"float": "float32", "uint8": "uint8"}


class Description(NamedTuple):
    """Everything about a student except its parameters.

    Attributes:
        model: Name of the network, one of `models.STUDENTS`.
        stem: Stem of the network; see `models.layers.STEMS`.
        classes: Class names, in the order of the logits.
        image_size: Side of the square images, in pixels.
        form: Form of the export.
        method: Method of the run; empty if unknown.
        seed: Seed of the student; empty if unknown.
        stored_size: Side of the squares that images are first resized to, in pixels, before
            `image_size`; 0 if they are resized once.
        identity: Hash of the run's file that the student was read from, shared by its exports;
            empty if unknown.
        run: Key of the run's identity (`storage.identity`); empty for older runs.
        normalisation: Normalisation of the images in the student, after `preprocessing`.
        architecture: The options of `models.make` that its initial weights determine: `pool` and
            `gelu` of a ViT, none for other networks.
        crop: See `Preprocessing`.
    """

    model: str
    stem: str
    classes: tuple[str, ...]
    image_size: int
    form: Form
    method: str = ""
    seed: str = ""
    stored_size: int = 0
    identity: str = ""
    run: str = ""
    normalisation: Normalisation = IDENTITY
    architecture: Mapping[str, str] = MappingProxyType({})
    crop: float = 0.0

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing from a decoded image to the pixels that the student takes."""
        return Preprocessing(self.image_size, self.stored_size, self.crop)


def texts(described: Description) -> dict[str, str]:
    """Returns the description as metadata of a file."""
    form = described.form
    return {
        "model": described.model,
        "stem": described.stem,
        "architecture": json.dumps(dict(described.architecture), sort_keys=True),
        "classes": json.dumps(described.classes),
        "image_size": str(described.image_size),
        "image_range": _RANGES[form.input],
        "image_type": _TYPES[form.input],
        **student_normalisation.texts(described.normalisation),
        "image_layout": "batch, height, width, channel (RGB)",
        "resize": described.preprocessing.text(),
        "stored_size": str(described.stored_size),
        "crop": str(described.crop),
        "preprocessing": json.dumps(described.preprocessing.record()),
        "export_format": form.format,
        "batch": str(form.batch) if form.batch else "any",
        "norms": "folded" if form.fold else "kept",
        "precision": form.precision,
        "method": described.method,
        "seed": described.seed,
        "identity": described.identity,
        "run": described.run,
        "producer": f"remem_jax {remem_jax.__version__}",
    }


def read(metadata: Mapping[str, str], source: str) -> Description:
    """Parses the metadata of an export (`texts`) or of a run's student, which lacks the form.

    Raises:
        SettingError: If metadata are missing or invalid.
    """
    missing = [name for name in ("model", "classes", "image_size") if not metadata.get(name)]
    require(
        not missing,
        f"{source} lacks the metadata {', '.join(missing)}: give a student that remem_jax wrote.",
    )
    batch = metadata.get("batch", "any")
    try:
        form = Form(
            metadata.get("export_format", "safetensors"),
            "uint8" if metadata.get("image_type") == "uint8" else "float",
            0 if batch == "any" else int(batch),
            metadata.get("norms") == "folded",
            metadata.get("precision", "float32"),
        )
        architecture = dict(json.loads(metadata.get("architecture") or "{}"))
        size, stored = int(metadata["image_size"]), int(metadata.get("stored_size", 0))
        crop = float(metadata.get("crop", 0))
    except ValueError as error:
        raise SettingError(f"{source} has invalid metadata: {error}.") from error
    return Description(
        metadata["model"],
        metadata.get("stem", "imagenet"),
        class_names(metadata["classes"]),
        size,
        form,
        metadata.get("method", ""),
        metadata.get("seed", ""),
        stored,
        metadata.get("identity", ""),
        metadata.get("run", ""),
        student_normalisation.read(metadata, source) or IDENTITY,
        architecture,
        crop,
    )


def class_names(text: str) -> tuple[str, ...]:
    """Parses class names in metadata: a JSON list; in old files, one name per line."""
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(text.split("\n"))
