"""Lists where a run's settings differ from the paper's.

`PAPER` and `NAMED` have every setting of a run, except those that configs/settings.py marks [free].

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 6 and Table 6.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from remem_jax import models
from remem_jax.data import bundled, registry
from remem_jax.data.tfds import named
from remem_jax.methods import METHODS
from remem_jax.report import effects
from remem_jax.train import student_losses
from remem_jax.weights import catalog


class Paper(NamedTuple):
    """The paper's values of a setting.

    Attributes:
        values: The paper's values; a setting that has any of them does not differ.
        every: Whether the paper searches over all of them, so that the setting must list them all.
        lost: Whether the value is our choice, because the paper's text does not state it.
    """

    values: tuple[Any, ...]
    every: bool = False
    lost: bool = False


def _choice(value: Any) -> Paper:
    return Paper((value,), lost=True)


PAPER: Mapping[str, Paper] = {
    # The results have one of the dtypes in place of "auto".
    "compute_dtype": Paper(("auto", "float32", "bfloat16"), lost=True),
    "data.image_size": Paper((224,)),
    "data.crop_area": _choice((0.05, 1.0)),
    "data.evaluation_crop": Paper((0.0,)),
    "data.flip": _choice("auto"),
    "data.metric": Paper(("auto",)),
    "data.balanced_sampling": Paper((0.0,)),
    "data.augment": Paper(("none",)),
    "data.augment_operations": Paper((2,)),
    "data.augment_magnitude": Paper((9,)),
    "data.color_jitter": Paper((0.0,)),
    "data.random_erasing": Paper((0.0,)),
    "data.validation": _choice(0.1),
    "data.official_validation": _choice(True),
    "teacher.model": Paper(("vit",)),
    "teacher.variant": Paper(("Ti/16", "S/16", "B/16", "L/16")),
    "teacher.steps": Paper((500, 700, 1000, 3000, 5000, 7000, 10_000), every=True),
    "teacher.batch_size": _choice(512),
    "teacher.learning_rate": Paper((0.005, 0.007, 0.01, 0.03, 0.05, 0.07, 0.1, 0.3, 0.5)),
    "teacher.warmup_steps": _choice(500),
    "teacher.optimizer": Paper(("sgd",)),
    "teacher.momentum": _choice(0.9),
    "teacher.nesterov": _choice(False),
    "teacher.betas": _choice((0.9, 0.999)),
    "teacher.epsilon": _choice(1e-8),
    "teacher.weight_decay": Paper((0.0,)),
    "teacher.layer_decay": Paper((1.0,)),
    "teacher.body_rate": Paper((1.0,)),
    "teacher.clip_norm": _choice(1.0),
    "teacher.dropout": _choice(0.0),
    "teacher.drop_path": Paper((0.0,)),
    "teacher.ema": Paper((0.0,)),
    "teacher.ema_warmup": Paper((False,)),
    "teacher.mixup": Paper((0.0,)),
    "teacher.cutmix": Paper((0.0,)),
    "teacher.label_smoothing": Paper((0.0,)),
    "teacher.class_balance": Paper((0.0,)),
    "teacher.mcmi": Paper((0.0,)),
    "teacher.rho": Paper((0.5, 0.05, 0.005)),
    "teacher.ascent_examples": _choice(0),
    "teacher.mlp_weight": Paper((0.8, 0.9)),
    "teacher.attention_weight": Paper((1.0, 0.8, 0.9)),
    "teacher.pruned_mlp": Paper((0,)),
    "teacher.pruned_attention": Paper((0,)),
    "teacher.residual": Paper(("two_minus",)),
    "teacher.tuning": Paper(("full", "lora", "adapter_houlsby", "adapter_pfeiffer")),
    "teacher.lora.targets": Paper((("query", "value"),)),
    "teacher.lora.rank": Paper((32,)),
    "teacher.lora.scale": Paper((32.0,)),
    "teacher.adapter.reduction": Paper((16,)),
    "teacher.probe_steps": Paper((0,)),
    "teacher.gelu": _choice(""),
    "teacher.pool": _choice(""),
    "teacher.mean": _choice(()),
    "teacher.std": _choice(()),
    "teacher.position_resize": _choice("vit_jax"),
    "student.stem": Paper(("imagenet",)),
    "student.mean": _choice(()),
    "student.std": _choice(()),
    "student.hard_labels": Paper((True,)),
    "student.cutmix": Paper((0.0,)),
    "student.class_balance": Paper((0.0,)),
    "student.steps": Paper((20_000,)),
    "student.batch_size": _choice(512),
    "student.learning_rates": Paper((0.05, 0.1, 0.5), every=True),
    "student.scratch_learning_rates": Paper(((), (0.05, 0.1, 0.5)), lost=True),
    "student.pretrained_learning_rates": _choice(()),
    "student.temperatures": Paper((1.0, 2.0, 4.0), every=True),
    "student.weights": Paper((0.1, 0.5, 0.9), every=True),
    "student.flatten": Paper((1.0,)),
    "student.clip_norm": Paper((0.0,)),
    "student.warmup_steps": _choice(500),
    "student.optimizer": Paper(("sgd",)),
    "student.momentum": _choice(0.9),
    "student.nesterov": _choice(True),
    "student.betas": _choice((0.9, 0.999)),
    "student.epsilon": _choice(1e-8),
    "student.weight_decay": Paper((1e-4,)),
    "student.layer_decay": Paper((1.0,)),
    "student.body_rate": Paper((1.0,)),
    "student.dropout": Paper((0.0,)),
    "student.drop_path": Paper((0.0,)),
    "student.label_smoothing": Paper((0.0,)),
    "student.ema": Paper((0.0,)),
    "student.ema_warmup": Paper((False,)),
    "information.steps": _choice(2000),
    "information.batch_size": _choice(64),
    "information.learning_rate": _choice(1e-3),
    "information.betas": _choice((0.9, 0.999)),
    "information.weight_decay": Paper((1e-4,)),
    "information.epsilon": Paper((1e-8,)),
    "information.align_corners": _choice(True),
}
# Replace the values above if images are mixed by mixup (patient distillation).
PATIENT: Mapping[str, Paper] = {"student.steps": Paper((200_000,))}
# The grid of DIST; that of KD is above.
DIST: Mapping[str, Paper] = {
    "student.learning_rates": Paper((0.5, 0.7, 1.0), every=True),
    "student.temperatures": _choice((1.0,)),
    "student.weights": Paper((1.0,), every=True),  # beta and gamma
}
LOSSES = tuple(loss.name for loss in student_losses.LOSSES.values() if loss.in_paper)
MIXED = 0.8  # Strength of mixup in patient distillation, which uses KD.
_AUGREG = [f"augreg:{variant}" for variant in PAPER["teacher.variant"].values]
WEIGHTS = tuple(
    dict.fromkeys((*_AUGREG, *catalog.TABLE_4.values()))
)  # The paper's initial weights of teachers.
# Settings for which `_named` writes the sentences.
NAMED = (
    *("methods", "data.name", "data.unlabelled", "teacher.init"),
    *("student.model", "student.init", "student.losses", "student.mixup"),
)


def deviations(config: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each setting of a run that differs from the paper.

    Args:
        config: The settings of a ReMem run, nested. Missing settings are skipped, and so are those
            without an effect for the methods, the tuning and the losses of the run.
    """
    given = {name: value for name, value in _leaves(config) if effects.has_effect(name, config)}
    losses = given.get("student.losses", ["kd"])
    rules = {**PAPER, **(PATIENT if given.get("student.mixup", 0) > 0 else {})}
    if "kd" not in losses:
        rules = {name: rule for name, rule in rules.items() if name not in DIST}
    if given.get("teacher.ascent_examples") == given.get("teacher.batch_size"):
        given |= {"teacher.ascent_examples": 0}  # Both are the whole batch.
    sentences = list(_named(given))
    for name, rule in rules.items():
        sentences += _sentence(name, given, rule, "kd" if name in DIST and len(losses) > 1 else "")
    if "dist" in losses:
        for name, rule in DIST.items():
            sentences += _sentence(name, given, rule, "dist" if len(losses) > 1 else "")
    return sentences


def of_one_run(config: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on the teacher's settings that the paper searches and one run does not.

    There is none for a run without a teacher.

    Args:
        config: As for `deviations`.
    """
    names = {"teacher.rho": "rho", "teacher.mlp_weight": "alpha"}
    if not effects.has_effect("teacher.learning_rate", config):
        return []
    searched = [title for name, title in names.items() if effects.has_effect(name, config)]
    listed = " and ".join([*([", ".join(searched)] if searched else []), "learning rate"])
    return [
        f"One value of the teacher's {listed} is tried per run; the paper searches over several."
    ]


def of_search(axes: Mapping[str, Iterable[Any]]) -> list[str]:
    """Returns a sentence for each setting that a study searches and the paper does not.

    The paper's Table 6 has the axes of teachers. For the lists that make up the grid of students,
    `deviations` has sentences.

    Args:
        axes: The values of each setting that is searched, by its name.
    """
    table_6 = ("learning_rate", "rho", "mlp_weight", "attention_weight")
    papers = {f"teacher.{name}" for name in table_6}
    papers |= {name for name, rule in PAPER.items() if rule.every}
    return [
        f"The study searches {name} over {', '.join(map(_in_brackets, values))}; the paper's grid "
        "does not have it."
        for name, values in axes.items()
        if name not in papers
    ]


def _in_brackets(value: Any) -> str:
    return f"({_listed(value)})" if isinstance(value, list | tuple) else _listed(value)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _sentence(name: str, given: Mapping[str, Any], rule: Paper, loss: str) -> list[str]:
    value = _plain(given.get(name))
    values = [_plain(item) for item in rule.values]
    is_same = (
        sorted(value) == sorted(values) if rule.every and value is not None else value in values
    )
    if value is None or is_same:
        return []
    of_loss = f"with the loss {loss} " if loss else ""
    if rule.lost:
        in_paper = f"{of_loss}the paper's text does not say, and our choice is"
    else:
        in_paper = (
            f"{of_loss}the paper has{' one of' if len(values) > 1 and not rule.every else ''}"
        )
    return [f"{name} is {_listed(value)}; {in_paper} {_listed(rule.values)}."]


def _plain(value: Any) -> Any:
    """Returns a value with lists in place of tuples, as in JSON."""
    return list(value) if isinstance(value, list | tuple) else value


def _named(given: Mapping[str, Any]) -> Iterator[str]:
    """Yields the sentences on the settings of `NAMED`."""
    yield from _methods(given.get("methods", ()))
    yield from _data(given.get("data.name"))
    if given.get("data.unlabelled"):
        yield "Students also learn from unlabelled images; the paper's do not."
    yield from _weights(given.get("teacher.init"))
    yield from _student(given.get("student.model"))
    if given.get("student.init"):
        yield (
            f"Students start from the pretrained weights {given['student.init']}, except those "
            "from scratch; the paper's start from random weights."
        )
    losses = given.get("student.losses", LOSSES[:1])
    others = [loss for loss in losses if loss not in LOSSES]
    if others:
        yield f"student.losses has {', '.join(others)}; the paper has {' and '.join(LOSSES)}."
    mixup = given.get("student.mixup", 0)
    if mixup > 0 and (mixup != MIXED or list(losses) != ["kd"]):
        yield (
            f"student.mixup is {mixup} with the losses {', '.join(losses)}; the paper has 0.0, or "
            f"{MIXED} with kd alone."
        )


def _student(model: str | None) -> Iterator[str]:
    if model is None:
        return
    student = models.STUDENTS.get(model)
    in_paper = student.paper if student else ""
    if in_paper == "efficientnet_v2":
        yield (
            f"student.model is {model}; the paper has an EfficientNetV2, and its text does not say "
            "of which size."
        )
    elif not in_paper:
        known = ", ".join(name for name, record in models.STUDENTS.items() if record.paper == name)
        yield f"student.model is {model}; the paper has {known} and an EfficientNetV2."


def _methods(names: Iterable[str]) -> Iterator[str]:
    others = [name for name in names if name in METHODS and not METHODS[name].in_paper]
    if others:
        known = ", ".join(name for name, method in METHODS.items() if method.in_paper)
        yield f"methods has {', '.join(others)}; the paper has {known}."


def _data(name: str | None) -> Iterator[str]:
    if name == "digits":
        yield "The images are scikit-learn's digits of 8 x 8 pixels, which the paper does not use."
    elif name == bundled.EUROSAT_PART:
        yield "The images are the bundled part of EuroSAT; the paper has all of it."
    elif name is not None and named.is_name(name):
        yield f"The data set is {name}, not one of the paper's with the paper's splits."
    elif name is not None and name not in registry.RECORDS:
        yield "The images are the user's own, not one of the paper's data sets."


def _weights(init: str | None) -> Iterator[str]:
    if init is None or _is_papers(init):
        return
    if not init:
        yield "The teacher starts from random weights; the paper's are pretrained."
    else:
        yield f"teacher.init is {init}; the paper has one of {_listed(WEIGHTS)}."


def _is_papers(init: str) -> bool:
    """Returns whether weights are the paper's, under any name of the same file."""
    if not (init in catalog.PUBLISHED or init.startswith("augreg:")):
        return False
    return catalog.find(init).path in {catalog.find(name).path for name in WEIGHTS}


def _listed(value: Any) -> str:
    if isinstance(value, list | tuple) and not value:
        return "empty"
    if isinstance(value, list | tuple):
        return ", ".join(_listed(item) for item in value)
    if value == "":
        return "the checkpoint's"
    whole: bool = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else str(value)
