"""Sketches of arrays: a few numbers, from which the distance of two arrays can be estimated.

Source: Charikar et al. 2002, Finding frequent items in data streams (the CountSketch); the squared
distance of two sketches is an unbiased estimate of that of the arrays.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Errors of arrays whose norm is below this fraction of the norm of all arrays are relative to this
# fraction: a gradient that is zero except for rounding, such as that of the biases of keys, has no
# meaningful relative error.
FLOOR = 1e-3
SIZE = 64  # Numbers in a sketch; the standard error of an estimated distance is then at most 9 %.


class Sketches(NamedTuple):
    """Sketches of named arrays.

    Attributes:
        norms: Name -> Euclidean norm.
        sums: Name -> `SIZE` sums of the elements under random signs.
    """

    norms: Mapping[str, float]
    sums: Mapping[str, np.ndarray]


def of(arrays: Mapping[str, np.ndarray]) -> Sketches:
    """Returns sketches of arrays; the signs depend only on the name and the number of elements."""
    flat = {name: np.asarray(array, np.float64).ravel() for name, array in arrays.items()}
    return Sketches(
        {name: float(np.linalg.norm(values)) for name, values in flat.items()},
        {name: _sums(name, values) for name, values in flat.items()},
    )


def _sums(name: str, values: np.ndarray) -> np.ndarray:
    rows = -(-values.size // SIZE)
    # Only the raw output of NumPy's bit generators is the same in every version of NumPy.
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(rows)  # 64 bits each.
    signs = np.unpackbits(bits.astype("<u8").view(np.uint8)).astype(np.float64) * 2 - 1
    padded = np.zeros(rows * SIZE)
    padded[: values.size] = values
    return (signs * padded).reshape(rows, SIZE).sum(axis=0)


def errors(found: Sketches, expected: Sketches) -> dict[str, float]:
    """Estimates the relative distance of each array from the expected one; see `FLOOR`.

    Raises:
        ValueError: If the two sides have different arrays.
    """
    if found.norms.keys() != expected.norms.keys():
        differing = sorted(found.norms.keys() ^ expected.norms.keys())
        raise ValueError(f"These arrays are on one side only: {', '.join(differing[:10])}.")
    floor = FLOOR * np.linalg.norm(list(expected.norms.values())) or 1.0
    return {
        name: float(np.linalg.norm(found.sums[name] - sums) / max(expected.norms[name], floor))
        for name, sums in expected.sums.items()
    }


def total_error(found: Sketches, expected: Sketches) -> float:
    """Estimates the relative distance of all arrays together."""
    distance = np.sqrt(sum(np.sum((found.sums[n] - s) ** 2) for n, s in expected.sums.items()))
    return float(distance / np.linalg.norm(list(expected.norms.values())))
