"""What our files of ViTs with timm's names record, and timm's own do not: the whole network."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors

from remem_jax.models import mlp, vit
from remem_jax.models.normalisation import Normalisation
from remem_jax.models.rotary import Rotary
from remem_jax.weights import described
from remem_jax.weights.facts import Facts


class Recorded(NamedTuple):
    """What a file of ours says about its ViT.

    Attributes:
        gelu: One of `mlp.GELUS`; "" if the file does not record it.
        heads: Number of attention heads; 0 if the file does not record it.
        options: Fields of `vit.VisionTransformer` in `vit.ARCHITECTURE`; {} for files of earlier
            versions, and of others.
        architecture: timm's name of the network; "" if unknown.
    """

    gelu: str = ""
    heads: int = 0
    options: Mapping[str, Any] = {}
    architecture: str = ""

    def completed(self, facts: Facts) -> Facts:
        """Returns facts, with those that are recorded in place of others."""
        known = {
            "gelu": self.gelu,
            "heads": self.heads,
            "rope": self.options.get("rope"),
            "pool": self.options.get("pool"),
            "pool_heads": self.options.get("pool_heads"),
            "architecture": self.architecture,
        }
        return facts._replace(**{name: value for name, value in known.items() if value})


def of_model(model: vit.VisionTransformer, architecture: str = "") -> Recorded:
    """Returns what is recorded about a network whose positions, if computed, become learned."""
    options = {name: getattr(model, name) for name in vit.ARCHITECTURE}
    if model.positions == "sincos2d":
        options["positions"] = "learned"
    plain = {name: value for name, value in options.items() if value != described.PLAIN[name]}
    plain |= {"pool": options["pool"], "positions": options["positions"]}
    return Recorded(model.gelu, model.size.heads, plain, architecture)


def texts(recorded: Recorded) -> dict[str, str]:
    """Returns the entries of a file's metadata."""
    entries = {"gelu": recorded.gelu, "heads": str(recorded.heads)}
    if recorded.options:
        entries["vit"] = json.dumps(dict(recorded.options), sort_keys=True)
    return entries | ({"timm": recorded.architecture} if recorded.architecture else {})


def read(path: str | os.PathLike[str]) -> Recorded:
    """Reads what a whole .safetensors file records: of a teacher, or of a student that is a ViT."""
    with safetensors.safe_open(os.fspath(path), framework="np") as file:
        metadata = file.metadata() or {}
    stored = _object(metadata.get("architecture", "")).get("gelu", metadata.get("gelu"))
    heads = metadata.get("heads", "")
    return Recorded(
        stored if isinstance(stored, str) and stored in mlp.GELUS else "",
        int(heads) if heads.isdecimal() else 0,
        _options(_object(metadata.get("vit", ""))),
        metadata.get("timm", ""),
    )


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options from JSON values."""
    options = {name: value for name, value in stored.items() if name in vit.ARCHITECTURE}
    if options.get("rope"):
        options["rope"] = Rotary(*options["rope"])
    if "normalisation" in options:
        mean, std = options["normalisation"]
        options["normalisation"] = Normalisation(tuple(mean), tuple(std))
    return options


def _object(text: str) -> dict[str, Any]:
    """Returns a JSON object; {} if the text is none, such as that of another project."""
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
