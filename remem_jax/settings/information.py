"""Checks the settings that measure the information of teachers, `config.information`."""

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.models import decoder
from remem_jax.settings import memory


def check(settings: ConfigDict, image_size: int) -> None:
    """Raises `SettingError` for the first setting of `config.information` that cannot be used."""
    where = "config.information"
    checks.require(len(settings.seeds) > 0, f"{where}.seeds must hold at least one value.")
    checks.at_least(f"{where}.evaluations", settings.evaluations, 2)
    checks.at_least(f"{where}.steps", settings.steps, settings.evaluations)
    checks.at_least(f"{where}.batch_size", settings.batch_size, 2)
    checks.above(f"{where}.learning_rate", settings.learning_rate, 0)
    for beta in settings.betas:
        checks.within(f"{where}.betas", beta, 0, 0.99999)
    checks.at_least(f"{where}.weight_decay", settings.weight_decay, 0)
    checks.above(f"{where}.epsilon", settings.epsilon, 0)
    checks.one_of(f"{where}.align_corners", settings.align_corners, (True, False))
    memory.recomputed(f"{where}.rematerialise", settings.rematerialise)
    checks.at_least(f"{where}.pictures", settings.pictures, 0)
    try:
        decoder.make(image_size=image_size)
    except ValueError as error:
        raise checks.SettingError(str(error)) from error
    own = settings.info_nce
    checks.one_of(f"{where}.info_nce.measured", own.measured, (True, False))
    checks.above(f"{where}.info_nce.noise", own.noise, 0)
    for name in ("grid", "blocks", "hidden", "embedding"):
        checks.at_least(f"{where}.info_nce.{name}", own[name], 1)
    checks.require(
        image_size % own.blocks == 0,
        f"{where}.info_nce.blocks must divide config.data.image_size, {image_size}; got "
        f"{own.blocks}.",
    )
