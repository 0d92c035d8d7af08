"""Finds the pretrained weights that `config.teacher.init` names, and what is known about them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.checks import SettingError, require
from remem_jax.models import normalisation, vit
from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import (
    catalog,
    hub,
    hub_description,
    student_sources,
    teacher_catalog,
    timm,
    timm_architectures,
)

_SETTING = "config.teacher.init"
_LOCAL = ("/", "./", "../", "~")
_SUFFIXES = (student_sources.SUFFIX, *timm.PICKLES)


class TeacherSource(NamedTuple):
    """Pretrained weights of a teacher on this machine.

    Attributes:
        path: Path of the file; that of an .npz may be followed by ":sub/tree".
        repository: Its repository on the Hub; "" for other files.
        commit: Commit of the repository; "" for other files.
        config: Contents of the config.json of the repository, or beside a .safetensors file.
        preprocessor: Contents of preprocessor_config.json, likewise.
        metadata: Metadata in the head of a .safetensors file.
        card: Metadata of the model card of the repository.
    """

    path: pathlib.Path
    repository: str = ""
    commit: str = ""
    config: Mapping[str, Any] = {}
    preprocessor: Mapping[str, Any] = {}
    metadata: Mapping[str, str] = {}
    card: Mapping[str, Any] = {}

    @property
    def published(self) -> teacher_catalog.Published | None:
        """Its entry in the catalogue of recommended teachers; None if it has none."""
        return teacher_catalog.PUBLISHED.get(self.repository)

    @property
    def architecture(self) -> str:
        """Name of the network in timm, from config.json or the names; "" if it is unknown."""
        if "model_type" in self.config or self.path.suffix != student_sources.SUFFIX:
            return ""  # It is transformers', or AugReg's.
        stem = self.repository.partition("/")[2] or self.path.stem
        stated = timm_architectures.name_of(self.config, stem)
        return teacher_catalog.natively(self.repository, stated)

    @property
    def described(self) -> Mapping[str, Any]:
        """Contents of config.json, with timm's name of the network if that is known."""
        named = {"architecture": self.architecture} if self.architecture else {}
        return {**self.config, **named}

    @property
    def licence(self) -> str:
        """Licence of the weights, as the Hub abbreviates it; "" if unknown."""
        if self.published:
            return self.published.licence
        return hub_description.licence(self.config, self.card)

    @property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of the images that the network expects; None if it is unknown.

        It is that of the file's own metadata, of timm's config.json, or of transformers'
        preprocessor_config.json.

        Raises:
            SettingError: If it is damaged.
        """
        values = _stored(self.metadata)
        values = values or hub_description.statistics(self.config, self.preprocessor)
        if not values:
            return None
        parsed = normalisation.parse(values.get("mean"), values.get("std"))
        if parsed is None:
            raise SettingError(
                f"The mean and std that come with {self.repository or self.path} are not three "
                f"numbers each, with std above 0: set {_SETTING} to other weights."
            )
        return parsed


def record(source: TeacherSource, init: str, digest: str, used: Normalisation) -> dict[str, Any]:
    """Returns the description of a teacher's weights for results and reports, as JSON values.

    Args:
        source: The weights.
        init: The value of `config.teacher.init`.
        digest: Digest of the weights.
        used: Normalisation of the teacher's images.
    """
    return {
        "init": init,
        "repository": source.repository,
        "commit": source.commit,
        "architecture": source.architecture,
        "licence": source.licence,
        "pretraining": source.published.pretraining if source.published else "",
        "digest": digest,
        "mean": list(used.mean),
        "std": list(used.std),
    }


def on_hub(init: str) -> hub.Name | None:
    """Returns the repository that `init` names; None for a name of the bucket, or a path.

    An existing path has precedence over a repository.
    """
    is_path = (
        catalog.is_name(init)
        or ".npz" in init
        or init.startswith(_LOCAL)
        or init.endswith(_SUFFIXES)
        or pathlib.Path(init).exists()
    )
    return None if is_path else hub.parse(init)


def position_resize(init: str) -> str:
    """Returns how the project of a checkpoint resizes its positions, of `matching.RESIZES`."""
    return "vit_jax" if catalog.is_name(init) or ".npz" in init else "dinov2"


def check(init: str, *, mirror: str = "") -> None:
    """Raises `SettingError` unless `init` can name weights; opens no connection.

    Args:
        init: The value of `config.teacher.init`: a name for `catalog.find`, the path of an .npz or
            .safetensors file, or a repository on the Hub (`hub.parse`).
        mirror: The value of `config.teacher.mirror`; see `catalog.in_mirror`.
    """
    if on_hub(init):
        return
    if catalog.is_name(init):
        catalog.find(init)
        if init in catalog.BUNDLED or catalog.mirror_folder(mirror) is None:
            return  # It is downloaded later.
    file, _ = catalog.split_path(str(catalog.locate(init, mirror=mirror)))
    similar = teacher_catalog.similar(init)
    hint = f" (on the Hub: {', '.join(similar)})" if similar else ""
    require(
        file.is_file(),
        f"There is no checkpoint {init}{hint}: set {_SETTING} to a file of a ViT or to a published "
        f"name ({catalog.ADVICE}).",
    )


def require_variant(init: str, variant: str) -> None:
    """Raises `SettingError` if weights of a catalogue are known to be of another variant.

    Args:
        init: See `check`.
        variant: The value of `config.teacher.variant`, one of `vit.VARIANTS` or "".
    """
    if not variant:
        return
    if catalog.is_name(init):
        published = catalog.find(init).variant
        require(
            published == variant,
            f"config.teacher.init is {init}, a ViT-{published}; set config.teacher.variant to it, "
            f"not to {variant!r}.",
        )
    name, size = on_hub(init), vit.VARIANTS[variant]
    recommended = teacher_catalog.PUBLISHED.get(name.repository) if name else None
    if recommended:
        require(
            (size.features, size.patch) == (recommended.features, recommended.patch),
            f"{init} has {recommended.features} features and patches of {recommended.patch} "
            f"pixels, and config.teacher.variant is {variant!r}: set it to '', which is that of "
            "the weights.",
        )


def obtain(init: str, *, mirror: str = "") -> TeacherSource:
    """Finds weights, and downloads them unless they are on this machine.

    Args:
        init: See `check`.
        mirror: See `check`.

    Raises:
        SettingError: If there are no such weights, or they cannot be downloaded.
    """
    name = on_hub(init)
    if name is None:
        return _local(init, mirror)
    fetched = hub.fetch(name, setting=_SETTING)
    return TeacherSource(
        fetched.weights,
        name.repository,
        fetched.commit,
        fetched.config,
        fetched.preprocessor,
        student_sources.read_metadata(fetched.weights),
        fetched.card,
    )


def _local(init: str, mirror: str) -> TeacherSource:
    from remem_jax.weights import download  # Imports requests, which checks do not need.

    path = pathlib.Path(download.obtain(init, mirror=mirror))
    if path.suffix != student_sources.SUFFIX:
        return TeacherSource(path)
    return TeacherSource(
        path,
        config=hub_description.read_json(path.with_name(hub.CONFIG)),
        preprocessor=hub_description.read_json(path.with_name(hub.PREPROCESSOR)),
        metadata=student_sources.read_metadata(path),
    )


def _stored(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the mean and deviation in the metadata of a file of ours; {} without any."""
    try:
        return {name: json.loads(metadata[name]) for name in ("mean", "std") if name in metadata}
    except ValueError:
        return {"mean": None}
