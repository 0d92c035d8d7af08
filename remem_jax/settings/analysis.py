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
    for name, own in of_models(config):
        try:
            settings.check_teacher(own.teacher, own.data.image_size)
            settings.check_init(own.teacher)
        except checks.SettingError as error:
            raise checks.SettingError(f"config.models.{name}: {error}") from error
        checks.require(
            own.teacher.tuning == "full",
            f"config.models.{name}: an analysis does not train checkpoints; set "
            f"config.teacher.tuning to full, got {own.teacher.tuning!r}.",
        )
    _check_images(config.images)
    if "information" in config.analyses:
        for own in of_sensitivity(config):
            information.check(own.information, config.data.image_size)
    if "expertness" in config.analyses:
        _check_expertness(config.expertness)
    if "criticality" in config.analyses:
        _check_criticality(config.criticality)


def of_models(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the name of each model, and the config with its settings in `config.teacher`."""
    for name in config.model_order:
        own = config.copy_and_resolve_references()
        with own.ignore_type():
            for setting, value in config.models[name].teacher.items():
                checks.one_of(f"config.models.{name}.teacher", setting, own.teacher)
                own.teacher[setting] = value
        yield name, own


def of_sensitivity(config: ConfigDict) -> Iterator[ConfigDict]:
    """Yields the config with each compared setting of decoders, first with its own."""
    axes, base = config.sensitivity, config.information
    own = (base.align_corners, base.learning_rate, base.betas[1])
    compared = itertools.product(
        axes.align_corners or own[:1], axes.learning_rates or own[1:2], axes.second_betas or own[2:]
    )
    for corners, rate, beta in dict.fromkeys((own, *compared)):
        found = config.copy_and_resolve_references()
        found.information.align_corners = corners
        found.information.learning_rate = rate
        found.information.betas = (base.betas[0], beta)
        yield found


def _check_images(images: ConfigDict) -> None:
    checks.require(len(images.splits) > 0, "config.images.splits must name at least one split.")
    for split in images.splits:
        checks.one_of("config.images.splits", split, SPLITS)
    checks.at_least("config.images.examples", images.examples, 0)
    checks.at_least("config.images.batch_size", images.batch_size, 1)


def _check_expertness(own: ConfigDict) -> None:
    where = "config.expertness"
    checks.require(
        own.clusters == 0 or own.clusters >= 2,
        f"{where}.clusters must be 0, for the number of classes, or at least 2; got "
        f"{own.clusters}.",
    )
    for name in ("seeds", "null_seeds"):
        checks.require(len(own[name]) > 0, f"{where}.{name} must hold at least one value.")
    checks.at_least(f"{where}.threshold", own.threshold, 0)


def _check_criticality(own: ConfigDict) -> None:
    where = "config.criticality"
    checks.require(len(own.layers) > 0, f"{where}.layers must hold at least one block.")
    checks.require(
        len(own.examples) == len(own.layers),
        f"{where}.examples must have a number for each of the {len(own.layers)} of "
        f"{where}.layers, 0 for all images; got {tuple(own.examples)}.",
    )
    for examples in own.examples:
        checks.at_least(f"{where}.examples", examples, 0)
    for name in ("batch_size", "chunk", "neurons", "images"):
        checks.at_least(f"{where}.{name}", own[name], 1)
    shown = own.visualization
    checks.at_least(f"{where}.visualization.steps", shown.steps, 0)
    if shown.steps:
        checks.require(
            len(shown.seeds) > 0, f"{where}.visualization.seeds must hold at least one value."
        )
        checks.above(f"{where}.visualization.learning_rate", shown.learning_rate, 0)
        checks.at_least(f"{where}.visualization.jitter", shown.jitter, 0)
        checks.at_least(f"{where}.visualization.batch_size", shown.batch_size, 1)
