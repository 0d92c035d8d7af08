"""Reads what a repository of the Hugging Face Hub says about its weights.

Repositories of timm have a config.json with `architecture` and `pretrained_cfg`; those of
transformers one with `model_type`, and a preprocessor_config.json. The head of the model card, a
README.md, has the licence.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

_HEAD = re.compile(r"---\n(.*?\n)---\s*(?:\n|$)", re.DOTALL)  # Of a card, with its metadata.


def read_json(path: pathlib.Path | None) -> dict[str, Any]:
    """Reads a JSON file; {} if there is no such file, or it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_card(path: pathlib.Path | None) -> dict[str, Any]:
    """Reads the metadata of a model card; {} if there are none, or they are no YAML mapping."""
    try:
        head = _HEAD.match(path.read_text(encoding="utf-8")) if path else None
        content = yaml.safe_load(head[1]) if head else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def pretraining(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns timm's description of the pretraining in a config.json: `mean`, `std` and others."""
    nested = config.get("pretrained_cfg")
    return nested if isinstance(nested, Mapping) else config


def architecture(config: Mapping[str, Any]) -> str:
    """Returns timm's name of the network in a config.json; "" if it is not timm's."""
    return str(config.get("architecture") or "")


def licence(config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Returns the licence that a model card or timm's config.json states; "" if neither does.

    It is an abbreviation of the Hub's, or, for others, the name that the card gives.
    """
    named = card.get("license_name") if card.get("license") == "other" else ""
    return str(named or card.get("license") or pretraining(config).get("license") or "")


def statistics(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `mean` and `std` of images, as the files have them; {} if they have neither."""
    files = ({**config, **pretraining(config)}, preprocessor)
    found: dict[str, Any] = {}
    for name, of_transformers in (("mean", "image_mean"), ("std", "image_std")):
        value = files[0].get(name) or files[1].get(of_transformers)
        if value is not None:
            found[name] = value
    return found
