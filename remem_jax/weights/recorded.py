"""What our files of ViTs with timm's names record, and timm's own do not: GELU and heads."""

import json
import os
from typing import NamedTuple

import safetensors

from remem_jax.models import vit_student


class Recorded(NamedTuple):
    """Facts on a ViT that its arrays do not determine.

    Attributes:
        gelu: "tanh" or "erf"; empty if the file does not record it.
        heads: Number of attention heads; 0 if the file does not record it.
    """

    gelu: str = ""
    heads: int = 0


def texts(recorded: Recorded) -> dict[str, str]:
    """Returns the entries of a file's metadata."""
    return {"gelu": recorded.gelu, "heads": str(recorded.heads)}


def read(path: str | os.PathLike[str]) -> Recorded:
    """Reads what a whole .safetensors file records: of a teacher, or of a student that is a ViT."""
    with safetensors.safe_open(os.fspath(path), framework="np") as file:
        metadata = file.metadata() or {}
    stored = _architecture(metadata.get("architecture", "")).get("gelu", metadata.get("gelu"))
    heads = metadata.get("heads", "")
    return Recorded(
        stored if stored in vit_student.GELUS else "", int(heads) if heads.isdecimal() else 0
    )


def _architecture(text: str) -> dict[str, str]:
    """Returns the architecture of a student of ours; empty if the text is of another project."""
    try:
        architecture = json.loads(text or "{}")
    except ValueError:
        return {}
    return architecture if isinstance(architecture, dict) else {}
