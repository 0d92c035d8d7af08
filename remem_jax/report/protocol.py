"""Where a run's settings are not those that stand in the paper's text.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 6 and Table 6. What the text
does not fix (batch sizes, warm-up, augmentation) is not judged here; configs/remem.py marks it as
our choice.
"""

from collections.abc import Mapping
from typing import Any

# One of these; where there are several, the paper searches over them.
ONE_OF: dict[str, tuple[Any, ...]] = {
    "data.image_size": (224,),
    "teacher.variant": ("Ti/16", "S/16", "B/16", "L/16"),
    "teacher.tuning": ("full", "lora", "adapter_houlsby", "adapter_pfeiffer"),
    "teacher.weight_decay": (0.0,),
    "teacher.learning_rate": (0.005, 0.007, 0.01, 0.03, 0.05, 0.07, 0.1, 0.3, 0.5),
    "teacher.rho": (0.5, 0.05, 0.005),
    "teacher.mlp_weight": (0.8, 0.9),
    "teacher.attention_weight": (1.0, 0.8, 0.9),
    "student.steps": (20_000,),
    "teacher.label_smoothing": (0.0,),
    "teacher.mcmi": (0.0,),
    "student.weight_decay": (1e-4,),
    "student.flatten": (1.0,),
    "student.hard_labels": (True,),
}
# All of these.
# Where images are mixed (patient distillation), and with DIST, in place of these and those.
PATIENT: dict[str, tuple[Any, ...]] = {"student.steps": (200_000,), "student.mixup": (0.8,)}
DIST: dict[str, tuple[Any, ...]] = {
    "student.learning_rates": (0.5, 0.7, 1.0),
    "student.weights": (1.0,),  # beta and gamma
    "student.temperatures": (),  # Not in the text.
}
ALL_OF: dict[str, tuple[Any, ...]] = {
    "teacher.steps": (500, 700, 1000, 3000, 5000, 7000, 10_000),
    "student.learning_rates": (0.05, 0.1, 0.5),
    "student.temperatures": (1.0, 2.0, 4.0),
    "student.weights": (0.1, 0.5, 0.9),
}


def deviations(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each setting of a run that is not the paper's.

    Args:
        config: The settings of a ReMem run, nested; what is not there is not judged.
    """
    found, student = [], config.get("student", {})
    one_of = ONE_OF | (PATIENT if student.get("mixup", 0) > 0 else {})
    all_of = ALL_OF | (DIST if list(student.get("losses", ())) == ["dist"] else {})
    for name, values in (one_of | all_of).items():
        group, _, setting = name.partition(".")
        value = config.get(group, {}).get(setting)
        if value is None or not values:
            continue
        same = value in values if name in one_of else sorted(value) == sorted(values)
        if not same:
            word = "one of " if name in one_of and len(values) > 1 else ""
            found.append(f"{name} is {_listed(value)}; the paper has {word}{_listed(values)}.")
    return found


def _listed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_listed(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
