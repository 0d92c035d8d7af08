"""Reads and writes the .safetensors files of timm's ViTs. `timm_names` renames their arrays."""

import os
import pathlib
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
from absl import logging
from safetensors import numpy as safetensors_numpy

from remem_jax.checks import SettingError, require
from remem_jax.storage import files

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# What torch's wrappers add to names: anywhere in a name, and as a prefix of all names.
_INSIDE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BEFORE = re.compile(r"(?:(?:module|model|net|state_dict)\.)*")
# safetensors asks NumPy for types by name; ml_dtypes registers bfloat16.
_REALS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
_INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file; floating-point arrays are read as float32.

    Raises:
        SettingError: If the file is missing, broken, of another format, or has a type that NumPy
            does not have.
    """
    source = os.fspath(path)
    refuse_pickle(path)
    if not pathlib.Path(path).is_file():
        raise SettingError(f"There is no checkpoint {source}; set config.teacher.init.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            for name, dtype in types.items():
                known = dtype in _REALS or dtype in _INTEGERS
                require(known, f"{name} in {source} holds {dtype}, which NumPy does not have.")
            return {name: _real(file.get_tensor(name), types[name]) for name in types}
    except (safetensors.SafetensorError, OSError) as error:
        raise SettingError(f"{source} is not a whole .safetensors file: {error}.") from error


def refuse_pickle(path: str | os.PathLike[str]) -> None:
    """Raises `SettingError` if a file has the suffix of a pickle."""
    if pathlib.Path(path).suffix in PICKLES:
        raise SettingError(
            f"{os.fspath(path)} is a pickle, which may run code, and is not loaded: convert it "
            "where you trust it, by safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'FILE.safetensors')."
        )


def unwrapped(
    arrays: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Removes the prefixes that training code adds to names.

    `torch.compile`, data-parallel training and training frameworks prefix names with `_orig_mod.`,
    `module.`, `model.` or `state_dict.`. If most names have such a prefix, the others are not part
    of the model: averages of weights, or the state of an optimiser.

    Returns:
        The arrays of the model, and the names of the others.

    Raises:
        SettingError: If the file has several such models.
    """
    plain = {_INSIDE.sub("", name): array for name, array in arrays.items()}
    groups: dict[str, list[str]] = {}
    for name in plain:
        groups.setdefault(_BEFORE.match(name)[0], []).append(name)  # pyright: ignore[reportOptionalSubscript]
    start, members = max(groups.items(), key=lambda group: len(group[1]), default=("", []))
    if not start:
        members = list(plain)
    elif len(groups.keys() - {""}) > 1:
        raise SettingError(
            f"{source} holds several models, whose names begin with "
            f"{', '.join(sorted(groups.keys() - {''}))}: save one of them alone."
        )
    if start or plain.keys() != arrays.keys():
        logging.info("%s: names are read without %s.", source, start or "_orig_mod. and the like")
    ignored = tuple(name for name in plain if name not in set(members))
    return {name.removeprefix(start): plain[name] for name in members}, ignored


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a .safetensors file, atomically.

    Args:
        path: The file.
        arrays: Arrays by name.
        metadata: Texts for the header. {"format": "pt"} is added, because some readers refuse a
            file without it.
    """
    # safetensors writes the memory of an array in its order, ignoring strides.
    stored = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = {"format": "pt", **(metadata or {})}
    with files.replacing(pathlib.Path(path)) as file:
        file.write(safetensors_numpy.save(stored, header))


def _real(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # Numbers that are too large become infinite.
        return np.asarray(array, np.float32) if dtype in _REALS else array
