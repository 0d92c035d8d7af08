"""The settings of a run with a time budget that follow from images, device and hours.

Each function fills in settings that the user left open, that is, at the empty value, 0 or -1 of
`configs/own.py`. docs/distil.md has the rules in words.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from remem_jax import models
from remem_jax.budget.facts import Facts
from remem_jax.budget.plan import STUDENTS, Limits, Stage
from remem_jax.data import sources
from remem_jax.methods import ALONE, SCRATCH
from remem_jax.models import vit
from remem_jax.settings import values
from remem_jax.train import flops
from remem_jax.weights import augreg, catalog, teacher_sources
from remem_jax.workflow.remem import student_grid

# Network and teachers of a run whose user names none. EfficientNet-Lite0 is smaller and faster than
# any of the teachers, and has no operation that phones lack.
STUDENT = "efficientnet_lite0"
# By size; the largest that the device trains in time. The first one needs no download.
TEACHERS = ("bundled:Ti/16", "augreg:S/16", "augreg:B/16")
# Sides of the images, in pixels, to the nearest multiple of the strides of student and teacher.
# Pretrained networks have seen 224; below 64 little is left of what they know.
SIDES = (64, 96, 128, 160, 192, 224)
# Passes over the training images that must be left for images to be enlarged. Pretrained networks
# lose more with small images than with few steps: docs/distil.md has what was measured.
EPOCHS = 3
_FEWEST_STEPS, _MOST_STEPS = 100, 2000  # The same in steps, for small and for large data sets.
# Passes beyond which a student, or a teacher, that starts pretrained gains little.
_LONGEST, _LONGEST_TEACHER = 60, 20
# Steps, and passes, below which a student or a teacher is too weak to show what a method gains.
_LEAST_STEPS, _LEAST_EPOCHS, _LEAST_OF_TEACHER = 60, 4, 5
# Fraction of the rate of a large matrix product that a training step reaches: with convolutions,
# and with the products of a ViT. Measured on two CPU cores (96 pixels, batches of 64); those of
# accelerators are from docs/measured.md.
_EFFICIENCY = {"cpu": (0.18, 0.55)}
_EFFICIENCY_OF_ACCELERATORS = (0.12, 0.4)
_STEPS_PER_EPOCH = 20  # Batches are larger only if an epoch still has as many steps.
_LARGEST_BATCH = {"cpu": 64}
_LARGEST_BATCH_OF_ACCELERATORS = 256
_OPEN = ("", 0, -1, ())  # Values of settings that are to be planned.
_WARMUP = 0.1  # Fraction of the steps.
_LOG_SECONDS, _SAVE_SECONDS = 5.0, 60.0  # Between two rows of metrics, and two checkpoints.
_HELD_OUT, _WANTED = (0.1, 0.2), 200  # Fractions of train; images that select reliably enough.


class Device(NamedTuple):
    """The device, as far as the rules depend on it.

    Attributes:
        platform: See `platforms.of`.
        rate: See `facts.device_rate`.
    """

    platform: str
    rate: float


def choose(config: ConfigDict, facts: Facts, device: Device) -> dict[str, Any]:
    """Returns the settings that the user left open, by name, such as "data.image_size".

    The numbers of steps are not yet among them: `plan.remaining` plans them once steps were timed.

    Args:
        config: Settings as of `configs/own.py`.
        facts: Facts about the images.
        device: The device.
    """
    chosen = config.copy_and_resolve_references()
    _choose_data(chosen, facts)
    _choose_student(chosen)
    _choose_batches(chosen, facts, device)
    _choose_size_and_teacher(chosen, facts, device, seconds=3600 * config.budget.hours)
    chosen.methods = tuple(config.methods) or _methods(chosen)
    before, after = dict(values.leaves(config)), dict(values.leaves(chosen))
    return {name: value for name, value in after.items() if value != before[name]}


def filled(config: ConfigDict, planned: Mapping[str, Any]) -> ConfigDict:
    """Returns the settings of a run: those of the user, and those planned where they are open.

    Args:
        config: Settings as of `configs/own.py`.
        planned: Return value of `choose`, with or without that of `steps`.
    """
    result, asked = config.copy_and_resolve_references(), dict(values.leaves(config))
    with result.unlocked():
        del result.budget
    result.workflow = "remem"
    provisional = {
        "log_every": 10,
        "save_every": 100,
        "teacher.position_resize": "vit_jax",  # As in the plans of earlier versions.
        **steps(config, 100, 100),
    }
    result.update_from_flattened_dict(
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in {**provisional, **planned}.items()
            if asked[name] in _OPEN
        }
    )
    return result


def steps(config: ConfigDict, student: int, teacher: int) -> dict[str, Any]:
    """Returns the settings of the numbers of steps, and of the warm-ups, that are open.

    Args:
        config: Settings as of `configs/own.py`.
        student: Steps of students.
        teacher: Steps of teachers.
    """
    planned = {
        "student.steps": student,
        "student.warmup_steps": round(_WARMUP * (config.student.steps or student)),
        "teacher.steps": (teacher,),
        "teacher.warmup_steps": round(_WARMUP * max(config.teacher.steps, default=teacher)),
    }
    asked = dict(values.leaves(config))
    return {name: value for name, value in planned.items() if asked[name] in _OPEN}


def set_stage(config: ConfigDict, stage: Stage, step_seconds: float, asked: ConfigDict) -> None:
    """Sets what a stage trains: its steps and learning rates, and when it logs and saves.

    Args:
        config: Settings of the run; changed.
        stage: The stage.
        step_seconds: Seconds of a step.
        asked: Settings as of `configs/own.py`.
    """
    group = "student." if stage.kind == STUDENTS else "teacher."
    planned = steps(asked, stage.steps, stage.steps)
    config.update_from_flattened_dict(
        {name: value for name, value in planned.items() if name.startswith(group)}
    )
    if stage.kind == STUDENTS:
        name = "pretrained_learning_rates" if config.student.init else "learning_rates"
        config.student[name] = tuple(stage.learning_rates)
    if not asked.log_every:
        config.log_every = min(max(round(_LOG_SECONDS / step_seconds), 1), 50)
    if not asked.save_every:
        config.save_every = max(round(_SAVE_SECONDS / step_seconds), 1)


def limits(config: ConfigDict, asked: ConfigDict, *, images: int, unlabelled: int) -> Limits:
    """Returns the limits of the plan.

    Args:
        config: Return value of `choose`.
        asked: The settings of the user.
        images: Number of labelled training images, without those held out.
        unlabelled: Number of images without labels.
    """
    epoch = (images + unlabelled) / config.student.batch_size
    rates = (
        student_grid.pretrained_rates(config.student)
        if config.student.init
        else config.student.learning_rates
    )
    most = max(round(_LONGEST * epoch), 1000)
    teacher_epoch = images / config.teacher.batch_size
    return Limits(
        methods=tuple(config.methods),
        fixed=bool(asked.methods),
        learning_rates=_from_middle(tuple(rates)),
        least_steps=min(max(_LEAST_STEPS, round(_LEAST_EPOCHS * epoch)), most),
        most_steps=most,
        least_teacher_steps=round(_LEAST_OF_TEACHER * teacher_epoch),
        most_teacher_steps=max(round(_LONGEST_TEACHER * teacher_epoch), 300),
        student_steps=asked.student.steps,
        teacher_steps=tuple(asked.teacher.steps),
    )


def _from_middle(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Orders learning rates so that the middle one is first, then its neighbours."""
    middle = (len(rates) - 1) / 2
    return tuple(sorted(rates, key=lambda rate: abs(rates.index(rate) - middle)))


def _methods(config: ConfigDict) -> tuple[str, ...]:
    """Returns the methods: the student without a teacher, with a fine-tuned one, with ReMem's."""
    return (ALONE if config.student.init else SCRATCH, "finetune", "remem")


def _choose_data(config: ConfigDict, facts: Facts) -> None:
    if not config.data.validation:
        least, most = _HELD_OUT
        images = facts.examples[sources.TRAIN]
        config.data.validation = round(min(max(_WANTED / images, least), most), 3)


def _choose_student(config: ConfigDict) -> None:
    """Chooses the network, and how it is trained: docs/quick_start.md has what was measured."""
    student = config.student
    student.model = student.model or STUDENT
    pretrained = bool(student.init)
    student.optimizer = student.optimizer or ("adamw" if pretrained else "sgd")
    if student.weight_decay < 0:
        student.weight_decay = 0.05 if student.optimizer == "adamw" else 1e-4
    student.learning_rates = tuple(student.learning_rates) or (0.05, 0.1)
    student.temperatures = tuple(student.temperatures) or (2.0,)
    student.weights = tuple(student.weights) or (0.9 if pretrained else 0.5,)


def _choose_batches(config: ConfigDict, facts: Facts, device: Device) -> None:
    images = facts.examples[sources.TRAIN] * (1 - config.data.validation)
    most = _LARGEST_BATCH.get(device.platform, _LARGEST_BATCH_OF_ACCELERATORS)
    # Students without a teacher have labelled images alone, which must fill a batch.
    with_unlabelled = min((images + facts.unlabelled) / _STEPS_PER_EPOCH, images)
    for group, wanted in (
        (config.teacher, images / _STEPS_PER_EPOCH),
        (config.student, with_unlabelled),
    ):
        fitting = 2 ** math.floor(math.log2(max(wanted, 1)))
        group.batch_size = group.batch_size or min(max(fitting, 8), most)


def _choose_size_and_teacher(
    config: ConfigDict, facts: Facts, device: Device, *, seconds: float
) -> None:
    """Chooses the largest images, and then the largest teacher, that leave enough steps."""
    named = config.teacher.init
    teachers = [named] if named else [TEACHERS[0]] if device.platform == "cpu" else TEACHERS
    patch = variant_of(teachers[-1]).pixels
    sides = [config.data.image_size] if config.data.image_size else _sides(config, facts, patch)
    epoch = (facts.examples[sources.TRAIN] + facts.unlabelled) / config.student.batch_size
    wanted = min(max(EPOCHS * epoch, _FEWEST_STEPS), _MOST_STEPS)
    chosen = (teachers[0], sides[0])
    for teacher in teachers:
        for side in sides:
            if _steps(config, teacher, side, device, seconds) >= wanted:
                chosen = (teacher, side)
    config.teacher.init, config.data.image_size = chosen
    if not config.teacher.position_resize:
        way = teacher_sources.position_resize(config.teacher.init)
        config.teacher.position_resize = way
    if not config.data.stored_size:
        # Room for crops: timm's usual 7/8 of the stored image.
        config.data.stored_size = min(max(facts.side, chosen[1]), round(chosen[1] * 8 / 7))


def _sides(config: ConfigDict, facts: Facts, patch: int) -> list[int]:
    """Returns the sides to choose from: no larger than the images, to the nearest choice.

    Args:
        config: Settings with the student.
        facts: Facts about the images.
        patch: Pixels of a patch of the teacher.
    """
    stride = math.lcm(models.STUDENTS[config.student.model].patch, patch)
    nearest = sorted({max(round(side / stride), 1) * stride for side in SIDES})
    return [side for side in nearest if side <= facts.side + 16] or nearest[:1]


def _steps(config: ConfigDict, teacher: str, side: int, device: Device, seconds: float) -> float:
    """Estimates the steps of each student, before any is timed, if there is one teacher."""
    convolutions, products = _EFFICIENCY.get(device.platform, _EFFICIENCY_OF_ACCELERATORS)
    student = (3 * student_operations(config.student.model, side) * config.student.batch_size) / (
        convolutions * device.rate
    )
    forward = vit_operations(variant_of(teacher), side) / (products * device.rate)
    outputs = forward * config.student.batch_size
    step = 3 * forward * config.teacher.batch_size
    # Two students, one with the teacher's outputs, and as many steps of the teacher. A tenth of the
    # time is for all else.
    return 0.9 * seconds / (2 * student + outputs + step)


def student_operations(name: str, side: int) -> float:
    """Returns about the floating-point operations of a student's forward pass for one image."""
    return _operations(name) * (side / SIDES[0]) ** 2


@functools.cache
def _operations(name: str) -> float:
    """Counts the operations of a student at the first of `SIDES`."""
    model = models.make(name, classes=100)
    image = jax.ShapeDtypeStruct((1, SIDES[0], SIDES[0], 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return flops.count(models.evaluation_apply(model), variables, image)


def vit_operations(size: vit.Size, side: int) -> float:
    """Returns about the floating-point operations of a ViT's forward pass for one image."""
    tokens = (side // size.pixels) ** 2 + 1
    weights = size.depth * (4 * size.features**2 + 2 * size.features * size.hidden)
    attention = size.depth * 2 * tokens * size.features
    return 2 * tokens * (weights + attention)


@functools.cache
def variant_of(init: str) -> vit.Size:
    """Returns the size of a teacher, from its name or its file."""
    if catalog.is_name(init) and init not in catalog.BUNDLED:
        return vit.VARIANTS[catalog.find(init).variant]
    source = teacher_sources.obtain(init)
    return augreg.read(source.path, config=source.described).size
