"""Data sets of the registry that TFDS has prepared."""

from typing import NamedTuple

from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.sources import TEST, TRAIN
from remem_jax.data.tfds import copies, examples, imagenet_lt


class State(NamedTuple):
    """A prepared data set.

    Attributes:
        format: TFDS's name of the format, or "index".
        counts: Number of images of train and test.
    """

    format: str
    counts: tuple[int, int]


def tfds(name: str, data_dir: str) -> sources.Source:
    """Opens a data set of the registry that TFDS has prepared, without TensorFlow.

    Args:
        name: Name in the registry.
        data_dir: TFDS's folder; "" is its default.

    Raises:
        SettingError: If it is not prepared, has another format, or is damaged.
    """
    record = registry.RECORDS[name]
    copy = copies.find(record.tfds, data_dir)
    if copy is not None:
        columns = examples.numbered(record.classes)
        splits = {
            split: copies.split(copy, expression, f"{name} {expression}", columns)
            for split, expression in ((TRAIN, record.train), (TEST, record.test))
        }
    elif name == imagenet_lt.NAME and imagenet_lt.path(data_dir).is_file():
        copy = copies.find(registry.IMAGENET, data_dir)
        if copy is None:
            raise _not_prepared(registry.IMAGENET, name, data_dir)
        splits = imagenet_lt.splits(copy, data_dir)
    else:
        raise _not_prepared(record.tfds, name, data_dir)
    classes = copies.class_names(copy, record.tfds, record.classes)
    official = record.is_official((splits[TRAIN].examples, splits[TEST].examples))
    return sources.Source(
        name, splits, classes, record.metric, record.flip, official, published=True
    )


def state(name: str, data_dir: str) -> State | None:
    """Returns the state of a data set of the registry, from TFDS's metadata; None if not prepared.

    Raises:
        SettingError: If it lacks a split.
    """
    record = registry.RECORDS[name]
    copy = copies.find(record.tfds, data_dir)
    if copy is not None:
        counts = copies.count(copy, record.train), copies.count(copy, record.test)
        return State(copy.format, counts)
    counts = imagenet_lt.counts(data_dir) if name == imagenet_lt.NAME else None
    if counts is None or copies.find(registry.IMAGENET, data_dir) is None:
        return None
    return State("index", counts)


def _not_prepared(tfds_name: str, name: str, data_dir: str) -> SettingError:
    return SettingError(
        f"{tfds_name} is not prepared in {copies.folder(data_dir)}: run tools/prepare_data.py "
        f"{name}, or set config.data.dir to where it is."
    )
