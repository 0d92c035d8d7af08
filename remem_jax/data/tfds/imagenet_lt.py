"""Reads ImageNet-LT from a prepared ImageNet, by an index of its images.

TFDS's builder needs ImageNet's archives and writes the images again. If ImageNet is prepared
already, the lists of ImageNet-LT select its training images.

Source: Liu et al. 2019, https://arxiv.org/abs/1904.05160.
"""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.sources import TEST, TRAIN
from remem_jax.data.tfds import copies, examples

NAME = "imagenet_lt"
_PREPARE = f"tools/prepare_data.py {NAME}"


class Chosen(NamedTuple):
    """Reads selected examples of a split with known labels; see `sources.Split.read`."""

    read: Callable[[int], sources.Example]
    indices: np.ndarray
    labels: np.ndarray

    def __call__(self, i: int) -> sources.Example:
        example = self.read(int(self.indices[i]))
        if example.label != self.labels[i]:
            raise SettingError(
                f"The index of {NAME} does not fit the images of {registry.IMAGENET}; make it "
                f"again: remove it and run {_PREPARE}."
            )
        return example


def path(data_dir: str) -> pathlib.Path:
    """Returns the path of the index, which need not exist."""
    return copies.folder(data_dir) / "remem_jax" / f"{NAME}.npz"


def counts(data_dir: str) -> tuple[int, int] | None:
    """Returns the number of images of train and test in the index; None if there is none."""
    if not path(data_dir).is_file():
        return None
    stored = _read(path(data_dir))
    return len(stored[f"{TRAIN}_index"]), len(stored[f"{TEST}_index"])


def splits(copy: copies.Copy, data_dir: str) -> dict[str, sources.Split]:
    """Opens the splits in a copy of ImageNet.

    Raises:
        SettingError: If the index was made for another copy.
    """
    columns = examples.numbered(registry.RECORDS[NAME].classes)
    whole = copies.split(copy, TRAIN, f"imagenet2012 {TRAIN}", columns)
    stored = _read(path(data_dir))
    current = str(copy.builder.version), whole.examples
    indexed = str(stored["version"]), int(stored["examples"])
    if current != indexed:
        raise SettingError(
            f"{path(data_dir)} was made for ImageNet in version {indexed[0]} with {indexed[1]} "
            f"images, here is version {current[0]} with {current[1]}; make it again: remove it and "
            f"run {_PREPARE}."
        )
    opened = {}
    for split in (TRAIN, TEST):
        indices, labels = stored[f"{split}_index"], stored[f"{split}_label"]
        reader = Chosen(whole.read, indices, labels)
        digest = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
        noun = sources.Numbered(f"{NAME} {split}")
        opened[split] = sources.Split(reader, noun, len(indices), labels, f"{whole.key} {digest}")
    return opened


def read_list(file: pathlib.Path) -> dict[str, int]:
    """Reads a list with lines such as `train/n01440764/n01440764_190.JPEG 0` as name -> label.

    Raises:
        SettingError: If a line has another form.
    """
    labels = {}
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        name, _, label = line.rpartition(" ")
        if not (name.endswith(".JPEG") and label.isdecimal()):
            raise SettingError(
                f"{file}, line {number} is no line of a list of ImageNet-LT: {line[:80]!r}, "
                "expected one like 'train/n01440764/n01440764_190.JPEG 0'; download it again."
            )
        labels[name.rpartition("/")[2]] = int(label)
    return labels


def write(
    copy: copies.Copy, data_dir: str, lists: dict[str, dict[str, int]], rows: Iterable[int]
) -> None:
    """Writes the index, in the order of the lists.

    Args:
        copy: Copy of ImageNet.
        data_dir: TFDS's folder; "" is its default.
        lists: Lists of "train" and "test"; see `read_list`.
        rows: Range over the number of training images, or a progress bar over it.

    Raises:
        SettingError: If ImageNet lacks an image of the lists, or its label differs.
    """
    wanted = {file: label for labels in lists.values() for file, label in labels.items()}
    indices: dict[str, int] = {}
    records = copies.records(copy, TRAIN)
    for i in rows:
        features = examples.parsed(records, i)
        file = features["file_name"].bytes_list.value[0].decode()
        if file in wanted:
            _require_label(file, features["label"].int64_list.value[0], wanted[file])
            indices[file] = i
    lacking = [file for file in wanted if file not in indices]
    if lacking:
        raise SettingError(
            f"{registry.IMAGENET} lacks {len(lacking)} of the {len(wanted)} images of the lists, "
            f"such as {lacking[0]}: prepare it again from the whole ILSVRC2012_img_train.tar."
        )
    stored: dict[str, Any] = {"version": str(copy.builder.version), "examples": len(records)}
    for split, labels in lists.items():
        stored[f"{split}_index"] = np.asarray([indices[file] for file in labels], np.int64)
        stored[f"{split}_label"] = np.asarray(list(labels.values()), np.int32)
    target = path(data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{os.getpid()}_{target.name}")
    np.savez(partial, **stored)
    partial.replace(target)


def _require_label(file: str, label: int, wanted: int) -> None:
    if label != wanted:
        raise SettingError(
            f"{file} has label {label} in {registry.IMAGENET} and {wanted} in the lists of "
            f"ImageNet-LT: these are not its lists; see {_PREPARE} --instructions."
        )


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise SettingError(
            f"{file} cannot be read ({error}): remove it and run {_PREPARE}."
        ) from None
