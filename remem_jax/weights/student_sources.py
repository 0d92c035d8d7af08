"""Finds the pretrained weights that `config.student.init` names, and what is known about them."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import safetensors

from remem_jax import models
from remem_jax.checks import SettingError, local_path, require
from remem_jax.models import vit
from remem_jax.weights import (
    catalog,
    hub,
    hub_description,
    student_catalog,
    timm,
    vit_students,
)
from remem_jax.weights.student_catalog import RECOMMENDED, Published

SUFFIX = ".safetensors"
_VIT_FILE = ".npz"  # vit_jax's and big_vision's.
_LOCAL = ("/", "./", "../", "~")


class Source(NamedTuple):
    """Pretrained weights on this machine.

    Attributes:
        path: Path of the file; that of a ViT may be followed by ":sub/tree".
        published: Their entry in the catalogue; None if they have none.
        repository: Their repository on the Hub; "" for a local file.
        commit: Commit of the repository; "" for a local file.
        config: Contents of the config.json of the repository, or beside a local file.
        metadata: Metadata in the head of the file.
        card: Metadata of the model card of the repository; {} for a local file.
    """

    path: pathlib.Path
    published: Published | None = None
    repository: str = ""
    commit: str = ""
    config: Mapping[str, Any] = {}
    metadata: Mapping[str, str] = {}
    card: Mapping[str, Any] = {}

    @property
    def is_npz(self) -> bool:
        """Whether the file is vit_jax's or big_vision's."""
        return _VIT_FILE in self.path.name

    @property
    def architecture(self) -> str:
        """Name of the network in timm; "" if unknown."""
        if self.published:
            return self.published.architecture
        return hub_description.architecture(self.config)

    @property
    def licence(self) -> str:
        """Licence of the weights, as the Hub abbreviates it; "" if unknown."""
        if self.published:
            return self.published.licence
        return hub_description.licence(self.config, self.card)


class _Teacher(NamedTuple):
    """The checkpoint of a ViT, as `config.teacher.init` names it."""

    init: str


def check(init: str, student: str) -> None:
    """Raises `SettingError` unless `init` can name weights of a student; opens no connection.

    Args:
        init: The value of `config.student.init`; not empty.
        student: One of `models.STUDENTS`.
    """
    _parse(init, student)


def obtain(init: str, student: str, *, mirror: str = "") -> Source:
    """Finds weights, and downloads them unless they are on this machine.

    Args:
        init: See `check`.
        student: See `check`.
        mirror: `config.teacher.mirror`, for a ViT that has a name in the catalogue of teachers.

    Raises:
        SettingError: If `check` raises one, or the weights cannot be downloaded.
    """
    named = _parse(init, student)
    if isinstance(named, _Teacher):
        from remem_jax.weights import download  # Imports requests, which checks do not need.

        with for_students():
            return Source(pathlib.Path(download.obtain(named.init, mirror=mirror)))
    if isinstance(named, pathlib.Path):
        published = student_catalog.PUBLISHED.get(named.stem)
        config = hub_description.read_json(named.with_name(hub.CONFIG))
        return Source(named, published, config=config, metadata=read_metadata(named))
    if isinstance(named, Published):
        named = hub.Name(named.repository)
    fetched = hub.fetch(named, setting="config.student.init")
    listed = student_catalog.PUBLISHED.values()
    published = [weights for weights in listed if weights.repository == named.repository]
    return Source(
        fetched.weights,
        published[0] if published else None,
        named.repository,
        fetched.commit,
        fetched.config,
        read_metadata(fetched.weights),
        fetched.card,
    )


def accepted(student: str) -> str:
    """Returns what `config.student.init` may be for a student, as an enumeration."""
    kinds = [
        f"the path of a {SUFFIX} file with the names of timm or torchvision",
        "a repository on the Hub such as timm/resnet18.a1_in1k",
    ]
    listed = student_catalog.of_student(student)
    if listed:
        names = ", ".join(weights.name for weights in listed)
        kinds.append(f"a name in the catalogue ({names}; {RECOMMENDED!r} is the first)")
    if is_vit(student):
        kinds.append("what config.teacher.init may be")
    return f"{', '.join(kinds[:-1])}, or {kinds[-1]}"


def is_vit(student: str) -> bool:
    """Returns whether a student of `models.STUDENTS` is a ViT."""
    return isinstance(models.make(student, classes=1), vit.VisionTransformer)


@contextlib.contextmanager
def for_students() -> Iterator[None]:
    """Makes errors about the file of a ViT name the setting of students."""
    try:
        yield
    except SettingError as error:
        text = str(error).replace("config.teacher.init", "config.student.init")
        raise SettingError(text) from None


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Returns the metadata of a .safetensors file; {} for another file, or a damaged one."""
    with contextlib.suppress(safetensors.SafetensorError, OSError):
        if path.suffix == SUFFIX:
            with safetensors.safe_open(path, framework="np") as file:
                return file.metadata() or {}
    return {}


def _parse(init: str, student: str) -> Published | _Teacher | pathlib.Path | hub.Name:
    if student_catalog.is_name(init):
        return student_catalog.find(init, student)
    name = hub.parse(init)
    if _is_teacher(init):
        return _teacher(init, student)
    if init.startswith(_LOCAL) or init.endswith((SUFFIX, *timm.PICKLES)):
        return _local_file(init)
    if name is None or pathlib.Path(init).exists():
        similar = student_catalog.similar(init)
        hint = f" (similar: {', '.join(similar)})" if similar else ""
        raise SettingError(
            f"config.student.init cannot be {init!r}{hint}: set it to {accepted(student)}; empty "
            "is random weights."
        )
    return name


def _is_teacher(init: str) -> bool:
    return catalog.is_name(init) or _VIT_FILE in init


def _teacher(init: str, student: str) -> _Teacher:
    require(
        is_vit(student),
        f"config.student.init is {init}, a ViT, and config.student.model is {student}: set "
        f"config.student.init to {accepted(student)}.",
    )
    with for_students():
        if catalog.is_name(init):
            vit_students.require_fitting(init, student)
        path, _ = catalog.split_path(os.fspath(catalog.locate(init)))
        is_here = catalog.is_name(init) or path.is_file()
    require(
        is_here,
        f"There is no file {path}: set config.student.init to {accepted(student)}.",
    )
    return _Teacher(init)


def _local_file(init: str) -> pathlib.Path:
    path = local_path("config.student.init", init)
    timm.refuse_pickle(path)
    require(
        path.is_file(),
        f"There are no weights {init}: set config.student.init to a {SUFFIX} file.",
    )
    require(
        path.suffix == SUFFIX,
        f"config.student.init is {init}, whose format is unknown: set it to a {SUFFIX} file.",
    )
    return path
