"""Checks the settings of a run by the name of its workflow."""

from collections.abc import Callable, Collection, Mapping

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.settings import analysis, check_remem, unused

_CHECKS: Mapping[str, Callable[[ConfigDict], None]] = {
    "remem": check_remem,
    "analysis": analysis.check,
}


def check(config: ConfigDict, given: Collection[str] = ()) -> None:
    """Raises `SettingError` for the first setting of a run that cannot be used.

    Args:
        config: All settings.
        given: Names of the settings that the user gave, such as "teacher.rho"; those without an
            effect are refused.
    """
    checks.one_of("config.workflow", config.workflow, _CHECKS)
    _CHECKS[config.workflow](config)
    unused.check(config, given)
