"""Checks of settings against the number of images that there are."""

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.data import sources
from remem_jax.settings import unused

_MOST = 2.0  # Times that an image stands in one batch on average; more is a mistake.


def check(config: ConfigDict, source: sources.Source) -> None:
    """Raises `SettingError` for the first batch that is far larger than the training split.

    Called before images are looked at: which of them cannot be read is not known yet.
    """
    images = training(source, config.data.validation, seed=config.seed)
    for group in ("teacher", "student", "train"):
        name = f"{group}.batch_size"
        trains = group in config and not unused.is_idle(config, name)
        if not trains or (group == "teacher" and "analyses" in config):
            continue
        batch = config[group].batch_size
        checks.require(
            batch <= _MOST * images,
            f"config.{name} is {batch}, and {source.title} has {images} images to "
            f"train on, each of which would be in a batch several times: set it to at most "
            f"{images}.",
        )


def training(source: sources.Source, validation: float, *, seed: int) -> int:
    """How many images of a source are trained on, if all can be read.

    Args:
        source: Before its images are looked at.
        validation: Share that is held out, where it has no validation split of its own.
        seed: Decides which.
    """
    train = source.splits[sources.TRAIN]
    if sources.VALIDATION in source.splits:
        return train.examples
    if train.labels is None:
        return train.examples - round(validation * train.examples)
    return train.examples - len(sources.stratified(train.labels, validation, seed=seed))
