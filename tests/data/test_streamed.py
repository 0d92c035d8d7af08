"""Streaming: what is read, that it resumes, and that neither threads nor processes change it."""

import errno
import io
import itertools
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from remem_jax import data, random_streams
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.custom import folders
from remem_jax.data.images import augment, boxes
from remem_jax.data.loaders import order, streamed, worker_processes
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, DataLoader

SIZE, AREA, SEED = 8, (0.3, 1.0), 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve JPEGs of two classes, no two of one size; two of them are large."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        height, width = (300, 200) if i < 2 else (10 + i, 30 - i)
        small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        path = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def part(folder: pathlib.Path) -> sources.Subset:
    """All of its training images."""
    split = folders.folder(str(folder)).splits["train"]
    labels = split.labels
    assert labels is not None
    return sources.Subset(split, np.arange(split.examples), labels)


def _loader(
    part: sources.Subset,
    *,
    area: tuple[float, float] = AREA,
    flip: bool = True,
    threads: int = 2,
    workers: int = 0,
    sharding: Any = None,
) -> DataLoader:
    return streamed.make_loader(
        {"train": part, "test": part},
        streamed.AugmentOptions(SIZE, area, flip, SEED),
        threads=threads,
        workers=workers,
        sharding=sharding,
    )


def _batches(
    loader: DataLoader, *, count: int, first_step: int = 0, stage: Stage = "teacher"
) -> list[Batch]:
    batches = loader.train(4, first_step, stage=stage)
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def _assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        jax.tree.map(np.testing.assert_array_equal, left, right)


def _pixels(part: sources.Subset, row: int) -> np.ndarray:
    """An image as Pillow decodes it."""
    encoded = part.split.read(int(part.rows[row])).image
    assert isinstance(encoded, bytes)
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _resized(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _assert_close(actual: np.ndarray, expected: np.ndarray, source: np.ndarray) -> None:
    """A grey level; where less of a large JPEG may have been decoded, not much on average."""
    off = np.abs(actual.astype(np.float64) - expected)
    if max(source.shape) >= 4 * SIZE:
        assert off.mean() < 4
    else:
        assert off.max() <= 1.01


def test_evaluation_shows_the_whole_images_in_order(part: sources.Subset) -> None:
    batches = list(_loader(part).evaluation("test", 4))

    images = np.concatenate([np.asarray(b.image)[b.mask] for b in batches]).astype(np.int32)
    labels = np.concatenate([np.asarray(b.label)[b.mask] for b in batches])
    np.testing.assert_array_equal(labels, part.labels)
    for row, actual in enumerate(images):
        assert np.abs(actual - _resized(_pixels(part, row))).max() <= 1


def test_the_last_batch_of_evaluation_is_filled_up_and_masked(part: sources.Subset) -> None:
    part = part._replace(rows=part.rows[:6], labels=part.labels[:6])

    first, last = _loader(part).evaluation("test", 4)

    assert first.image.shape == last.image.shape
    np.testing.assert_array_equal(last.mask, [True, True, False, False])


def test_training_goes_through_the_images_in_the_order_of_every_input(
    part: sources.Subset,
) -> None:
    batches = _batches(_loader(part, area=(1.0, 1.0), flip=False), count=5)

    rows = order.train_rows(np.arange(20), examples=len(part.rows), seed=SEED, stage="teacher")
    np.testing.assert_array_equal(np.concatenate([b.label for b in batches]), part.labels[rows])
    shown = np.concatenate([b.image for b in batches]).astype(np.int32)
    for row, actual in zip(rows, shown, strict=True):
        _assert_close(actual, _resized(_pixels(part, row)), _pixels(part, row))


def test_crops_are_those_of_the_view_on_the_device(part: sources.Subset) -> None:
    shown = np.concatenate([b.image for b in _batches(_loader(part), count=5)])

    rows = order.train_rows(np.arange(20), examples=len(part.rows), seed=SEED, stage="teacher")
    mirrored = 0
    for position, row in enumerate(rows):
        pixels = _pixels(part, row)
        drawn = random_streams.generator(SEED, "teacher", position // 4, "crops").random((4, 4))
        draws = drawn[position % 4]
        height, width = pixels.shape[:2]
        box = boxes.random_boxes(draws, height=height, width=width, area=AREA)
        batch = boxes.Boxes(*(jnp.full((1,), edge, jnp.float32) for edge in box))
        (expected,) = augment.crop_and_resize(jnp.asarray(pixels)[None], batch, SIZE)
        ways = [np.asarray(expected), np.asarray(expected)[:, ::-1]]
        off = [np.abs(shown[position] - way).max() for way in ways]
        _assert_close(shown[position], ways[int(np.argmin(off))], pixels)
        mirrored += off[1] < off[0]
    assert 3 < mirrored < 17


def test_whether_images_are_mirrored_changes_no_crop(part: sources.Subset) -> None:
    plain, flipped = (
        np.concatenate([b.image for b in _batches(_loader(part, flip=flip), count=5)])
        for flip in (False, True)
    )

    alike = (flipped == plain).all(axis=(1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (alike ^ mirrored).all()
    assert 3 < mirrored.sum() < 17


@pytest.mark.parametrize(("area", "flip"), [(AREA, False), ((1.0, 1.0), True)])
def test_teachers_and_students_see_an_image_cropped_and_mirrored_otherwise(
    part: sources.Subset, area: tuple[float, float], flip: bool
) -> None:
    part = part._replace(rows=part.rows[[3] * 4], labels=part.labels[[3] * 4])

    teacher, student, again = (
        np.concatenate([b.image for b in _batches(loader, count=5, stage=stage)])
        for loader in [_loader(part, area=area, flip=flip)]
        for stage in ("teacher", "student", "student")
    )

    np.testing.assert_array_equal(student, again)
    assert (student != teacher).any(axis=(1, 2, 3)).sum() > 3


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_batches_from_a_step_on_are_those_of_a_run_from_the_start(
    part: sources.Subset, first_step: int
) -> None:
    whole = _batches(_loader(part), count=first_step + 3)

    _assert_equal(_batches(_loader(part), count=3, first_step=first_step), whole[first_step:])


def test_the_number_of_threads_changes_nothing(part: sources.Subset) -> None:
    _assert_equal(
        _batches(_loader(part, threads=1), count=5), _batches(_loader(part, threads=7), count=5)
    )


def test_worker_processes_change_nothing(part: sources.Subset) -> None:
    _assert_equal(_batches(_loader(part), count=6), _batches(_loader(part, workers=2), count=6))


def test_workers_leave_signals_to_their_parent_and_one_that_is_killed_is_told(
    part: sources.Subset,
) -> None:
    batches = _loader(part, workers=1).train(4, 0, stage="teacher")
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, a scheduler: to all processes.
        os.kill(worker.pid or 0, number)
    time.sleep(0.2)
    alive = worker.is_alive()
    next(batches)

    worker.kill()

    with pytest.raises(SettingError, match=r"worker was ended by the system \(Killed\).*workers"):
        _ = [next(batches) for _ in range(5)]  # What it had made comes first.
    assert alive


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search"),
        OSError(errno.ENOSPC, "No space left on device"),  # Of a semaphore.
    ],
)
def test_a_full_shared_memory_is_told_with_its_size(error: Exception) -> None:
    with (
        pytest.raises(
            SettingError, match=r"/dev/shm is full \(.* MiB\).*--shm-size=3g.*workers to"
        ),
        worker_processes.explaining_errors(1, 2**31 + 1),
    ):
        raise error


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_reading_are_not_taken_for_those_of_workers(workers: int) -> None:
    with (
        pytest.raises(RuntimeError, match="another"),
        worker_processes.explaining_errors(workers, 1),
    ):
        raise RuntimeError("another")


def test_batches_may_be_divided_among_devices(part: sources.Subset) -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    divided = _batches(_loader(part, sharding=sharding), count=3)

    assert divided[0].image.sharding.is_equivalent_to(sharding, 4)
    _assert_equal(divided, _batches(_loader(part), count=3))


def test_the_view_of_what_is_streamed_is_the_range_alone(part: sources.Subset) -> None:
    loader = _loader(part)
    (batch,) = _batches(loader, count=1)

    for transform in (loader.train_transform, loader.evaluation_transform):
        np.testing.assert_allclose(
            transform(jax.random.key(0), batch.image),
            np.asarray(batch.image) / 127.5 - 1,
            atol=1e-6,
        )


def test_arrays_can_be_streamed(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    split = sources.in_memory(images, np.arange(3), "image")

    (batch,) = _loader(
        sources.Subset(split, np.arange(3), np.arange(3, dtype=np.int32))
    ).evaluation("test", 3)

    np.testing.assert_array_equal(batch.image, images)


def test_an_image_that_is_lost_on_the_way_is_named(
    folder: pathlib.Path, part: sources.Subset
) -> None:
    path = folder / "odd" / "11.jpg"
    lost = [i for i in range(len(part.rows)) if str(path) in part.split.name(i)]
    part = part._replace(rows=part.rows[lost], labels=part.labels[lost])
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(SettingError, match=r"11\.jpg could be read when the run began"):
            list(_loader(part).evaluation("test", 1))
    finally:
        path.with_suffix(".away").rename(path)


@pytest.fixture
def datasets(folder: pathlib.Path, tmp_path: pathlib.Path) -> Callable[[str], DataLoader]:
    """The folder as a data set, by the two inputs."""

    def make(kind: str) -> DataLoader:
        dataset = data.load(
            data.open_source("folder", path=str(folder), data_dir=""),
            data.Storage(kind, stored_size=400, resident_gib=1.0, cache=str(tmp_path), threads=1),
            validation=0.3,
            seed=SEED,
            corrupt_limit=0,
        )
        return data.make_loader(
            dataset, image_size=SIZE, crop_area=(1.0, 1.0), seed=SEED, threads=1, workers=0
        )

    return make


def test_both_inputs_show_the_same_images_in_the_same_order(datasets: Any) -> None:
    loaders = [datasets(kind) for kind in ("resident", "streamed")]

    assert [loader.kind for loader in loaders] == ["resident", "streamed"]
    for split in ("validation", "test"):
        shown = [list(loader.evaluation(split, 4)) for loader in loaders]
        for one, two in zip(*shown, strict=True):
            np.testing.assert_array_equal(one.label, two.label)
            np.testing.assert_array_equal(one.mask, two.mask)
            views = [
                np.asarray(loader.evaluation_transform(jax.random.key(0), b.image))
                for loader, b in zip(loaders, (one, two), strict=True)
            ]
            # Resident images were resized twice.
            assert np.abs(views[0] - views[1]).mean() < 0.03
    trained = [_batches(loader, count=5) for loader in loaders]
    for one, two in zip(*trained, strict=True):
        np.testing.assert_array_equal(one.label, two.label)
