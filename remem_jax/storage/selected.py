"""The files of the selected models of a run."""

import pathlib

FOLDER = "selected"
REFIT = "{}_refit"  # Name of a method's models that were trained anew, in those of their files.
# A teacher whose GELU is by erf has timm's names, and any other AugReg's or big_vision's: code that
# loads these names computes with that GELU.
BY_ERF, BY_TANH = ".safetensors", ".npz"


def teacher(run: pathlib.Path, method: str) -> pathlib.Path:
    """Returns the path of a method's teacher, which is not there if the teacher has adapters.

    Earlier versions wrote all teachers as .npz.
    """
    by_erf, by_tanh = (teacher_path(run, method, exact_gelu=erf) for erf in (True, False))
    return by_erf if by_erf.is_file() else by_tanh


def teacher_path(run: pathlib.Path, method: str, *, exact_gelu: bool) -> pathlib.Path:
    """Returns the path to write a method's teacher to, given whether its GELU is by erf."""
    return run / FOLDER / f"{method}_teacher{BY_ERF if exact_gelu else BY_TANH}"
