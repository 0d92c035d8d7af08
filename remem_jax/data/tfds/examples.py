"""Reads examples from the records of data sets that TFDS has prepared."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.data import sources
from remem_jax.data.images import decoding


class Columns(NamedTuple):
    """The features of TFDS's examples that are read.

    Attributes:
        image: Name of the feature with the encoded image.
        label: Name of the feature with the label.
        classes: Index of the class of each stored label.
    """

    image: str
    label: str
    classes: Mapping[int | bytes, int]


class Reader(NamedTuple):
    """Reads examples from TFDS's records; see `sources.Split.read`.

    Attributes:
        records: Maps an index to a serialized `tf.train.Example`; picklable and thread-safe.
        columns: The features that are read.
    """

    records: Any
    columns: Columns

    def __call__(self, i: int) -> sources.Example:
        features = parsed(self.records, i)
        image = features[self.columns.image].bytes_list.value
        label = stored_label(features, self.columns.label)
        if len(image) != 1 or label is None:
            raise decoding.CorruptImageError("its record has not one image and one label")
        if label not in self.columns.classes:  # TFDS stores -1 for an image without a label.
            raise decoding.CorruptImageError(f"its label {label!r} is not that of a class")
        return sources.Example(image[0], self.columns.classes[label])


def stored_label(features: Any, name: str) -> int | bytes | None:
    """Returns the label in a record's features as it is stored; None unless there is just one."""
    feature = features[name]
    values = feature.int64_list.value or feature.bytes_list.value
    return values[0] if len(values) == 1 else None


def numbered(classes: int) -> Columns:
    """Returns the columns "image" and "label" of a data set whose labels number the classes."""
    return Columns("image", "label", {i: i for i in range(classes)})


def parsed(records: Any, i: int) -> Any:
    """Parses the features of a record, by name.

    Raises:
        decoding.CorruptImageError: If it cannot be read.
    """
    from google.protobuf import message
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(records[i]).features.feature
    # array_record raises RuntimeError for damaged bytes.
    except (OSError, RuntimeError, ValueError, message.DecodeError) as error:
        raise decoding.CorruptImageError(f"its record cannot be read ({error})") from error
