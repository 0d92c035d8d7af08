"""Data loader that decodes, crops, flips and resizes images on the host, ahead of the device.

Grain reads in threads and, optionally, worker processes. The example at a position is a function of
seed, stage and position alone. So the number of threads, processes or hosts changes no batch, and a
run resumes from its step number.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from remem_jax import random_streams
from remem_jax.checks import SettingError
from remem_jax.data.images import augment, boxes, decoding
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.loaders import order, worker_processes
from remem_jax.data.sources import TRAIN, UNLABELLED, VALIDATION, Subset, joined
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Batches, DataLoader, TrainBatches

_LARGEST_CHUNK = 32  # Examples per element of Grain, whose overhead per element is large.
# For training, a large JPEG is decoded at a half, a quarter or an eighth of its size if each side
# still has this many pixels for each one of the result, which then hardly differs (Pillow's
# `reducing_gap` recommends the same). For evaluation it is decoded at full size.
_SPARE = 2
_BATCHES_PER_WORKER = 4  # Batches in shared memory: being made, waiting or being read.


class AugmentOptions(NamedTuple):
    """Order and transforms of training images on the host.

    Attributes:
        size: See `augment.make_train_transform`.
        crop_area: See `augment.make_train_transform`.
        flip: See `augment.make_train_transform`.
        balance: See `order.TrainOrder`.
        seed: Seed of the order, the crops and the flips.
        evaluation_crop: `Preprocessing.crop` of evaluation images.
    """

    size: int
    crop_area: tuple[float, float]
    flip: bool
    balance: float
    seed: int
    evaluation_crop: float


def make_loader(
    splits: Mapping[str, Subset],
    augmentation: AugmentOptions,
    *,
    threads: int,
    workers: int,
    sharding: jax.sharding.NamedSharding | None = None,
    unlabelled_share: float = 0.0,
) -> DataLoader:
    """Builds the loader of a data set that is read during training.

    Args:
        splits: The data set; "unlabelled" are images without labels.
        augmentation: Order of training images, and transforms.
        threads: Number of threads that read and decode.
        workers: Number of processes that share the threads for training; 0 is this process alone.
        sharding: Sharding of a batch along its first axis; this process reads the examples of its
            own devices. None is the default device.
        unlabelled_share: Share of unlabelled images in the batches of `distillation`.

    Returns:
        The loader; its images are uint8 of `augmentation.size`. It has a `refit` if there are
        images of validation.
    """

    def batches(examples: "_Examples", workers: int) -> Batches:
        local = _local_positions(examples.batch_size, sharding)
        examples = dataclasses.replace(examples, local=local, chunk=_chunk(len(local)))
        chunks = grain.MapDataset.source(examples)
        pieces = len(local) // examples.chunk
        if workers:  # Each of n workers makes every n-th batch.
            options = grain.ReadOptions(max(threads // workers, 1), prefetch_buffer_size=1)
            read = chunks.batch(pieces, batch_fn=_joined).to_iter_dataset(options)
            # Python's resource tracker warns when it removes shared memory of a dead worker.
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
            options = grain.MultiprocessingOptions(num_workers=workers)
            read = read.mp_prefetch(options, worker_init_fn=worker_processes.begin)
        else:
            options = grain.ReadOptions(threads, prefetch_buffer_size=max(2 * pieces, threads))
            read = chunks.to_iter_dataset(options).batch(pieces, batch_fn=_joined)
        needed = workers * _BATCHES_PER_WORKER * len(local) * augmentation.size**2 * 3
        with contextlib.ExitStack() as stack:
            with worker_processes.explaining_errors(workers, needed):
                batches = stack.enter_context(contextlib.closing(iter(read)))
            while True:
                with worker_processes.explaining_errors(workers, needed):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield _place(batch, examples.batch_size, sharding)

    def training(subset: Subset) -> tuple[TrainBatches, TrainBatches]:
        unlabelled = splits.get(UNLABELLED)
        return _make_training(
            lambda examples: batches(examples, workers),
            subset,
            augmentation,
            unlabelled,
            unlabelled_share,
        )

    def evaluation(name: str, batch_size: int) -> Batches:
        # Processes would take longer to start than most evaluations take.
        return batches(_Examples(splits[name], augmentation, batch_size, stage=None), workers=0)

    loader = DataLoader(
        "streamed",
        *training(splits[TRAIN]),
        evaluation,
        augment.streamed_transform,
        augment.streamed_transform,
    )
    if VALIDATION not in splits:
        return loader
    train, distillation = training(joined(splits[TRAIN], splits[VALIDATION]))
    return loader._replace(refit=loader._replace(train=train, distillation=distillation))


def _make_training(
    read: Callable[["_Examples"], Batches],
    subset: Subset,
    augmentation: AugmentOptions,
    unlabelled: Subset | None,
    share: float,
) -> tuple[TrainBatches, TrainBatches]:
    """Builds `train` and `distillation` of a loader.

    Args:
        read: Reads batches of examples.
        subset: Images with labels.
        augmentation: Order of training images, and transforms.
        unlabelled: Images without labels; None if there are none.
        share: Share of them in a batch.
    """
    train_order = order.TrainOrder(subset.labels, augmentation.balance, augmentation.seed)

    def train(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        return read(_Examples(subset, augmentation, batch_size, stage, train_order, first_step))

    if unlabelled is None:
        return train, train
    both, images = joined(subset, unlabelled), len(unlabelled.rows)

    def distillation(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        mixed = order.partly_labelled(train_order, images, share, batch_size)
        return read(_Examples(both, augmentation, batch_size, stage, mixed, first_step))

    return train, distillation


class _Piece(NamedTuple):
    """A `Batch`, or a piece of one, on the host."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Examples:
    """The examples that this process reads, as a Grain source of pieces of batches.

    Attributes:
        subset: The split.
        augmentation: Transforms of training images.
        batch_size: Global batch size.
        stage: Stage of training; None is an evaluation.
        train_order: Order of training; None in an evaluation.
        first_step: Step at which training starts or resumes.
        local: Positions in the global batch that this process reads.
        chunk: Number of examples in a piece; divides the number of `local` positions.
    """

    subset: Subset
    augmentation: AugmentOptions
    batch_size: int
    stage: Stage | None
    train_order: order.TrainOrder | order.PartlyLabelledOrder | None = None
    first_step: int = 0
    local: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    chunk: int = 1

    def __len__(self) -> int:
        if self.stage is None:
            batches = -(-len(self.subset.rows) // self.batch_size)
            return batches * len(self.local) // self.chunk
        return sys.maxsize // 2  # Training has no end.

    def __getitem__(self, i: int) -> "_Piece":
        batch, begin = divmod(i * self.chunk, len(self.local))
        places = self.local[begin : begin + self.chunk]
        step = self.first_step + batch
        positions = step * self.batch_size + places
        if self.stage is None or self.train_order is None:
            rows, counted = order.evaluation_rows(positions, examples=len(self.subset.rows))
            draws, mirrored = None, np.zeros(len(rows), bool)
        else:
            rows = self.train_order.rows(positions, stage=self.stage)
            counted = np.ones(len(rows), bool)
            draws, mirrored = self._draws(self.stage, step, places)
        size = self.augmentation.size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for i, row in enumerate(rows.tolist()):
            self._write(images[i], row, None if draws is None else draws[i], bool(mirrored[i]))
        return _Piece(images, self.subset.labels[rows], counted)

    def _draws(
        self, stage: Stage, step: int, places: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Returns the draws of boxes at these positions, None for whole images; and the flips."""
        stream = self.augmentation.seed, stage, step, self.batch_size
        is_whole = self.augmentation.crop_area == (1.0, 1.0)
        mirrored = np.zeros(len(places), bool)
        if self.augmentation.flip:
            mirrored = _flips(*stream)[places]
        return None if is_whole else _crops(*stream)[places], mirrored

    def _write(self, out: np.ndarray, row: int, draws: np.ndarray | None, mirrored: bool) -> None:
        """Writes the models' input for a row."""
        image = self._whole(row) if draws is None else self._crop(row, draws)
        if mirrored:
            # 2.5 times as fast as copying image[:, ::-1].
            np.take(image, np.arange(len(image))[::-1], axis=1, out=out, mode="clip")
        else:
            out[...] = image

    def _whole(self, row: int) -> np.ndarray:
        """Returns the image of a row, resized; in an evaluation, as its preprocessing says."""
        crop = self.augmentation.evaluation_crop if self.stage is None else 0.0
        return Preprocessing(self.augmentation.size, crop=crop)(self._read(row))

    def _crop(self, row: int, draws: np.ndarray) -> np.ndarray:
        """Returns a random crop, resized; a large JPEG is decoded only at the resolution needed."""
        size, area = self.augmentation.size, self.augmentation.crop_area
        image = self._read(row)
        if isinstance(image, bytes):
            with decoding.opened(image) as opened:
                height, width = opened.size
                box = boxes.random_boxes(draws, height=height, width=width, area=area)
                spare = _SPARE * size
                image = opened.decode(
                    (math.ceil(spare * height / box.height), math.ceil(spare * width / box.width))
                )
        else:
            height, width = image.shape[:2]
            box = boxes.random_boxes(draws, height=height, width=width, area=area)
        down, across = (
            image.shape[0] / height,
            image.shape[1] / width,
        )  # 1, or the scale of a JPEG decoded smaller.
        left, top = box.left * across, box.top * down
        right = min(left + box.width * across, image.shape[1])
        bottom = min(top + box.height * down, image.shape[0])
        return decoding.resize(image, size, (left, top, right, bottom))

    def _read(self, row: int) -> bytes | np.ndarray:
        split, index = self.subset.split, int(self.subset.rows[row])
        try:
            return split.read(index).image
        except decoding.CorruptImageError as error:
            raise _unreadable(split.name(index), error) from error


def _chunk(examples: int) -> int:
    """Returns the number of examples per piece, a divisor of `examples`."""
    return max(size for size in range(1, min(examples, _LARGEST_CHUNK) + 1) if not examples % size)


def _joined(pieces: Sequence["_Piece"]) -> "_Piece":
    return _Piece(*(np.concatenate(leaves) for leaves in zip(*pieces, strict=True)))


@functools.lru_cache(maxsize=16)  # Pieces of a few batches are read at the same time.
def _crops(seed: int, stage: Stage, step: int, batch_size: int) -> np.ndarray:
    """Draws four uniform numbers for the box of every image of a global batch."""
    return random_streams.generator(seed, stage, step, "crops").random((batch_size, 4))


@functools.lru_cache(maxsize=16)
def _flips(seed: int, stage: Stage, step: int, batch_size: int) -> np.ndarray:
    """Draws which images of a global batch are mirrored, each with probability 0.5."""
    return random_streams.generator(seed, stage, step, "flips").random(batch_size) < 0.5


def _unreadable(name: str, error: Exception) -> SettingError:
    return SettingError(
        f"{name} could be read when the run began and cannot be now ({error}): put it back; the "
        "same command goes on."
    )


def _local_positions(batch_size: int, sharding: jax.sharding.NamedSharding | None) -> np.ndarray:
    """Returns the sorted positions in a global batch of the examples on this process's devices."""
    positions = np.arange(batch_size)
    if sharding is None:
        return positions
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([positions[rows] for rows in slices]))


def _place(piece: _Piece, batch_size: int, sharding: jax.sharding.NamedSharding | None) -> Batch:
    """Assembles a global batch on the devices from the examples that each process has read."""
    if sharding is None:
        return Batch(*jax.device_put(tuple(piece)))
    place = jax.make_array_from_process_local_data
    return Batch(*(place(sharding, leaf, (batch_size, *leaf.shape[1:])) for leaf in piece))
