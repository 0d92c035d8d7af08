"""Checks a whole configuration before any work starts."""

import json
import math
import pathlib
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from remem_jax import checks, data, mesh, models, platforms, redaction
from remem_jax.data.custom import group_names, lists
from remem_jax.methods import ALONE, METHODS
from remem_jax.models import mlp, normalisation, resnet, tuning, vit
from remem_jax.settings import images, information, memory, optimisation, values
from remem_jax.settings.memory import division
from remem_jax.storage import identity, trackers
from remem_jax.train import student_losses
from remem_jax.weights import (
    matching,
    student_sources,
    teacher_sources,
)

# "" is the GELU or the pool that the checkpoint was trained with.
GELUS = ("", *mlp.GELUS)
POOLS = ("", *vit.POOLS)
# The value of `config.student.flatten` that calibrates each teacher on validation.
CALIBRATED = "calibrated"


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns all settings as nested JSON values, without secrets."""
    text = config.to_json_best_effort()
    settings = json.loads(text)
    return redaction.without_secrets(settings) if redaction.may_have_secrets(text) else settings


def located(config: ConfigDict) -> dict[str, Any]:
    """Returns the result of `plain` with absolute paths of the images."""
    settings = plain(config)
    images = settings["data"]
    for name in ("path", "dir", "root", "unlabelled"):
        if images[name]:
            images[name] = str(pathlib.Path(images[name]).expanduser().absolute())
    return settings


def deciding(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that decide a run's result; see `identity.deciding`."""
    return identity.deciding(plain(config))


def check_remem(config: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of a ReMem run that cannot be used."""
    check_common(config)
    checks.require(len(config.methods) > 0, "config.methods must name at least one method.")
    for method in config.methods:
        checks.one_of("config.methods", method, METHODS)
    checks.at_least("config.retries", config.retries, 0)
    check_teacher(config.teacher, config.data.image_size)
    if any(METHODS[method].has_teacher for method in config.methods):
        check_init(config.teacher)
    _check_student(config.student)
    _check_network(config.student, config.data.image_size)
    check_student_init(config)
    if config.information.seeds:
        information.check(config.information, config.data.image_size)
    checks.at_least("config.flatness.radius", config.flatness.radius, 0)
    checks.at_least("config.flatness.examples", config.flatness.examples, 0)
    checks.at_least("config.flatness.batch_size", config.flatness.batch_size, 1)


def check_mesh(config: ConfigDict, on: Mesh) -> None:
    """Raises `SettingError` for the first batch that cannot be divided among the devices."""
    for name in _batches(config):
        mesh.check_batch_size(f"config.{name}.batch_size", config[name].batch_size, on)
    if "teacher" in config and "analyses" not in config:
        division(config.teacher, on)


def _batches(config: ConfigDict) -> list[str]:
    """Returns the groups of settings that have a batch size in a workflow."""
    if "analyses" in config:  # No teacher is trained.
        return [
            "images",
            *(name for name in ("information", "criticality") if name in config.analyses),
        ]
    trained = [name for name in ("teacher", "student", "train") if name in config]
    measured = "information" in config and config.information.seeds
    return [*trained, "information"] if measured else trained


def check_common(config: ConfigDict) -> None:
    """Raises for the first setting shared by all workflows that cannot be used."""
    values.check(config)
    settings = config.data
    checks.at_least("config.log_every", config.log_every, 1)
    checks.at_least("config.save_every", config.save_every, 1)
    checks.at_least("config.keep_checkpoints", config.keep_checkpoints, 2)
    trackers.check("config.track", config.track)
    dtypes = (platforms.AUTO, *vit.DTYPES)
    checks.one_of("config.compute_dtype", config.compute_dtype, dtypes)
    images.check_name("config.data.name", settings.name)
    _check_path(settings)
    checks.at_least("config.data.image_size", settings.image_size, 1)
    checks.at_least("config.data.stored_size", settings.stored_size, 1)
    images.check(settings)
    _check_held_out(config)
    checks.at_least("config.data.corrupt_limit", settings.corrupt_limit, 0)
    checks.above("config.data.resident_gib", settings.resident_gib, 0)
    checks.one_of("config.data.input", settings.input, data.INPUTS)
    checks.at_least("config.data.threads", settings.threads, 0)
    checks.at_least("config.data.workers", settings.workers, 0)


def _check_held_out(config: ConfigDict) -> None:
    """Raises for the first setting of `config.data` on held-out images that cannot be used."""
    settings = config.data
    checks.within("config.data.validation", settings.validation, 0, 1 - 1e-9)
    for name in ("official_validation", "group_duplicates", "refit"):
        checks.one_of(f"config.data.{name}", settings[name], (True, False))
    if settings.group_pattern:
        group_names.by_pattern(settings.group_pattern)
    if settings.validation:
        return
    checks.require(
        bool(config.get("choose_on_test")),
        "config.data.validation is 0, so that only the test split could select, which makes "
        "results optimistic: set config.choose_on_test to True if you want that, or "
        "config.data.validation to a fraction such as 0.1.",
    )
    checks.require(
        not settings.refit,
        "config.data.refit trains on train and validation together, but config.data.validation is "
        "0, so that train has all images already: leave one of them out.",
    )
    checks.require(
        "student" not in config or config.student.flatten != CALIBRATED,
        f"config.student.flatten is {CALIBRATED}, which needs validation images, but "
        "config.data.validation is 0: leave one of them out.",
    )
    checks.require(
        "information" not in config or not config.information.seeds,
        "config.information.seeds needs validation images, which decoders are evaluated on, but "
        "config.data.validation is 0: leave one of them out.",
    )


def _check_path(settings: ConfigDict) -> None:
    """Raises if a path is given for a data set that does not use one."""
    path = settings.path
    kinds = {".npz": "arrays", **dict.fromkeys(lists.LISTS, "list")}
    checks.require(
        settings.name in data.CUSTOM or not path,
        f"config.data.path is {path!r}, but config.data.name is {settings.name}, which does not "
        "use a path: set config.data.name="
        f"{kinds.get(pathlib.Path(path).suffix, 'folder')} to use this path.",
    )


def check_teacher(teacher: ConfigDict, image_size: int) -> None:
    """Raises for the first setting of `config.teacher`, except `init`, that cannot be used."""
    checks.one_of("config.teacher.model", teacher.model, models.TEACHERS)
    if teacher.variant:
        checks.one_of("config.teacher.variant", teacher.variant, vit.VARIANTS)
        size = vit.VARIANTS[teacher.variant]
        check_patches(f"ViT-{teacher.variant}", size, image_size)
        for name in ("pruned_mlp", "pruned_attention"):
            checks.within(f"config.teacher.{name}", teacher[name], 0, size.depth)
    checks.one_of("config.teacher.gelu", teacher.gelu, GELUS)
    checks.one_of("config.teacher.pool", teacher.pool, POOLS)
    normalisation.given("config.teacher", teacher.mean, teacher.std)
    checks.one_of("config.teacher.position_resize", teacher.position_resize, matching.RESIZES)
    tuning_of(teacher)
    checks.one_of("config.teacher.residual", teacher.residual, vit.RESIDUALS)
    checks.inside("config.teacher.mlp_weight", teacher.mlp_weight, 0, 2)
    checks.inside("config.teacher.attention_weight", teacher.attention_weight, 0, 2)
    checks.at_least("config.teacher.rho", teacher.rho, 0)
    checks.within("config.teacher.dropout", teacher.dropout, 0, 0.99)
    checks.at_least("config.teacher.mixup", teacher.mixup, 0)
    checks.at_least("config.teacher.cutmix", teacher.cutmix, 0)
    checks.within("config.teacher.label_smoothing", teacher.label_smoothing, 0, 1)
    checks.inside("config.teacher.class_balance", teacher.class_balance, -1e-9, 1)
    checks.at_least("config.teacher.mcmi", teacher.mcmi, 0)
    whole = teacher.accumulate in (0, 1) and teacher.ascent_examples == 0
    checks.require(
        whole or not teacher.mcmi,
        "config.teacher.mcmi needs whole batches: set config.teacher.accumulate to 0 or 1 and "
        "config.teacher.ascent_examples to 0.",
    )
    checks.increasing("config.teacher.steps", teacher.steps)
    checks.at_least("config.teacher.steps", teacher.steps[0], 1)
    checks.above("config.teacher.learning_rate", teacher.learning_rate, 0)
    optimisation.check_teacher(teacher)
    checks.at_least("config.teacher.ascent_examples", teacher.ascent_examples, -1)
    memory.check(teacher)


def check_init(teacher: ConfigDict) -> None:
    """Raises unless the weights exist or are published; published ones are downloaded later."""
    teacher_sources.check(teacher.init, mirror=teacher.mirror)
    teacher_sources.require_variant(teacher.init, teacher.variant)


def check_student_init(config: ConfigDict) -> None:
    """Raises unless the students' initial weights exist, where a method needs them."""
    needing = [name for name in config.methods if name == ALONE]
    checks.require(
        bool(config.student.init) or not needing,
        "config.methods has alone, which trains the student from its pretrained weights, and "
        "config.student.init is empty: set it, or replace alone by scratch.",
    )
    if config.student.init:
        student_sources.check(config.student.init, config.student.model)
    normalisation.given("config.student", config.student.mean, config.student.std)


def _check_student(student: ConfigDict) -> None:
    checks.one_of("config.student.model", student.model, models.STUDENTS)
    checks.one_of("config.student.stem", student.stem, resnet.STEMS)
    checks.at_least("config.student.group", student.group, 0)
    _check_flatten(student.flatten)
    for loss in student.losses:
        checks.one_of("config.student.losses", loss, student_losses.LOSSES)
    checks.one_of("config.student.hard_labels", student.hard_labels, (True, False))
    _check_losses(student)
    features = [loss for loss in student.losses if student_losses.LOSSES[loss].features]
    checks.require(
        not (features and student.store_outputs),
        "config.student.store_outputs keeps logits alone, the features of a batch are too large: "
        f"set it to False, or take {', '.join(features)} out of config.student.losses.",
    )
    checks.at_least("config.student.mixup", student.mixup, 0)
    checks.at_least("config.student.cutmix", student.cutmix, 0)
    checks.inside("config.student.class_balance", student.class_balance, -1e-9, 1)
    checks.at_least("config.student.steps", student.steps, 1)
    checks.within("config.student.evaluations", student.evaluations, 1, student.steps)
    optimisation.check_student(student)
    for name in ("losses", "seeds", "learning_rates", "temperatures", "weights"):
        values = student[name]
        checks.require(len(values) > 0, f"config.student.{name} must hold at least one value.")
    checks.require(
        student.group % len(student.seeds) == 0,
        f"config.student.group must be a multiple of the {len(student.seeds)} of "
        f"config.student.seeds, which are trained together; got {student.group}.",
    )
    rates = ("learning_rates", "scratch_learning_rates", "pretrained_learning_rates")
    for name in (*rates, "temperatures", "weights"):
        for value in student[name]:
            if name == "weights":
                checks.within(f"config.student.{name}", value, 0, 1)
            else:
                checks.above(f"config.student.{name}", value, 0)


def _check_flatten(flatten: Any) -> None:
    """Raises unless the divisor of the teacher's logits is a positive number, or calibrates."""
    is_number = isinstance(flatten, int | float) and not isinstance(flatten, bool)
    checks.require(
        flatten == CALIBRATED or (is_number and math.isfinite(flatten) and flatten > 0),
        f"config.student.flatten must be a number above 0, or {CALIBRATED!r}; got {flatten!r}.",
    )


def _check_network(student: ConfigDict, image_size: int) -> None:
    """Raises if the student's network lacks the stem, or does not take the image size."""
    network = models.STUDENTS[student.model]
    checks.require(
        student.stem in network.stems,
        f"config.student.stem is {student.stem}, which {student.model} does not have: set it to "
        f"{' or '.join(network.stems)}.",
    )
    checks.require(
        image_size % network.patch == 0,
        f"config.data.image_size must be a multiple of {network.patch}, the patch size of the "
        f"student {student.model}; got {image_size}.",
    )


def _check_losses(student: ConfigDict) -> None:
    """Raises if a loss lacks labels, or if at one of the weights the head would learn nothing."""
    for loss in student.losses:
        checks.require(
            student.hard_labels or student_losses.LOSSES[loss].without_labels is not None,
            f"config.student.hard_labels is False, but the loss {loss} needs labels: set it to "
            "True, or remove the loss from config.student.losses.",
        )
        excluded = student_losses.LOSSES[loss].form(student.hard_labels).excluded_weight
        checks.require(
            excluded not in student.weights,
            f"config.student.weights must not contain {excluded} for the loss {loss} with "
            f"config.student.hard_labels={student.hard_labels}: at this weight the student's head "
            f"would learn nothing; got {tuple(student.weights)}.",
        )


def check_patches(model: str, size: vit.Size, image_size: int) -> None:
    """Raises unless the image size is a multiple of a model's patch size."""
    checks.require(
        image_size % size.pixels == 0,
        f"config.data.image_size must be a multiple of {size.pixels}, the patch size of {model}; "
        f"got {image_size}.",
    )


def divisor(student: ConfigDict) -> float:
    """Returns the number that `config.student.flatten` divides the teacher's logits by.

    1 if it calibrates the teacher, whose temperature is known after its training.
    """
    return 1.0 if student.flatten == CALIBRATED else student.flatten


def tuning_of(teacher: ConfigDict) -> tuning.Tuning:
    """Returns how `config.teacher` trains a network: in full, or by LoRA, adapters or a probe.

    Raises:
        SettingError: If the method, or an option of it, is unknown or out of range.
    """
    checks.one_of("config.teacher.tuning", teacher.tuning, tuning.METHODS)
    group = teacher.tuning.partition("_")[0]  # "adapter_houlsby" has the group `adapter`.
    options: dict[str, Any] = dict(teacher[group]) if group in ("lora", "adapter") else {}
    if "targets" in options:
        options["targets"] = tuple(options["targets"])
    try:
        return tuning.make(teacher.tuning, **options)
    except ValueError as error:
        raise checks.SettingError(f"config.teacher.{group}: {error}") from error
