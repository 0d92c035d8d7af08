"""Data loader of images that are resident on the device as uint8.

Crops, flips and resizing are part of the jitted step (`augment`).
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax.data.images import augment
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.loaders import order
from remem_jax.data.sources import TRAIN, UNLABELLED
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Batches, DataLoader


class Split(NamedTuple):
    """Images of one split in memory.

    Attributes:
        image: uint8, (example, height, width, channel).
        label: int32, (example,).
    """

    image: np.ndarray | jax.Array
    label: np.ndarray | jax.Array


def make_loader(
    splits: Mapping[str, Split],
    evaluated: Preprocessing,
    *,
    crop_area: tuple[float, float],
    flip: bool,
    balance: float,
    seed: int,
    sharding: jax.sharding.NamedSharding | None = None,
    unlabelled_share: float = 0.0,
) -> DataLoader:
    """Builds the loader of a data set that is copied to the device.

    Args:
        splits: The data set, in memory; "unlabelled" are images without labels, of the shape of the
            training images.
        evaluated: Preprocessing of evaluation images after they are stored.
        crop_area: See `augment.make_train_transform`.
        flip: See `augment.make_train_transform`.
        balance: See `order.TrainOrder`.
        seed: Seed of the order of training.
        sharding: Sharding of a batch along its first axis; every device then has the whole data
            set. None is the default device.
        unlabelled_share: Share of unlabelled images in the batches of `distillation`.

    Returns:
        The loader; its images have their stored size.
    """
    stored = {name: put(split, sharding) for name, split in splits.items()}
    take, take_either = _make_take(sharding), _make_take_either(sharding)
    train_order = order.TrainOrder(np.asarray(splits[TRAIN].label), balance, seed)

    def train(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        split, step = stored[TRAIN], first_step
        counted = np.ones(batch_size, bool)
        while True:
            positions = np.arange(step * batch_size, (step + 1) * batch_size)
            yield take(split, train_order.rows(positions, stage=stage), counted)
            step += 1

    def distillation(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        both, step = (stored[TRAIN], stored[UNLABELLED]), first_step
        mixed = order.partly_labelled(train_order, len(both[1].label), unlabelled_share, batch_size)
        while True:
            positions = np.arange(step * batch_size, (step + 1) * batch_size)
            yield take_either(*both, mixed.rows(positions, stage=stage))
            step += 1

    def evaluation(name: str, batch_size: int) -> Batches:
        split = stored[name]
        examples = len(split.label)
        for start in range(0, examples, batch_size):
            positions = np.arange(start, start + batch_size)
            yield take(split, *order.evaluation_rows(positions, examples=examples))

    return DataLoader(
        "resident",
        train,
        distillation if UNLABELLED in splits else train,
        evaluation,
        augment.make_train_transform(size=evaluated.image_size, crop_area=crop_area, flip=flip),
        augment.make_evaluation_transform(evaluated),
    )


def memory() -> int:
    """Returns the memory of a device in bytes; for a CPU, that of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def put(split: Split, sharding: jax.sharding.NamedSharding | None = None) -> Split:
    """Copies a split to the device, or to every device of a mesh."""
    if sharding is None:
        return Split(jax.device_put(split.image), jax.device_put(split.label))
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return Split(
        jax.make_array_from_process_local_data(everywhere, np.asarray(split.image)),
        jax.make_array_from_process_local_data(everywhere, np.asarray(split.label)),
    )


def _make_take(
    sharding: jax.sharding.NamedSharding | None,
) -> Callable[[Split, np.ndarray, np.ndarray], Batch]:
    """Builds the jitted function that gathers a batch with the given sharding."""

    @functools.partial(jax.jit, out_shardings=sharding)
    def gather(split: Split, rows: jax.Array, counted: jax.Array) -> Batch:
        return Batch(split.image[rows], split.label[rows], counted)

    return lambda split, rows, counted: gather(split, rows.astype(np.int32), counted)


def _make_take_either(
    sharding: jax.sharding.NamedSharding | None,
) -> Callable[[Split, Split, np.ndarray], Batch]:
    """Builds the function that gathers a batch from two splits, whose rows follow each other."""

    @functools.partial(jax.jit, out_shardings=sharding)
    def gather(first: Split, second: Split, rows: jax.Array) -> Batch:
        later = rows >= len(first.label)
        in_first = jnp.where(later, 0, rows)
        in_second = jnp.where(later, rows - len(first.label), 0)
        return Batch(
            jnp.where(later[:, None, None, None], second.image[in_second], first.image[in_first]),
            jnp.where(later, second.label[in_second], first.label[in_first]),
            jnp.ones(rows.shape, bool),
        )

    return lambda first, second, rows: gather(first, second, rows.astype(np.int32))
