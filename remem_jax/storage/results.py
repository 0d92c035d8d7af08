"""Small JSON files, written atomically."""

import hashlib
import json
import math
import pathlib
from typing import Any

from remem_jax import mesh, redaction
from remem_jax.storage import files


def write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON values without secrets, and creates the parent folders.

    Numbers that are not finite become null.
    """
    plain = redaction.without_secrets(finite(content))
    files.write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Replaces numbers that are not finite, which JSON does not have, by None."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read(path: pathlib.Path) -> Any | None:
    """Reads a file that `write` wrote; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_for_all(path: pathlib.Path, content: Any) -> None:
    """Calls `write` in the first process of a run."""
    if mesh.is_writer():
        write(path, content)


def read_for_all(path: pathlib.Path) -> Any | None:
    """Reads in the first process of a run; all processes call it, and get its result."""
    return json.loads(mesh.broadcast_text(json.dumps(read(path) if mesh.is_writer() else None)))


def digest(path: pathlib.Path) -> str:
    """Returns a hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(content: Any) -> str:
    """Returns a hash of JSON values that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
