"""Reads and checks the pretrained checkpoints that a workflow starts from, before its data."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from remem_jax.checks import require
from remem_jax.methods import METHODS
from remem_jax.models import normalisation, vit
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.settings import check_patches
from remem_jax.storage import results
from remem_jax.weights import (
    augreg,
    catalog,
    described,
    download,
    initial_students,
    teacher_sources,
    timm_architectures,
)
from remem_jax.weights.initial_students import InitialStudent
from remem_jax.weights.teacher_sources import TeacherSource


class Pretrained(NamedTuple):
    """The checkpoint that teachers start from.

    Attributes:
        checkpoint: Contents of the file.
        digest: Digest of the file, and of what its description adds to it.
        source: Where the file is from, and what is known about it.
        normalisation: Normalisation of its images.
    """

    checkpoint: augreg.Checkpoint
    digest: str
    source: TeacherSource
    normalisation: Normalisation = IDENTITY


class Preloaded:
    """Checkpoints that have been read, each kept until it is taken."""

    def __init__(self, configs: Iterable[ConfigDict], students: Iterable[ConfigDict] = ()) -> None:
        """Reads checkpoints.

        Args:
            configs: Configs whose `config.teacher` names a checkpoint.
            students: Configs whose `config.student` names one.

        Raises:
            SettingError: If one is missing, damaged, or does not match the settings.
        """
        self._read: dict[tuple[str, str], Pretrained] = {}
        for config in configs:
            if _key(config) not in self._read:
                self._read[_key(config)] = read(config)
        self._students = {config.student.init: read_student(config) for config in students}

    def take_student(self, config: ConfigDict) -> InitialStudent | None:
        """Returns the weights of `config.student.init`; None if no student starts from them."""
        if not starts_pretrained(config):
            return None
        return self._students.pop(config.student.init, None) or read_student(config)

    def take(self, config: ConfigDict) -> Pretrained:
        """Returns the checkpoint of a config; it is read again if taken twice."""
        return self._read.pop(_key(config), None) or read(config)


def read(config: ConfigDict) -> Pretrained:
    """Finds the checkpoint of `config.teacher`, downloads it if it is published, and checks it.

    Raises:
        SettingError: If it is missing, damaged, or does not match the settings.
    """
    settings = config.teacher
    source, digest = _obtain(settings)
    heads = vit.VARIANTS[settings.variant].heads if settings.variant else 0
    checkpoint = augreg.read(source.path, heads=heads, config=source.described)
    if settings.variant:
        expected = vit.VARIANTS[settings.variant]
        require(
            expected == checkpoint.size,
            f"{settings.init} holds a ViT of {checkpoint.size}, not ViT-{settings.variant} "
            f"({expected}): set config.teacher.variant to the checkpoint's, or to '' for any.",
        )
    require(
        not settings.pool or described.can_pool(settings.pool, checkpoint.arrays),
        f"config.teacher.pool is {settings.pool!r}, and {settings.init} lacks the arrays for it: "
        f"set it to '' for {checkpoint.options['pool']!r}, the checkpoint's, or to 'gap'.",
    )
    check_patches(f"the checkpoint {settings.init}", checkpoint.size, config.data.image_size)
    augreg.require_whole(
        checkpoint, image_size=config.data.image_size, resize=settings.position_resize
    )
    return Pretrained(checkpoint, digest, source, _normalisation(settings, source, checkpoint))


def read_digest(config: ConfigDict) -> str:
    """Returns the digest of the checkpoint of `config.teacher`; downloads it if needed."""
    return _obtain(config.teacher)[1]


def starts_pretrained(config: ConfigDict) -> bool:
    """Returns whether any student of a run starts from `config.student.init`."""
    has_init = "methods" in config and config.student.init
    return bool(has_init) and any(not METHODS[name].starts_random for name in config.methods)


def read_student(config: ConfigDict) -> InitialStudent:
    """Reads and checks the weights of `config.student.init`.

    Raises:
        SettingError: If they are missing, damaged, or of another network.
    """
    settings = config.student
    return initial_students.read(
        settings.init,
        student=settings.model,
        stem=settings.stem,
        image_size=config.data.image_size,
        mean=settings.mean,
        std=settings.std,
        mirror=config.teacher.mirror,
    )


def normalisation_of(config: ConfigDict, initial: InitialStudent | None) -> Normalisation:
    """Returns the normalisation of the images of all students, including those from scratch."""
    if initial:
        return initial.normalisation
    return (
        normalisation.given("config.student", config.student.mean, config.student.std) or IDENTITY
    )


def _normalisation(
    settings: ConfigDict, source: TeacherSource, checkpoint: augreg.Checkpoint
) -> Normalisation:
    """Returns the normalisation of a teacher's images; warns if nothing states it."""
    explicit = normalisation.given("config.teacher", settings.mean, settings.std)
    stated = explicit or source.normalisation or checkpoint.options.get("normalisation")
    # Files of ours record what is not usual; those of vit_jax and big_vision take [-1, 1].
    is_stated = stated or checkpoint.form != "timm" or "image_range" in source.metadata
    if not is_stated:
        logging.warning(
            "%s does not record the mean and the deviation that its images were normalised with; "
            "0.5 is used for both. If they were others, set config.teacher.mean and "
            "config.teacher.std, or put its config.json beside it.",
            settings.init,
        )
    return stated or IDENTITY


def _obtain(settings: ConfigDict) -> tuple[TeacherSource, str]:
    """Returns the checkpoint in a local file, and the digest of that file."""
    source = teacher_sources.obtain(settings.init, mirror=settings.mirror)
    file, _ = catalog.split_path(str(source.path))
    digest = results.digest(file)
    if catalog.is_name(settings.init):
        download.require_as_fetched(file, digest)
    added = _added(source)
    return source, results.fingerprint([digest, added]) if added else digest


def _added(source: TeacherSource) -> list[Any]:
    """Returns what the description of a file adds to it; [] if it says what any such file is."""
    config = source.described
    if "model_type" in config:
        facts: Any = {name: config[name] for name in sorted(config)}
    else:
        facts = timm_architectures.facts(
            timm_architectures.name_of(config, source.path.stem), config
        )
        facts = facts.added()
    used = source.normalisation or IDENTITY
    return [facts, used] if facts or used != IDENTITY else []


def _key(config: ConfigDict) -> tuple[str, str]:
    return config.teacher.init, config.teacher.variant
