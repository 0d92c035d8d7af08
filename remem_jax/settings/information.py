"""Checks the settings that measure the information of teachers, `config.information`."""

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.models import decoder
from remem_jax.settings import memory


def check(settings: ConfigDict, image_size: int) -> None:
    """Raises `SettingError` for the first setting of `config.information` that cannot be used."""
    prefix = "config.information"
    checks.require(len(settings.seeds) > 0, f"{prefix}.seeds must hold at least one value.")
    checks.at_least(f"{prefix}.evaluations", settings.evaluations, 2)
    checks.at_least(f"{prefix}.steps", settings.steps, settings.evaluations)
    checks.at_least(f"{prefix}.batch_size", settings.batch_size, 2)
    checks.above(f"{prefix}.learning_rate", settings.learning_rate, 0)
    for beta in settings.betas:
        checks.within(f"{prefix}.betas", beta, 0, 0.99999)
    checks.at_least(f"{prefix}.weight_decay", settings.weight_decay, 0)
    checks.above(f"{prefix}.epsilon", settings.epsilon, 0)
    checks.one_of(f"{prefix}.align_corners", settings.align_corners, (True, False))
    memory.recomputed(f"{prefix}.rematerialise", settings.rematerialise)
    checks.at_least(f"{prefix}.pictures", settings.pictures, 0)
    try:
        decoder.make(image_size=image_size)
    except ValueError as error:
        raise checks.SettingError(str(error)) from error
    info_nce = settings.info_nce
    checks.one_of(f"{prefix}.info_nce.measured", info_nce.measured, (True, False))
    checks.above(f"{prefix}.info_nce.noise", info_nce.noise, 0)
    for name in ("grid", "blocks", "hidden", "embedding"):
        checks.at_least(f"{prefix}.info_nce.{name}", info_nce[name], 1)
    checks.require(
        image_size % info_nce.blocks == 0,
        f"{prefix}.info_nce.blocks must divide config.data.image_size, {image_size}; got "
        f"{info_nce.blocks}.",
    )
