"""Adds advice to errors of a non-finite loss and of exhausted device memory."""

import contextlib
from collections.abc import Iterator

import jax

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.train import loop
from remem_jax.workflow import stages

_RATES = {
    "teachers": "config.teacher.learning_rate, or config.teacher.rho",
    "students": "config.student.learning_rates",
    "information": "config.information.learning_rate",
}
_MIXUP = {"teachers": "config.teacher.mixup", "students": "config.student.mixup"}
# Settings that reduce memory: first those with which the run can resume, then those that need a
# new run.
_MEMORY = {
    "teachers": (
        'config.teacher.rematerialise to "blocks", config.teacher.accumulate to a larger number',
        "lower config.teacher.batch_size",
    ),
    "students": (
        "config.student.group to fewer students at once",
        "lower config.student.batch_size",
    ),
    "information": ("", "lower config.information.batch_size"),
}


class OutOfMemoryError(SettingError):
    """A device has too little memory for a stage of a run."""


@contextlib.contextmanager
def on_out_of_memory(stage: str) -> Iterator[None]:
    """Turns an error of exhausted device memory into one that names settings to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = mesh.out_of_memory(error)
        if reason is None:
            raise
        text = f"{stages.title(stage)}: {reason} {_memory_advice(stage)}"
        raise OutOfMemoryError(text) from error


def _memory_advice(stage: str) -> str:
    """Names the settings that reduce the memory of a stage."""
    resumable, incompatible = _MEMORY.get(stage.partition("/")[0], ("", "lower the batch_size"))
    also = f"{resumable}, " if resumable else ""
    return (
        f"Set {also}config.fsdp (with several devices), or XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 "
        "in the environment (with a GPU): the same command then continues the run. Or, in another "
        "--workdir, "
        f"{incompatible} or set config.compute_dtype to bfloat16 or config.data.input to streamed. "
        "--config.plan_only shows the memory of each stage."
    )


@contextlib.contextmanager
def on_divergence(stage: str) -> Iterator[None]:
    """Adds advice to the error of a stage whose loss is not finite."""
    try:
        yield
    except loop.NonFiniteLossError as error:
        text = f"{stages.title(stage)}, {error}. {_advice(stage, error)}"
        raise loop.NonFiniteLossError(
            text, error.part, step=error.step, seconds=error.seconds
        ) from error


def _advice(stage: str, error: loop.NonFiniteLossError) -> str:
    """Returns what to do about a loss that is not finite."""
    kind = stage.partition("/")[0]
    if error.of_rate:
        retry = ", or set config.retries" if kind == "teachers" else ""
        return f"Lower {_RATES[kind]}{retry}, in another --workdir."
    if error.part == "parameters":
        return "Checkpoints of this stage are broken: begin again in another --workdir."
    return f"No learning rate helps: {_cause(kind, error.part)}."


def _cause(kind: str, fault: str) -> str:
    """Describes a cause that no learning rate removes."""
    if fault == "data":
        mixed = f", and {_MIXUP[kind]}" if kind in _MIXUP else ""
        return f"check the augmented images (config.data.crop_area{mixed})"
    if fault == "teacher" and kind == "students":
        return (
            "the teacher is broken; fine-tune it again in another --workdir, with a lower "
            "config.teacher.learning_rate or config.teacher.rho, or leave this step out of "
            "config.teacher.steps"
        )
    if fault == "teacher":
        return "one of the teachers is broken; leave it out"
    if kind == "teachers":
        return (
            "the weights of config.teacher.init contain NaN or infinity; fetch them again, or set "
            "config.teacher.init to others"
        )
    return "the model's initial parameters are not finite; fix its initialisers"
