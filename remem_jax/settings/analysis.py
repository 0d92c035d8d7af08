"""Checks the settings of an analysis of checkpoints on the images of a data set."""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict

from remem_jax import checks, settings
from remem_jax.settings import information

ANALYSES = ("information", "expertness", "criticality")
SPLITS = ("train", "validation", "test")
TOKENS = ("cls", "all")


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of an analysis that cannot be used."""
    settings.check_common(config)
    checks.require(len(config.analyses) > 0, "config.analyses must name at least one analysis.")
    for name in config.analyses:
        checks.one_of("config.analyses", name, ANALYSES)
    complete = len(config.model_order) > 0 and sorted(config.model_order) == sorted(config.models)
    checks.require(
        complete,
        "config.model_order must name all of config.models, in the order of the report; got "
        f"{tuple(config.model_order)} for {', '.join(sorted(config.models)) or 'none'}.",
    )
    titles = [config.models[name].title for name in config.model_order]
    checks.require(
        len(set(titles)) == len(titles),
        "config.models: titles must be distinct, since reports name models by them; got "
        f"{', '.join(titles)}.",
    )
    for name, model in of_models(config):
        try:
            settings.check_teacher(model.teacher, model.data.image_size)
            settings.check_init(model.teacher)
        except checks.SettingError as error:
            raise checks.SettingError(f"config.models.{name}: {error}") from error
        checks.require(
            model.teacher.tuning == "full",
            f"config.models.{name}: an analysis does not train checkpoints; set "
            f"config.teacher.tuning to full, got {model.teacher.tuning!r}.",
        )
    _check_images(config.images)
    if "information" in config.analyses:
        for variant in of_sensitivity(config):
            information.check(variant.information, config.data.image_size)
    if "expertness" in config.analyses:
        _check_expertness(config.expertness)
    if "criticality" in config.analyses:
        _check_criticality(config.criticality)


def of_models(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the name of each model, and the config with the model's settings in `teacher`."""
    for name in config.model_order:
        changed = config.copy_and_resolve_references()
        with changed.ignore_type():
            for setting, value in config.models[name].teacher.items():
                checks.one_of(f"config.models.{name}.teacher", setting, changed.teacher)
                changed.teacher[setting] = value
        yield name, changed


def of_sensitivity(config: ConfigDict) -> Iterator[ConfigDict]:
    """Yields the unchanged config, then one for each other combination in `config.sensitivity`."""
    axes, base = config.sensitivity, config.information
    default = (base.align_corners, base.learning_rate, base.betas[1])
    compared = itertools.product(
        axes.align_corners or default[:1],
        axes.learning_rates or default[1:2],
        axes.second_betas or default[2:],
    )
    for corners, rate, beta in dict.fromkeys((default, *compared)):
        variant = config.copy_and_resolve_references()
        variant.information.align_corners = corners
        variant.information.learning_rate = rate
        variant.information.betas = (base.betas[0], beta)
        yield variant


def _check_images(images: ConfigDict) -> None:
    checks.require(len(images.splits) > 0, "config.images.splits must name at least one split.")
    for split in images.splits:
        checks.one_of("config.images.splits", split, SPLITS)
    checks.at_least("config.images.examples", images.examples, 0)
    checks.at_least("config.images.batch_size", images.batch_size, 1)


def _check_expertness(settings: ConfigDict) -> None:
    prefix = "config.expertness"
    checks.require(
        settings.clusters == 0 or settings.clusters >= 2,
        f"{prefix}.clusters must be 0, for the number of classes, or at least 2; got "
        f"{settings.clusters}.",
    )
    for name in ("seeds", "null_seeds"):
        checks.require(len(settings[name]) > 0, f"{prefix}.{name} must hold at least one value.")
    checks.at_least(f"{prefix}.threshold", settings.threshold, 0)


def _check_criticality(settings: ConfigDict) -> None:
    prefix = "config.criticality"
    checks.require(len(settings.layers) > 0, f"{prefix}.layers must hold at least one block.")
    checks.require(
        len(settings.examples) == len(settings.layers),
        f"{prefix}.examples must have a number for each of the {len(settings.layers)} of "
        f"{prefix}.layers, 0 for all images; got {tuple(settings.examples)}.",
    )
    for examples in settings.examples:
        checks.at_least(f"{prefix}.examples", examples, 0)
    for name in ("batch_size", "chunk", "neurons", "images"):
        checks.at_least(f"{prefix}.{name}", settings[name], 1)
    images = settings.visualization
    checks.at_least(f"{prefix}.visualization.steps", images.steps, 0)
    if images.steps:
        checks.require(
            len(images.seeds) > 0, f"{prefix}.visualization.seeds must hold at least one value."
        )
        checks.above(f"{prefix}.visualization.learning_rate", images.learning_rate, 0)
        checks.at_least(f"{prefix}.visualization.jitter", images.jitter, 0)
        checks.at_least(f"{prefix}.visualization.batch_size", images.batch_size, 1)
