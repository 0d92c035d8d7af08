"""Data sets that TFDS has prepared as array_record or TFRecord, read without TensorFlow."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.images.decoding import CorruptImageError
from remem_jax.data.tfds import examples, tfrecord

ARRAY_RECORD, TFRECORD = "array_record", "tfrecord"
_INFO, _FEATURES = "dataset_info.json", "features.json"  # TFDS's names.


class Copy(NamedTuple):
    """A prepared data set on disk.

    Attributes:
        builder: TFDS's builder.
        format: TFDS's name of the format that is read; array_record is preferred.
    """

    builder: Any
    format: str


class UnopenedError(SettingError):
    """TFDS cannot open a data set, and no file of it is seen to be damaged.

    Attributes:
        reason: TFDS's reason.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(str(tfrecord.damaged(path, reason)))
        self.reason = reason


def folder(data_dir: str) -> pathlib.Path:
    """Returns TFDS's folder; "" is TFDS's default."""
    from tensorflow_datasets.core import constants

    if data_dir:
        return checks.local_path("config.data.dir", data_dir)
    return checks.local_path("config.data.dir, or TFDS_DATA_DIR,", constants.DATA_DIR)


def builder(name: str, data_dir: str) -> Any:
    """Returns TFDS's builder of `name`, whether the data set is prepared or not.

    Raises:
        SettingError: If the metadata of a prepared data set are damaged.
    """
    import tensorflow_datasets

    place = folder(data_dir)
    with _readable(name, place):
        result = tensorflow_datasets.builder(
            name, data_dir=os.fspath(place) if data_dir else None, try_gcs=False
        )
        _ = result.info.features, result.info.splits  # Otherwise read later, outside this block.
        return result


def find(name: str, data_dir: str) -> Copy | None:
    """Returns the prepared copy of the data set that TFDS calls `name`; None if there is none.

    Raises:
        SettingError: If its metadata are damaged.
    """
    current = builder(name, data_dir)
    with _quiet():
        is_prepared = current.is_prepared()
    if not is_prepared:
        return None
    formats = {each.value for each in current.info.available_file_formats()} or {TFRECORD}
    chosen = next((each for each in (ARRAY_RECORD, TFRECORD) if each in formats), min(formats))
    current.info.set_file_format(chosen, override=True, override_if_initialized=True)
    return Copy(current, chosen)


def class_names(copy: Copy, name: str, classes: int, label: str = "label") -> tuple[str, ...]:
    """Returns the names of a copy's classes, in the order of the labels.

    Args:
        copy: The copy.
        name: TFDS's name of the data set.
        classes: Expected number of classes.
        label: Name of the feature, a `ClassLabel`.

    Raises:
        SettingError: If there is another number of names, or they are missing.
    """
    names = tuple(copy.builder.info.features[label].names)
    file = f"{label.replace('/', '-')}.labels.txt"
    path = os.path.join(copy.builder.data_dir, file)  # noqa: PTH118  TFDS's kind of path.
    if len(names) != classes:
        raise tfrecord.damaged(path, f"it names {len(names)} classes, expected {classes}")
    if names == tuple(map(str, range(classes))):  # TFDS's names if the file is missing.
        import tensorflow_datasets

        try:
            ours = tensorflow_datasets.builder(name, data_dir=os.devnull, try_gcs=False)
        except (AssertionError, ValueError):  # Its code is not, or no longer, in TFDS.
            return names
        if tuple(ours.info.features[label].names) != names:
            raise tfrecord.damaged(path, "it has no names")
    return names


@contextlib.contextmanager
def _readable(name: str, place: pathlib.Path) -> Iterator[None]:
    """Raises an error that names the damaged file if TFDS cannot read a data set's metadata."""
    from google.protobuf import json_format

    errors = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError)
    try:
        with _quiet():
            yield
    except (*errors, json_format.Error) as error:
        folder = place / name.partition(":")[0]
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        for path in sorted(folder.rglob("[0-9]*.[0-9]*.[0-9]*")):  # One folder for each version.
            for file in (_INFO, _FEATURES):
                damage = _damage(path / file)
                if damage:
                    raise tfrecord.damaged(os.fspath(path / file), damage) from error
        raise UnopenedError(os.fspath(folder), reason) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses TFDS's warnings of data sets that are not prepared."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _damage(path: pathlib.Path) -> str:
    """Returns the damage of a JSON file; "" if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return f"it is cut or damaged ({error})" if path.stat().st_size else "it is empty"
    return "" if isinstance(content, dict) and content else "it does not describe a data set"


def count(copy: Copy, expression: str) -> int:
    """Returns the number of images of a split, such as `train[:80%]`, by TFDS's metadata.

    Raises:
        SettingError: If there is no such split.
    """
    return _info(copy, expression).num_examples


def overlap(copy: Copy, first: str, second: str) -> bool:
    """Returns whether two splits, such as `train` and `train[80%:]`, have images in common.

    Raises:
        SettingError: If there is no such split.
    """
    spans = [
        (each.filename, each.skip, each.skip + each.take)
        for each in _info(copy, first).file_instructions
    ]
    return any(
        each.filename == file and each.skip < end and start < each.skip + each.take
        for each in _info(copy, second).file_instructions
        for file, start, end in spans
    )


def split(copy: Copy, expression: str, noun: str, columns: examples.Columns) -> sources.Split:
    """Opens a split, such as `train[:80%]`.

    Args:
        copy: The copy.
        expression: TFDS's expression for the split.
        noun: Name of the split in messages.
        columns: The features to read.

    Raises:
        SettingError: If there is no such split, its format is another, or files are damaged.
    """
    serialized = records(copy, expression)
    key = _key(copy, expression)
    reader = examples.Reader(serialized, columns)
    return sources.Split(reader, sources.Numbered(noun), len(serialized), None, key)


def values(copy: Copy, expression: str, feature: str) -> list[str]:
    """Returns the values of a feature, an integer or a text, as text; "" for a missing one.

    It reads all records of the split; raises as `split` does.
    """
    read = records(copy, expression)
    return [_text(read, i, feature) for i in range(len(read))]


def _text(read: Any, i: int, feature: str) -> str:
    try:
        stored = examples.stored_label(examples.parsed(read, i), feature)
    except CorruptImageError:  # The scan reports it.
        return ""
    if stored is None:
        return ""
    return stored.decode(errors="surrogateescape") if isinstance(stored, bytes) else str(stored)


def records(copy: Copy, expression: str) -> Any:
    """Returns the serialized `tf.train.Example`s of a split, by index; raises as `split` does."""
    name, place = copy.builder.info.full_name, copy.builder.data_dir
    # TFDS silently reads all of train for train[:80%] from Parquet.
    if copy.format not in (ARRAY_RECORD, TFRECORD):
        raise SettingError(
            f"{name} in {place} is {copy.format}, not prepared as {ARRAY_RECORD} or {TFRECORD}: "
            "remove the folder and run tools/prepare_data.py, or set config.data.dir to another "
            "copy."
        )
    shards = _info(copy, expression).file_instructions
    absent = [shard.filename for shard in shards if not pathlib.Path(shard.filename).is_file()]
    if absent or not shards:
        problem = f"lacks files, such as {absent[0]}" if absent else "is empty"
        raise SettingError(
            f"The split {expression!r} of {name} in {place} {problem}: copy it there again, or "
            "remove the folder and run tools/prepare_data.py; config.data.dir names its folder."
        )
    if copy.format == TFRECORD:
        return tfrecord.Records(shards)
    return _array_records(shards)


def _array_records(shards: Sequence[Any]) -> Any:
    """Opens shards of array_record files, after checking that they are complete."""
    from array_record.python import array_record_data_source, array_record_module

    for shard in shards:
        # For a truncated file the reader returns empty records.
        reader = array_record_module.ArrayRecordReader(
            shard.filename, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
        count = reader.num_records()
        if count != shard.examples_in_shard:
            raise tfrecord.damaged(
                shard.filename, f"{count} of its {shard.examples_in_shard} records are found"
            )
        reader.close()
    return array_record_data_source.ArrayRecordDataSource(shards)


def _info(copy: Copy, expression: str) -> Any:
    """Returns TFDS's `SplitInfo`."""
    try:
        return copy.builder.info.splits[expression]
    except (KeyError, ValueError) as error:  # TFDS's message lists the splits.
        raise SettingError(
            f"{copy.builder.info.full_name} in {copy.builder.data_dir} has no split "
            f"{expression!r} ({error}); remove the folder and prepare the data set again."
        ) from None


def _key(copy: Copy, expression: str) -> str:
    """Returns a key that changes when a file of the split does."""
    digest = hashlib.sha256()
    for shard in _info(copy, expression).file_instructions:
        path = pathlib.Path(shard.filename)
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"{path.name} {stamp}\n".encode())
    return f"{copy.builder.info.full_name} {expression} {digest.hexdigest()[:16]}"
