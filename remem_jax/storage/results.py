"""Small JSON files, written whole or not at all."""

import hashlib
import json
import pathlib
from typing import Any

from remem_jax.storage import files


def write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON, and the folders above it."""
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def read(path: pathlib.Path) -> Any | None:
    """What `write` wrote, or None."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def digest(path: pathlib.Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(content: Any) -> str:
    """Hash of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
