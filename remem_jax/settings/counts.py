"""Checks batch sizes against the number of images in the training split."""

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.data import sources, splitting
from remem_jax.methods import METHODS
from remem_jax.settings import unused

_MAX_REPEATS = 2.0  # Mean occurrences of an image in a batch; more must be a mistake.


def check(config: ConfigDict, source: sources.Source, rules: splitting.Rules) -> None:
    """Raises `SettingError` for the first batch that is far larger than the training split.

    It is called before images are scanned, so unreadable images are still counted.

    Args:
        config: All settings.
        source: The data set.
        rules: How images are held out of train.
    """
    images = splitting.train_images(source, rules)
    for group in ("teacher", "student", "train"):
        name = f"{group}.batch_size"
        trains = group in config and not unused.is_idle(config, name)
        if not trains or (group == "teacher" and "analyses" in config):
            continue
        batch, most = config[group].batch_size, images
        if group == "student" and all(METHODS[method].has_teacher for method in config.methods):
            most = _with_unlabelled(source, images)
        checks.require(
            batch <= _MAX_REPEATS * most,
            f"config.{name} is {batch}, and {source.title} has {images} images to "
            f"train on, each of which would be in a batch several times: set it to at most "
            f"{most}.",
        )


def _with_unlabelled(source: sources.Source, images: int) -> int:
    """Returns the size of a batch that has all labelled images, and its share of unlabelled ones.

    Args:
        source: The data set.
        images: Number of labelled training images.
    """
    if source.unlabelled is None:
        return images
    return int(images / (1 - source.unlabelled.share(source.unlabelled.split.examples, images)))
