"""Data sets that stream: decoded, cropped, mirrored and resized on the host, ahead of the device.

Grain reads, in threads and, if asked, in worker processes. What stands at a position is a
function of seed and position alone, so neither their number nor that of the hosts changes a
batch, and a run goes on from its step number.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from remem_jax.checks import SettingError
from remem_jax.data import augment, boxes, decoding, order
from remem_jax.data.preprocessing import Preprocessing
from remem_jax.data.sources import Part
from remem_jax.records import Batch, Batches, Feed

_LARGEST_CHUNK = 32  # Examples; Grain takes longer over an element than over most of one.
# For training, a large JPEG is decoded at a half, a quarter or an eighth where that leaves so many
# pixels along each side for one that is shown: the result hardly differs (Pillow's `reducing_gap`
# has the same figure). What is measured is decoded whole.
_SPARE = 2
_SHARED = "/dev/shm"  # Where workers put their batches.
_AT_ONCE = 4  # Batches of a worker that are made, wait or are read.


class Transform(NamedTuple):
    """What the host does to an image of training; see `augment.make_train_view`."""

    size: int
    crop_area: tuple[float, float]
    flip: bool
    seed: int


def make_feed(
    parts: Mapping[str, Part],
    transform: Transform,
    *,
    threads: int,
    workers: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Feed:
    """Batches of a data set that is read as it is needed.

    Args:
        parts: The data set.
        transform: What is done to images of training; those of evaluation are resized only.
        threads: That read and decode.
        workers: Processes among which the threads are divided for training; 0 leaves all to this
            one.
        sharding: How a batch is divided among devices, by its first axis: this process reads what
            its own devices get. None is the default device.

    Returns:
        The feed; its images are uint8 of `transform.size`.
    """

    def batches(examples: "_Examples", workers: int) -> Batches:
        mine = _places_here(examples.batch_size, sharding)
        examples = dataclasses.replace(examples, mine=mine, chunk=_chunk(len(mine)))
        chunks = grain.MapDataset.source(examples)
        whole = len(mine) // examples.chunk
        if workers:  # Of n, each makes every n-th batch.
            options = grain.ReadOptions(max(threads // workers, 1), prefetch_buffer_size=1)
            read = chunks.batch(whole, batch_fn=_joined).to_iter_dataset(options)
            # Of a worker that ends, Python's tracker removes what is left, and warns of it.
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
            options = grain.MultiprocessingOptions(num_workers=workers)
            read = read.mp_prefetch(options, worker_init_fn=_begin_worker)
        else:
            options = grain.ReadOptions(threads, prefetch_buffer_size=max(2 * whole, threads))
            read = chunks.to_iter_dataset(options).batch(whole, batch_fn=_joined)
        needed = workers * _AT_ONCE * len(mine) * transform.size**2 * 3
        with contextlib.ExitStack() as stack:
            with _told(workers, needed):
                batches = stack.enter_context(contextlib.closing(iter(read)))
            while True:
                with _told(workers, needed):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield _place(batch, examples.batch_size, sharding)

    def train(batch_size: int, first_step: int) -> Batches:
        part = parts["train"]
        return batches(_Examples(part, transform, batch_size, first_step), workers)

    def evaluation(name: str, batch_size: int) -> Batches:
        whole = transform._replace(crop_area=(1.0, 1.0), flip=False)
        # Processes take longer to start than most evaluations.
        return batches(_Examples(parts[name], whole, batch_size, first_step=None), workers=0)

    return Feed("streamed", train, evaluation, augment.streamed_view, augment.streamed_view)


def _begin_worker(index: int, workers: int) -> None:
    """Has a worker end when its parent does, and not before.

    Ctrl-C, and a scheduler, tell all processes; the parent still needs batches for its last step.
    """
    del index, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()


@contextlib.contextmanager
def _told(workers: int, needed: int) -> Iterator[None]:
    """Says what to do about workers that end, or cannot begin.

    Args:
        workers: How many there are.
        needed: Bytes of shared memory that their batches take.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not workers or not (code or isinstance(error, OSError)):
            raise
        ended = int(code.group(1)) if code else None
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM)
        if full or ended == -signal.SIGBUS:
            raise SettingError(
                f"Decoding workers cannot go on: {_SHARED} is full ({_mebibytes(_SHARED)}): docker "
                f"run --shm-size={max(math.ceil(needed / 2**30), 1)}g, or set config.data.workers "
                "to 0; the same command goes on."
            ) from error
        reason = f"exit code {ended}" if ended is not None else str(error)
        if ended is not None and ended < 0:
            reason = signal.strsignal(-ended) or reason
        raise SettingError(
            f"A decoding worker was ended by the system ({reason}), as it does where memory is "
            "full: give the job more memory, or set config.data.workers to fewer, or 0; the same "
            "command goes on."
        ) from error


def _mebibytes(folder: str) -> str:
    """Size of the file system that a folder is on, in words."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).total / 2**20:.4g} MiB"
    return "it cannot be read"


class _Piece(NamedTuple):
    """A `Batch`, or a part of one, on the host."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Examples:
    """What this process reads, in order and in pieces of a batch: a source of Grain's.

    Attributes:
        part: The split.
        transform: What is done to its images.
        batch_size: Of the global batch.
        first_step: Where training goes on; None is an evaluation.
        mine: Places in the global batch that this process fills.
        chunk: Examples in a piece; divides their number.
    """

    part: Part
    transform: Transform
    batch_size: int
    first_step: int | None
    mine: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    chunk: int = 1

    def __len__(self) -> int:
        if self.first_step is None:
            batches = -(-len(self.part.rows) // self.batch_size)
            return batches * len(self.mine) // self.chunk
        return sys.maxsize // 2  # Training has no end.

    def __getitem__(self, i: int) -> "_Piece":
        batch, begin = divmod(i * self.chunk, len(self.mine))
        places = self.mine[begin : begin + self.chunk]
        step, seed = (self.first_step or 0) + batch, self.transform.seed
        positions, examples = step * self.batch_size + places, len(self.part.rows)
        if self.first_step is None:
            rows, counted = order.evaluation_rows(positions, examples=examples)
        else:
            rows = order.train_rows(positions, examples=examples, seed=seed)
            counted = np.ones(len(rows), bool)
        size = self.transform.size
        draws = _draws(seed, step, self.batch_size)[places]
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for image, row, drawn in zip(images, rows.tolist(), draws, strict=True):
            self._show(image, row, drawn)
        return _Piece(images, self.part.labels[rows], counted)

    def _show(self, out: np.ndarray, row: int, draws: np.ndarray) -> None:
        """Writes what the models see of a row."""
        whole = self.transform.crop_area == (1.0, 1.0)
        image = self._whole(row) if whole else self._crop(row, draws[:4])
        if self.transform.flip and draws[4] < 0.5:
            # Two and a half times as fast as to copy image[:, ::-1].
            np.take(image, np.arange(len(image))[::-1], axis=1, out=out, mode="clip")
        else:
            out[...] = image

    def _whole(self, row: int) -> np.ndarray:
        """The image of a row, resized."""
        return Preprocessing(self.transform.size)(self._read(row))

    def _crop(self, row: int, draws: np.ndarray) -> np.ndarray:
        """A random crop of it, resized; of a large JPEG no more is decoded than shows."""
        size, area = self.transform.size, self.transform.crop_area
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
        down, across = image.shape[0] / height, image.shape[1] / width  # 1, or what JPEG scales by.
        left, top = box.left * across, box.top * down
        right = min(left + box.width * across, image.shape[1])
        bottom = min(top + box.height * down, image.shape[0])
        return decoding.resize(image, size, (left, top, right, bottom))

    def _read(self, row: int) -> bytes | np.ndarray:
        split, at = self.part.split, int(self.part.rows[row])
        try:
            return split.read(at).image
        except decoding.CorruptImageError as error:
            raise _gone(split.name(at), error) from error


def _chunk(examples: int) -> int:
    """Examples in a piece: not many, so that all threads have some, but whole pieces to a batch."""
    return max(size for size in range(1, min(examples, _LARGEST_CHUNK) + 1) if not examples % size)


def _joined(pieces: Sequence["_Piece"]) -> "_Piece":
    return _Piece(*(np.concatenate(leaves) for leaves in zip(*pieces, strict=True)))


@functools.lru_cache(maxsize=16)  # The pieces of a few batches are in work.
def _draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Five uniform numbers for every image of a global batch: for its box, and to mirror it."""
    return np.random.default_rng((seed, step)).random((batch_size, 5))


def _gone(name: str, error: Exception) -> SettingError:
    return SettingError(
        f"{name} could be read when the run began and cannot be now ({error}): put it back; the "
        "same command goes on."
    )


def _places_here(batch_size: int, sharding: jax.sharding.NamedSharding | None) -> np.ndarray:
    """Places in a global batch of what the devices of this process get, in order."""
    every = np.arange(batch_size)
    if sharding is None:
        return every
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([every[one] for one in slices]))


def _place(piece: _Piece, batch_size: int, sharding: jax.sharding.NamedSharding | None) -> Batch:
    """A global batch on the devices, of what this process has read of it."""
    if sharding is None:
        return Batch(*jax.device_put(tuple(piece)))
    place = jax.make_array_from_process_local_data
    return Batch(*(place(sharding, one, (batch_size, *one.shape[1:])) for one in piece))
