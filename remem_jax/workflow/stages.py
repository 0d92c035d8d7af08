"""Titles for users of the stages of a run, and the plan of a run.

The name of a stage is that of its folder, such as teachers/remem or students/remem/step_300.
"""

import re
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from remem_jax import display
from remem_jax.methods import METHODS

REFIT = "refit"  # Stages on train and validation together, in the folder of their method.
_KINDS = {"teachers": "teacher", "students": "students", "information": "information"}
_MODELS = {"teachers": "teacher", "students": "student"}
# Parts of a name after the method, and what they are in a title.
_PARTS = {
    r"step_(\d+)": ", step {0}",
    r"students_(\d+)_to_(\d+)": ", {0} to {1}",
    r"retry_(\d+)": ", retry {0}",
    r"rung": ", learning rates",
    r"longer_\d+": ", for longer",
    REFIT: ", on train and validation",
}


def title(stage: str) -> str:
    """Returns the title of a stage, such as "ReMem: students of step 300"."""
    kind, *names = stage.split("/")
    if kind not in _KINDS or not names or names[0] not in METHODS:
        return ": ".join(name.replace("_", " ") for name in (kind.capitalize(), *names))
    parts = "".join(map(_part, names[1:]))
    if parts.startswith(", step "):
        parts = f" of{parts[1:]}"
    return f"{METHODS[names[0]].title}: {_KINDS[kind]}{parts}"


def model(stage: str) -> str:
    """Returns the title of the models of a stage, which all stages of its method share."""
    kind, _, rest = stage.partition("/")
    method = rest.partition("/")[0]
    if kind not in _MODELS or method not in METHODS:
        return title(stage)
    return f"{METHODS[method].title}: {_MODELS[kind]}"


def _part(name: str) -> str:
    for pattern, text in _PARTS.items():
        if match := re.fullmatch(pattern, name):
            return text.format(*match.groups())
    return f", {name.replace('_', ' ')}"


def planned(config: ConfigDict, methods: Sequence[str]) -> list[display.Planned]:
    """Returns the stages of some methods, in the order of a run.

    A step of stages of one kind takes the same time: the teacher's model is the same in all
    methods, SAM takes two passes, and the grid of students is the same for all teachers.
    """
    return [stage for method in methods for stage in _of_method(config, method)]


def _of_method(config: ConfigDict, method: str) -> Iterator[display.Planned]:
    record, student_steps = METHODS[method], config.student.steps
    if not record.has_teacher:
        yield display.Planned(title(f"students/{method}"), student_steps, f"students/{method}")
        if config.data.refit:
            yield display.Planned(title(f"students/{method}/{REFIT}"), student_steps, REFIT)
        return
    rho = config.teacher.rho if record.rho is None else record.rho
    steps = config.teacher.steps
    yield display.Planned(title(f"teachers/{method}"), steps[-1], "SAM" if rho else "SGD")
    for step in steps:
        yield display.Planned(title(f"students/{method}/step_{step}"), student_steps, "students")
    if config.information.seeds:
        name = title(f"information/{method}")
        yield display.Planned(name, config.information.steps, "information")
    if config.data.refit:
        yield display.Planned(
            title(f"teachers/{method}/{REFIT}"), steps[-1], "SAM" if rho else "SGD"
        )
        yield display.Planned(title(f"students/{method}/{REFIT}"), student_steps, REFIT)
