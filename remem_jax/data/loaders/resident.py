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
from remem_jax.data.sources import TRAIN, UNLABELLED, VALIDATION
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Batches, DataLoader, TrainBatches

REFIT = "refit"  # Images of validation in the shape of the training images.


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
            training images. So are those of `REFIT`, which stand for validation in a refit if its
            images have another shape.
        evaluated: Preprocessing of evaluation images after they are stored.
        crop_area: See `augment.make_train_transform`.
        flip: See `augment.make_train_transform`.
        balance: See `order.TrainOrder`.
        seed: Seed of the order of training.
        sharding: Sharding of a batch along its first axis; every device then has the whole data
            set. None is the default device.
        unlabelled_share: Share of unlabelled images in the batches of `distillation`.

    Returns:
        The loader; its images have their stored size. It has a `refit` if there are images of
        validation, which must then have the shape of the training images, unless there is `REFIT`.
    """
    stored = {name: put(split, sharding) for name, split in splits.items()}
    take, take_any = _make_take(sharding), _make_take_any(sharding)

    unlabelled = stored.get(UNLABELLED)

    def training(*names: str) -> tuple[TrainBatches, TrainBatches]:
        labels = np.concatenate([np.asarray(splits[name].label) for name in names])
        train_order = order.TrainOrder(labels, balance, seed)
        labelled = tuple(stored[name] for name in names)
        return _make_training(take_any, labelled, train_order, unlabelled, unlabelled_share)

    def evaluation(name: str, batch_size: int) -> Batches:
        split = stored[name]
        examples = len(split.label)
        for start in range(0, examples, batch_size):
            positions = np.arange(start, start + batch_size)
            yield take(split, *order.evaluation_rows(positions, examples=examples))

    loader = DataLoader(
        "resident",
        *training(TRAIN),
        evaluation,
        augment.make_train_transform(size=evaluated.image_size, crop_area=crop_area, flip=flip),
        augment.make_evaluation_transform(evaluated),
    )
    others = [name for name in (REFIT, VALIDATION) if name in splits]
    if not others:
        return loader
    train, distillation = training(TRAIN, others[0])
    return loader._replace(refit=loader._replace(train=train, distillation=distillation))


def _make_training(
    take_any: Callable[[tuple[Split, ...], np.ndarray], Batch],
    labelled: tuple[Split, ...],
    train_order: order.TrainOrder,
    unlabelled: Split | None,
    share: float,
) -> tuple[TrainBatches, TrainBatches]:
    """Builds `train` and `distillation` of a loader.

    Args:
        take_any: Return value of `_make_take_any`.
        labelled: Splits of the images with labels.
        train_order: Order of these images, one split after another.
        unlabelled: Images without labels; None if there are none.
        share: Share of them in a batch.
    """

    def train(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        step = first_step
        while True:
            positions = np.arange(step * batch_size, (step + 1) * batch_size)
            yield take_any(labelled, train_order.rows(positions, stage=stage))
            step += 1

    if unlabelled is None:
        return train, train
    everything, images = (*labelled, unlabelled), len(unlabelled.label)

    def distillation(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        step, mixed = first_step, order.partly_labelled(train_order, images, share, batch_size)
        while True:
            positions = np.arange(step * batch_size, (step + 1) * batch_size)
            yield take_any(everything, mixed.rows(positions, stage=stage))
            step += 1

    return train, distillation


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


def _make_take_any(
    sharding: jax.sharding.NamedSharding | None,
) -> Callable[[tuple[Split, ...], np.ndarray], Batch]:
    """Builds the function that gathers a batch from splits, whose rows follow each other."""

    @functools.partial(jax.jit, out_shardings=sharding)
    def gather(splits: tuple[Split, ...], rows: jax.Array) -> Batch:
        first, *others = splits
        start = len(first.label)
        within = jnp.where(rows < start, rows, 0)
        images, labels = first.image[within], first.label[within]
        for split in others:
            inside = (rows >= start) & (rows < start + len(split.label))
            within = jnp.where(inside, rows - start, 0)
            images = jnp.where(inside[:, None, None, None], split.image[within], images)
            labels = jnp.where(inside, split.label[within], labels)
            start += len(split.label)
        return Batch(images, labels, jnp.ones(rows.shape, bool))

    return lambda splits, rows: gather(splits, rows.astype(np.int32))
