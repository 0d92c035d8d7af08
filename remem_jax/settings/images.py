"""Checks settings of `config.data`: its name, and how images are drawn and changed."""

from ml_collections import ConfigDict

from remem_jax import checks, data
from remem_jax.data.images import policies
from remem_jax.data.tfds import named


def check_name(setting: str, name: str) -> None:
    """Raises `SettingError` unless the value of a setting names a data set.

    Args:
        setting: Name of the setting, such as "config.data.name".
        name: Its value.
    """
    if named.is_name(name):
        named.check(setting, name)
    else:
        checks.one_of(setting, name, (*data.NAMES, named.FORM))


def check(settings: ConfigDict) -> None:
    """Raises `SettingError` for the first of these settings that cannot be used.

    Args:
        settings: `config.data`.
    """
    checks.within("config.data.evaluation_crop", settings.evaluation_crop, 0, 1)
    checks.one_of("config.data.flip", settings.flip, data.FLIPS)
    checks.one_of("config.data.metric", settings.metric, data.METRICS)
    checks.within("config.data.balanced_sampling", settings.balanced_sampling, 0, 1)
    checks.one_of("config.data.augment", settings.augment, policies.POLICIES)
    checks.at_least("config.data.augment_operations", settings.augment_operations, 1)
    largest = policies.BINS - 1
    checks.within("config.data.augment_magnitude", settings.augment_magnitude, 0, largest)
    checks.at_least("config.data.color_jitter", settings.color_jitter, 0)
    checks.within("config.data.random_erasing", settings.random_erasing, 0, 1)
    checks.inside("config.data.unlabelled_share", settings.unlabelled_share, 0, 1)
    low, high = settings.crop_area
    checks.require(
        0 < low <= high <= 1,
        f"config.data.crop_area must be 0 < smallest <= largest <= 1, got {(low, high)}.",
    )
