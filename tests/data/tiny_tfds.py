"""Writes tiny data sets in TFDS's formats with TFDS's builders, without TensorFlow."""

import io
import json
import pathlib
import shutil
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX.record_writer
import tensorflow_datasets
from array_record.python import array_record_data_source
from PIL import Image

Examples = tuple[np.ndarray, np.ndarray]  # Images and labels.


def write(
    name: str,
    data_dir: pathlib.Path,
    splits: dict[str, Examples],
    *,
    texts: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> pathlib.Path:
    """Prepares the TFDS data set `name` from the given images and returns its folder.

    Only the source of the examples differs: features, class names and storage are those of
    the real builder. `texts` has the values of some features; the others are neutral.
    """
    builder: Any = tensorflow_datasets.builder(name, data_dir=str(data_dir), try_gcs=False)
    features = builder.info.features
    builder._split_generators = lambda *_, **__: {
        split: _examples(features, *examples, texts) for split, examples in splits.items()
    }
    builder.download_and_prepare(file_format="array_record")
    return pathlib.Path(builder.data_dir)


def as_tfrecord(folder: pathlib.Path, target: pathlib.Path, *, shards: int = 1) -> None:
    """Copies the output of `write` as TFRecord: the same records in `shards` files per split.

    tensorboardX writes the frames; TFDS defines the names of the files and the metadata.
    """
    target.mkdir(parents=True)
    for file in folder.glob("*.txt"):
        shutil.copy(file, target)
    shutil.copy(folder / "features.json", target)
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        name = f"{info['name']}-{split['name']}"
        records = _stored(folder, name)
        cuts = [list(cut) for cut in np.array_split(np.arange(len(records)), shards)]
        for i, cut in enumerate(cuts):
            file = f"{name}.tfrecord-{i:05}-of-{shards:05}"
            write_frames(target / file, [records[j] for j in cut])
        split["shardLengths"] = [str(len(cut)) for cut in cuts]
    info["fileFormat"] = "tfrecord"
    (target / "dataset_info.json").write_text(json.dumps(info))


def write_frames(path: pathlib.Path, records: list[bytes]) -> None:
    """Writes a TFRecord file."""
    writer = tensorboardX.record_writer.RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()


def _stored(folder: pathlib.Path, name: str) -> list[bytes]:
    files = [str(file) for file in sorted(folder.glob(f"{name}.array_record*"))]
    return list(array_record_data_source.ArrayRecordDataSource(files))


def _examples(
    features: Any, images: np.ndarray, labels: np.ndarray, texts: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        other = {
            key: texts[key][i] if key in texts else _neutral(feature, i)
            for key, feature in features.items()
            if key not in ("image", "label")
        }
        yield f"{i:06d}", {**other, "image": png(image), "label": int(label)}


def _neutral(feature: Any, i: int) -> Any:
    if isinstance(feature, tensorflow_datasets.features.Text):
        return f"{i:06d}"
    if isinstance(feature, tensorflow_datasets.features.Image):
        return png(np.zeros((1, 1), np.uint8))
    return np.zeros(feature.shape, feature.np_dtype)


def png(image: np.ndarray) -> bytes:
    """Encodes an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
