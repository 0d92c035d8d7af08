"""What to do where the loss is not finite any more, or a device's memory is full."""

import contextlib
from collections.abc import Iterator

import jax

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.train import loop

_RATES = {
    "teachers": "config.teacher.learning_rate, or config.teacher.rho",
    "students": "config.student.learning_rates",
    "pretrain": "config.train.learning_rate",
    "information": "config.information.learning_rate",
}
_MIXUP = {"teachers": "config.teacher.mixup", "students": "config.student.mixup"}
# What takes less memory: settings with which the same command goes on, and those that make another
# run of it.
_MEMORY = {
    "teachers": (
        'config.teacher.rematerialise to "blocks", config.teacher.accumulate to a larger number',
        "lower config.teacher.batch_size",
    ),
    "students": (
        "config.student.group to fewer students at once",
        "lower config.student.batch_size",
    ),
    "pretrain": (
        'config.train.rematerialise to "blocks", config.train.accumulate to a larger number',
        "lower config.train.batch_size",
    ),
    "information": ("", "lower config.information.batch_size"),
}


class OutOfMemoryError(SettingError):
    """A device has no room for what a part of a run takes."""


@contextlib.contextmanager
def of_memory(part: str) -> Iterator[None]:
    """Has the error of a part of a run say what to set, where a device's memory is full."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = mesh.out_of_memory(error)
        if reason is None:
            raise
        raise OutOfMemoryError(f"{part}: {reason} {_less(part)}") from error


def _less(part: str) -> str:
    goes_on, other = _MEMORY.get(part.partition("/")[0], ("", "lower the batch_size"))
    also = f"{goes_on}, " if goes_on else ""
    return (
        f"Set {also}config.fsdp (of several devices), or XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in "
        "the environment of a GPU, and the same command goes on; or, in another --workdir, "
        f"{other} or set config.compute_dtype to bfloat16 or config.data.input to streamed. "
        "--config.plan_only says what each part takes."
    )


@contextlib.contextmanager
def given(part: str) -> Iterator[None]:
    """Adds advice to the error of a part of a run whose loss is not finite any more."""
    try:
        yield
    except loop.NonFiniteLossError as error:
        text = f"{part}: {error}. {_advice(part, error)}"
        raise loop.NonFiniteLossError(
            text, error.part, step=error.step, seconds=error.seconds
        ) from error


def _advice(part: str, error: loop.NonFiniteLossError) -> str:
    kind = part.partition("/")[0]
    if error.of_rate:
        retry = ", or set config.retries" if kind == "teachers" else ""
        return f"Lower {_RATES[kind]}{retry}, in another --workdir."
    if error.part == "parameters":
        return "Checkpoints of this part are broken: begin again in another --workdir."
    return f"No learning rate helps: {_cause(kind, error.part)}."


def _cause(kind: str, fault: str) -> str:
    if fault == "data":
        mixed = f", and {_MIXUP[kind]}" if kind in _MIXUP else ""
        return f"see what augmentation makes of the images (config.data.crop_area{mixed})"
    if fault == "teacher" and kind == "students":
        return (
            "the teacher is broken; tune it again in another --workdir, with a lower "
            "config.teacher.learning_rate or config.teacher.rho, or leave this step out of "
            "config.teacher.steps"
        )
    if fault == "teacher":
        return "a teacher whose features are read is broken; leave it out"
    if kind == "teachers":
        return (
            "the weights of config.teacher.init hold NaN or infinity; fetch them again, or set "
            "config.teacher.init to others"
        )
    return "the model begins with parameters that are not finite; mend its initialisers"
