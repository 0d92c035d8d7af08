"""Small JSON files, written whole or not at all."""

import hashlib
import json
import math
import pathlib
from typing import Any

from remem_jax import mesh, redaction
from remem_jax.storage import files


def write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON, and the folders above it, without secrets.

    A number that is not finite becomes null.
    """
    plain = redaction.without_secrets(finite(content))
    files.write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """The same JSON values, with None for numbers that JSON does not have."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read(path: pathlib.Path) -> Any | None:
    """What `write` wrote, or None."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_for_all(path: pathlib.Path, content: Any) -> None:
    """`write`, by the first of the processes that make a run."""
    if mesh.is_writer():
        write(path, content)


def read_for_all(path: pathlib.Path) -> Any | None:
    """`read`, by the first of the processes that make a run; all call it, and get the same."""
    return json.loads(mesh.broadcast_text(json.dumps(read(path) if mesh.is_writer() else None)))


def digest(path: pathlib.Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(content: Any) -> str:
    """Hash of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
