"""Data sets of the registry that TFDS has prepared."""

from typing import NamedTuple

from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.custom import group_names
from remem_jax.data.sources import TEST, TRAIN, VALIDATION
from remem_jax.data.tfds import copies, examples, imagenet_lt


class State(NamedTuple):
    """A prepared data set.

    Attributes:
        format: TFDS's name of the format, or "index".
        counts: Number of images of train and test.
        validation: Number of images of the authors' validation split; 0 if it has none.
    """

    format: str
    counts: tuple[int, int]
    validation: int = 0


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
        expressions = {TRAIN: record.train, VALIDATION: record.validation, TEST: record.test}
        splits = {
            split: copies.split(copy, expression, f"{name} {expression}", columns)
            for split, expression in expressions.items()
            if expression
        }
        if record.group:
            names = {
                split: copies.values(copy, expressions[split], record.group.feature)
                for split in splits
            }
            find = group_names.by_pattern(record.group.pattern)
            splits = group_names.with_groups(splits, names, find)
    elif name == imagenet_lt.NAME and imagenet_lt.path(data_dir).is_file():
        copy = copies.find(registry.IMAGENET, data_dir)
        if copy is None:
            raise _not_prepared(registry.IMAGENET, name, data_dir)
        splits = imagenet_lt.splits(copy, data_dir)
    else:
        raise _not_prepared(record.tfds, name, data_dir)
    classes = copies.class_names(copy, record.tfds, record.classes)
    counts = {split: opened.examples for split, opened in splits.items()}
    official = record.is_official((counts[TRAIN], counts[TEST]), counts.get(VALIDATION, 0))
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
        validation = copies.count(copy, record.validation) if record.validation else 0
        return State(copy.format, counts, validation)
    counts = imagenet_lt.counts(data_dir) if name == imagenet_lt.NAME else None
    if counts is None or copies.find(registry.IMAGENET, data_dir) is None:
        return None
    return State("index", counts)


def _not_prepared(tfds_name: str, name: str, data_dir: str) -> SettingError:
    return SettingError(
        f"{tfds_name} is not prepared in {copies.folder(data_dir)}: run tools/prepare_data.py "
        f"{name}, or set config.data.dir to where it is."
    )
