"""Reads .npz files that may be broken or malicious: no pickles, one pass over the bytes."""

import math
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from remem_jax.checks import SettingError

_LARGEST = 64 * 2**30  # Bytes; the largest ViT has 16 GiB in float32.


def read(
    path: str | os.PathLike[str], choose: Callable[[list[str]], dict[str, str]]
) -> dict[str, np.ndarray]:
    """Reads arrays of a file as float32, in one pass over their bytes.

    Args:
        path: An .npz file.
        choose: Function from all names in the file to those to read, with their new names.

    Returns:
        Read-only arrays by their new names. Two void bytes, as which NumPy stores bfloat16, are
        read as bfloat16.

    Raises:
        SettingError: If the file is missing, truncated, or not an .npz of numeric arrays; the
            message names the array.
    """
    source = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = choose(list(members))
            _require_plausible(source, [members[name] for name in chosen])
            return {
                new: _array(archive, members[old], f"{old} in {source}")
                for old, new in chosen.items()
            }
    except FileNotFoundError:
        raise SettingError(f"There is no checkpoint {source}; set config.teacher.init.") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise SettingError(f"{source} is not a whole .npz checkpoint: {error}.") from error


def _require_plausible(source: str, members: list[zipfile.ZipInfo]) -> None:
    """Raises `SettingError` for sizes that no checkpoint has, before allocating anything."""
    total = sum(info.file_size for info in members)
    if total > _LARGEST:
        largest = max(members, key=lambda info: info.file_size).filename.removesuffix(".npy")
        raise SettingError(
            f"{source} says that it holds {total / 2**30:.0f} GiB (most in {largest}): more than "
            "any ViT has."
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """Reads one array; zipfile verifies its checksum."""
    with archive.open(info) as member:
        shape, fortran, dtype, header = _header(member, name)
        expected = math.prod(shape) * dtype.itemsize
        if header + expected != info.file_size:
            raise SettingError(
                f"{name} should have {expected:,} bytes by its shape {shape}, and has "
                f"{info.file_size - header:,}: the file is broken."
            )
        flat = np.frombuffer(member.read(), dtype, math.prod(shape))
    array = flat.reshape(shape, order="F" if fortran else "C")
    if array.dtype.type is np.void:  # How NumPy stores bfloat16.
        array = array.view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):  # Numbers that are too large become infinite.
        return np.asarray(array, np.float32)


def _header(member: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Returns the shape, order and type of an array, and the size of its header in bytes."""
    lib = np.lib.format
    try:
        version = lib.read_magic(member)
        reader = lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0
        shape, fortran, dtype = reader(member)
    except (ValueError, SyntaxError) as error:
        raise SettingError(f"{name} is not an array: {error}.") from error
    if dtype.hasobject:
        raise SettingError(f"{name} is a pickled object, which may run code: it is not loaded.")
    if not (dtype.kind in "fiu" or (dtype.kind == "V" and dtype.itemsize == 2)):
        raise SettingError(f"{name} holds {dtype}, not numbers.")
    return shape, fortran, dtype, member.tell()
