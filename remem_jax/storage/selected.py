"""The files of the selected models of a run."""

import pathlib

FOLDER = "selected"
REFIT = "{}_refit"  # Name of a method's models that were trained anew, in those of their files.
# A teacher has timm's names, or AugReg's or big_vision's if these have such a network.
TIMM, NPZ = ".safetensors", ".npz"


def teacher(run: pathlib.Path, method: str) -> pathlib.Path:
    """Returns the path of a method's teacher, which is not there if the teacher has adapters.

    Earlier versions wrote all teachers as .npz.
    """
    timm, npz = (teacher_path(run, method, suffix) for suffix in (TIMM, NPZ))
    return timm if timm.is_file() else npz


def teacher_path(run: pathlib.Path, method: str, suffix: str) -> pathlib.Path:
    """Returns the path to write a method's teacher to, with the suffix `TIMM` or `NPZ`."""
    return run / FOLDER / f"{method}_teacher{suffix}"
