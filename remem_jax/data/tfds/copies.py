"""What TFDS has prepared on disk, as array_record or as TFRecord, read without TensorFlow."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.data.tfds import tfrecord

ARRAY_RECORD, TFRECORD = "array_record", "tfrecord"
_INFO, _FEATURES, _LABELS = "dataset_info.json", "features.json", "label.labels.txt"  # TFDS's.


class Copy(NamedTuple):
    """A data set as it lies on disk.

    Attributes:
        builder: TFDS's.
        format: TFDS's name of the format that is read, array_record before others.
    """

    builder: Any
    format: str


class Reader(NamedTuple):
    """Reads examples out of TFDS's records; see `sources.Split.read`.

    Attributes:
        records: Index -> serialized `tf.train.Example`; can be pickled, safe for threads.
    """

    records: Any

    def __call__(self, i: int) -> sources.Example:
        features = parsed(self.records, i)
        image, label = features["image"].bytes_list.value, features["label"].int64_list.value
        if len(image) != 1 or len(label) != 1:
            raise decoding.CorruptImageError("its record has not one image and one label")
        return sources.Example(image[0], label[0])


def folder(data_dir: str) -> pathlib.Path:
    """TFDS's folder, its own default if none is given."""
    from tensorflow_datasets.core import constants

    if data_dir:
        return checks.local_path("config.data.dir", data_dir)
    return checks.local_path("config.data.dir, or TFDS_DATA_DIR,", constants.DATA_DIR)


def builder(name: str, data_dir: str) -> Any:
    """TFDS's builder of what it calls `name`, prepared or not.

    Raises:
        SettingError: If what it has written down of a prepared one is damaged.
    """
    import tensorflow_datasets

    place = folder(data_dir)
    with _readable(name, place):
        found = tensorflow_datasets.builder(
            name, data_dir=os.fspath(place) if data_dir else None, try_gcs=False
        )
        _ = found.info.features, found.info.splits  # Read only when they are used.
        return found


def find(name: str, data_dir: str) -> Copy | None:
    """The prepared copy of what TFDS calls `name`; None where there is none.

    Raises:
        SettingError: If what TFDS has written down of it is damaged.
    """
    found = builder(name, data_dir)
    if not found.is_prepared():
        return None
    formats = {one.value for one in found.info.available_file_formats()} or {TFRECORD}
    chosen = next((one for one in (ARRAY_RECORD, TFRECORD) if one in formats), min(formats))
    found.info.set_file_format(chosen, override=True, override_if_initialized=True)
    return Copy(found, chosen)


def class_names(copy: Copy, name: str, classes: int) -> tuple[str, ...]:
    """Names of the classes of a copy of what TFDS calls `name`, in the order of the labels.

    Raises:
        SettingError: If they are not so many, or have been lost.
    """
    found = tuple(copy.builder.info.features["label"].names)
    path = os.path.join(copy.builder.data_dir, _LABELS)  # noqa: PTH118  TFDS's own kind of path.
    if len(found) != classes:
        raise tfrecord.damaged(path, f"it names {len(found)} classes, expected {classes}")
    if found == tuple(map(str, range(classes))):  # As where there are none.
        import tensorflow_datasets

        ours = tensorflow_datasets.builder(name, data_dir=os.devnull, try_gcs=False)
        if tuple(ours.info.features["label"].names) != found:
            raise tfrecord.damaged(path, "it has no names")
    return found


@contextlib.contextmanager
def _readable(name: str, place: pathlib.Path) -> Iterator[None]:
    """Names the file where TFDS cannot read what it has written down of a data set."""
    from google.protobuf import json_format

    errors = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError)
    try:
        yield
    except (*errors, json_format.Error) as error:
        folder = place / name.partition(":")[0]
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        for path in sorted(folder.rglob("[0-9]*.[0-9]*.[0-9]*")):  # Its versions.
            for file in (_INFO, _FEATURES):
                wrong = _wrong(path / file)
                if wrong:
                    raise tfrecord.damaged(os.fspath(path / file), wrong) from error
        raise tfrecord.damaged(os.fspath(folder), reason) from error


def _wrong(path: pathlib.Path) -> str:
    """What is wrong with a file of JSON; empty where nothing is."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return f"it is cut or damaged ({error})" if path.stat().st_size else "it is empty"
    return "" if isinstance(content, dict) and content else "it says nothing of a data set"


def count(copy: Copy, expression: str) -> int:
    """Images of a split, such as `train[:80%]`, as TFDS wrote them down.

    Raises:
        SettingError: If there is no such split.
    """
    return _info(copy, expression).num_examples


def split(copy: Copy, expression: str, noun: str) -> sources.Split:
    """A split, such as `train[:80%]`; `noun` says in messages what an example is of.

    Raises:
        SettingError: If there is no such split, its format is another, or files are damaged.
    """
    found = records(copy, expression)
    key = _key(copy, expression)
    return sources.Split(Reader(found), sources.Numbered(noun), len(found), None, key)


def records(copy: Copy, expression: str) -> Any:
    """Index -> serialized `tf.train.Example` of a split; raises as `split` does."""
    name, place = copy.builder.info.full_name, copy.builder.data_dir
    # Of other formats, Parquet would read all of train for train[:80%], without a word.
    if copy.format not in (ARRAY_RECORD, TFRECORD):
        raise SettingError(
            f"{name} in {place} is {copy.format}, not prepared as {ARRAY_RECORD} or {TFRECORD}: "
            "remove the folder and run tools/prepare_data.py, or set config.data.dir to another "
            "copy."
        )
    parts = _info(copy, expression).file_instructions
    absent = [part.filename for part in parts if not pathlib.Path(part.filename).is_file()]
    if absent or not parts:
        what = f"lacks files, such as {absent[0]}" if absent else "is empty"
        raise SettingError(
            f"The split {expression!r} of {name} in {place} {what}: copy it there again, or remove "
            "the folder and run tools/prepare_data.py; config.data.dir says where it is."
        )
    if copy.format == TFRECORD:
        return tfrecord.Records(parts)
    return _array_records(parts)


def parsed(records: Any, i: int) -> Any:
    """The features of a record, by name.

    Raises:
        decoding.CorruptImageError: If it cannot be read.
    """
    from google.protobuf import message
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(records[i]).features.feature
    # What array_record raises of damaged bytes is a RuntimeError.
    except (OSError, RuntimeError, ValueError, message.DecodeError) as error:
        raise decoding.CorruptImageError(f"its record cannot be read ({error})") from error


def _array_records(parts: Sequence[Any]) -> Any:
    """The records of parts of array_record files, each of which is whole."""
    from array_record.python import array_record_data_source, array_record_module

    for part in parts:
        # Of a file that was cut off, the reader gives records without a byte.
        reader = array_record_module.ArrayRecordReader(
            part.filename, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
        found = reader.num_records()
        if found != part.examples_in_shard:
            raise tfrecord.damaged(
                part.filename, f"{found} of its {part.examples_in_shard} records are found"
            )
        reader.close()
    return array_record_data_source.ArrayRecordDataSource(parts)


def _info(copy: Copy, expression: str) -> Any:
    """TFDS's `SplitInfo`."""
    try:
        return copy.builder.info.splits[expression]
    except (KeyError, ValueError) as error:  # TFDS's own, which says what splits there are.
        raise SettingError(
            f"{copy.builder.info.full_name} in {copy.builder.data_dir} has no split "
            f"{expression!r} ({error}); remove the folder and prepare the data set again."
        ) from None


def _key(copy: Copy, expression: str) -> str:
    """Changes when a file of the split does."""
    digest = hashlib.sha256()
    for part in _info(copy, expression).file_instructions:
        path = pathlib.Path(part.filename)
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"{path.name} {stamp}\n".encode())
    return f"{copy.builder.info.full_name} {expression} {digest.hexdigest()[:16]}"
