"""What to do where the loss is not finite any more, by what was not finite first."""

import contextlib
from collections.abc import Iterator

from remem_jax.train import loop

_RATES = {
    "teachers": "config.teacher.learning_rate, or config.teacher.rho",
    "students": "config.student.learning_rates",
    "pretrain": "config.train.learning_rate",
    "information": "config.information.learning_rate",
}
_MIXUP = {"teachers": "config.teacher.mixup", "students": "config.student.mixup"}


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
