"""Streamed batches: their content, resuming, and independence of threads and processes."""

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
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.loaders import order, streamed, worker_processes
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, DataLoader

SIZE, AREA, SEED = 8, (0.3, 1.0), 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve JPEGs in two classes, all of different sizes; two are large."""
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
def subset(folder: pathlib.Path) -> sources.Subset:
    """All training images of `folder`."""
    split = folders.folder(str(folder)).splits["train"]
    labels = split.labels
    assert labels is not None
    return sources.Subset(split, np.arange(split.examples), labels)


def _loader(
    subset: sources.Subset,
    *,
    area: tuple[float, float] = AREA,
    flip: bool = True,
    balance: float = 0.0,
    crop: float = 0.0,
    threads: int = 2,
    workers: int = 0,
    sharding: Any = None,
) -> DataLoader:
    return streamed.make_loader(
        {"train": subset, "test": subset},
        streamed.AugmentOptions(SIZE, area, flip, balance, SEED, crop),
        threads=threads,
        workers=workers,
        sharding=sharding,
    )


def _batches(
    loader: DataLoader, *, count: int, first_step: int = 0, stage: Stage = "teacher"
) -> list[Batch]:
    batches = loader.train(4, first_step, stage=stage)
    result = list(itertools.islice(batches, count))
    batches.close()
    return result


def _assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, left, right)


def _pixels(subset: sources.Subset, row: int) -> np.ndarray:
    """Decodes an image with Pillow."""
    encoded = subset.split.read(int(subset.rows[row])).image
    assert isinstance(encoded, bytes)
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _resized(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _assert_close(actual: np.ndarray, expected: np.ndarray, source: np.ndarray) -> None:
    """Checks equality to one grey level, or on average if a large JPEG may be decoded reduced."""
    errors = np.abs(actual.astype(np.float64) - expected)
    if max(source.shape) >= 4 * SIZE:
        assert errors.mean() < 4
    else:
        assert errors.max() <= 1.01


def test_evaluation_yields_whole_images_in_order(subset: sources.Subset) -> None:
    batches = list(_loader(subset).evaluation("test", 4))

    images = np.concatenate([np.asarray(b.image)[b.mask] for b in batches]).astype(np.int32)
    labels = np.concatenate([np.asarray(b.label)[b.mask] for b in batches])
    np.testing.assert_array_equal(labels, subset.labels)
    for row, actual in enumerate(images):
        assert np.abs(actual - _resized(_pixels(subset, row))).max() <= 1


def test_the_last_evaluation_batch_is_padded_and_masked(subset: sources.Subset) -> None:
    subset = subset._replace(rows=subset.rows[:6], labels=subset.labels[:6])

    first, last = _loader(subset).evaluation("test", 4)

    assert first.image.shape == last.image.shape
    np.testing.assert_array_equal(last.mask, [True, True, False, False])


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_training_follows_the_order_shared_by_all_inputs(
    subset: sources.Subset, balance: float
) -> None:
    loader = _loader(subset, area=(1.0, 1.0), flip=False, balance=balance)
    batches = _batches(loader, count=5)

    train_order = order.TrainOrder(subset.labels, balance, SEED)
    rows = train_order.rows(np.arange(20), stage="teacher")
    np.testing.assert_array_equal(np.concatenate([b.label for b in batches]), subset.labels[rows])
    images = np.concatenate([b.image for b in batches]).astype(np.int32)
    for row, actual in zip(rows, images, strict=True):
        _assert_close(actual, _resized(_pixels(subset, row)), _pixels(subset, row))


def test_crops_match_the_transform_on_the_device(subset: sources.Subset) -> None:
    images = np.concatenate([b.image for b in _batches(_loader(subset), count=5)])

    rows = order.TrainOrder(subset.labels, 0.0, SEED).rows(np.arange(20), stage="teacher")
    mirrored = 0
    for position, row in enumerate(rows):
        pixels = _pixels(subset, row)
        drawn = random_streams.generator(SEED, "teacher", position // 4, "crops").random((4, 4))
        draws = drawn[position % 4]
        height, width = pixels.shape[:2]
        box = boxes.random_boxes(draws, height=height, width=width, area=AREA)
        batch = boxes.Boxes(*(jnp.full((1,), edge, jnp.float32) for edge in box))
        (expected,) = augment.crop_and_resize(jnp.asarray(pixels)[None], batch, SIZE)
        candidates = [np.asarray(expected), np.asarray(expected)[:, ::-1]]
        errors = [np.abs(images[position] - candidate).max() for candidate in candidates]
        _assert_close(images[position], candidates[int(np.argmin(errors))], pixels)
        mirrored += errors[1] < errors[0]
    assert 3 < mirrored < 17


def test_mirroring_does_not_change_the_crops(subset: sources.Subset) -> None:
    plain, flipped = (
        np.concatenate([b.image for b in _batches(_loader(subset, flip=flip), count=5)])
        for flip in (False, True)
    )

    alike = (flipped == plain).all(axis=(1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (alike ^ mirrored).all()
    assert 3 < mirrored.sum() < 17


@pytest.mark.parametrize(("area", "flip"), [(AREA, False), ((1.0, 1.0), True)])
def test_teachers_and_students_get_different_crops_and_flips(
    subset: sources.Subset, area: tuple[float, float], flip: bool
) -> None:
    subset = subset._replace(rows=subset.rows[[3] * 4], labels=subset.labels[[3] * 4])

    teacher, student, again = (
        np.concatenate([b.image for b in _batches(loader, count=5, stage=stage)])
        for loader in [_loader(subset, area=area, flip=flip)]
        for stage in ("teacher", "student", "student")
    )

    np.testing.assert_array_equal(student, again)
    assert (student != teacher).any(axis=(1, 2, 3)).sum() > 3


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_resuming_at_a_step_gives_the_batches_of_an_uninterrupted_run(
    subset: sources.Subset, first_step: int
) -> None:
    whole = _batches(_loader(subset), count=first_step + 3)

    _assert_equal(_batches(_loader(subset), count=3, first_step=first_step), whole[first_step:])


def test_the_number_of_threads_changes_nothing(subset: sources.Subset) -> None:
    _assert_equal(
        _batches(_loader(subset, threads=1), count=5), _batches(_loader(subset, threads=7), count=5)
    )


def test_worker_processes_change_nothing(subset: sources.Subset) -> None:
    _assert_equal(_batches(_loader(subset), count=6), _batches(_loader(subset, workers=2), count=6))


def test_workers_ignore_signals_and_a_killed_worker_is_reported(
    subset: sources.Subset,
) -> None:
    batches = _loader(subset, workers=1).train(4, 0, stage="teacher")
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and schedulers signal all processes.
        os.kill(worker.pid or 0, number)
    time.sleep(0.2)
    alive = worker.is_alive()
    next(batches)

    worker.kill()

    with pytest.raises(SettingError, match=r"worker was ended by the system \(Killed\).*workers"):
        _ = [next(batches) for _ in range(5)]  # Batches that were ready come first.
    assert alive


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search"),
        OSError(errno.ENOSPC, "No space left on device"),  # Raised when a semaphore is created.
    ],
)
def test_full_shared_memory_is_reported_with_its_size(error: Exception) -> None:
    with (
        pytest.raises(
            SettingError, match=r"/dev/shm is full \(.* MiB\).*--shm-size=3g.*workers to"
        ),
        worker_processes.explaining_errors(1, 2**31 + 1),
    ):
        raise error


@pytest.mark.parametrize("workers", [0, 1])
def test_other_read_errors_are_not_reported_as_worker_errors(workers: int) -> None:
    with (
        pytest.raises(RuntimeError, match="another"),
        worker_processes.explaining_errors(workers, 1),
    ):
        raise RuntimeError("another")


def test_batches_may_be_sharded_over_devices(subset: sources.Subset) -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    sharded = _batches(_loader(subset, sharding=sharding), count=3)

    assert sharded[0].image.sharding.is_equivalent_to(sharding, 4)
    _assert_equal(sharded, _batches(_loader(subset), count=3))


def test_the_device_transform_of_streamed_images_only_rescales(subset: sources.Subset) -> None:
    loader = _loader(subset)
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


def test_an_image_lost_during_training_is_named(
    folder: pathlib.Path, subset: sources.Subset
) -> None:
    path = folder / "odd" / "11.jpg"
    lost = [i for i in range(len(subset.rows)) if str(path) in subset.split.name(i)]
    subset = subset._replace(rows=subset.rows[lost], labels=subset.labels[lost])
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(SettingError, match=r"11\.jpg could be read when the run began"):
            list(_loader(subset).evaluation("test", 1))
    finally:
        path.with_suffix(".away").rename(path)


@pytest.fixture
def datasets(folder: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., DataLoader]:
    """Makes a data loader of the folder, for either input."""

    def make(kind: str, crop: float = 0.0) -> DataLoader:
        dataset = data.load(
            data.open_source("folder", path=str(folder), data_dir=""),
            data.Storage(kind, stored_size=400, resident_gib=1.0, cache=str(tmp_path), threads=1),
            data.Rules(validation=0.3, seed=SEED, near_duplicates=False),
            corrupt_limit=0,
        )
        return data.make_loader(
            dataset,
            Preprocessing(SIZE, crop=crop),
            crop_area=(1.0, 1.0),
            balance=0.0,
            seed=SEED,
            threads=1,
            workers=0,
        )

    return make


def test_both_inputs_yield_the_same_images_in_the_same_order(datasets: Any) -> None:
    loaders = [datasets(kind) for kind in ("resident", "streamed")]

    assert [loader.kind for loader in loaders] == ["resident", "streamed"]
    for split in ("validation", "test"):
        images = [list(loader.evaluation(split, 4)) for loader in loaders]
        for first, second in zip(*images, strict=True):
            np.testing.assert_array_equal(first.label, second.label)
            np.testing.assert_array_equal(first.mask, second.mask)
            views = [
                np.asarray(loader.evaluation_transform(jax.random.key(0), b.image))
                for loader, b in zip(loaders, (first, second), strict=True)
            ]
            # Resident images were resized twice.
            assert np.abs(views[0] - views[1]).mean() < 0.03
    trained = [_batches(loader, count=5) for loader in loaders]
    for first, second in zip(*trained, strict=True):
        np.testing.assert_array_equal(first.label, second.label)


def test_both_inputs_crop_the_centres_of_the_files(datasets: Any, subset: sources.Subset) -> None:
    loaders = [datasets(kind, 0.875) for kind in ("resident", "streamed")]

    assert [loader.kind for loader in loaders] == ["resident", "streamed"]
    for split in ("train", "validation", "test"):
        first, second = (list(loader.evaluation(split, 4)) for loader in loaders)
        _assert_equal(first, second)
    (batch, *_) = first
    inputs = loaders[0].evaluation_transform(jax.random.key(0), batch.image)
    np.testing.assert_array_equal(inputs, augment.to_model_range(jnp.asarray(batch.image)))


def test_a_centre_crop_changes_evaluation_and_no_training_image(subset: sources.Subset) -> None:
    plain, cropped = (_loader(subset, area=(1.0, 1.0), crop=crop) for crop in (0.0, 0.875))

    _assert_equal(_batches(plain, count=3), _batches(cropped, count=3))
    images = np.concatenate(
        [np.asarray(b.image)[b.mask] for b in cropped.evaluation("test", 4)]
    ).astype(np.int32)
    for row, actual in enumerate(images):
        expected = Preprocessing(SIZE, crop=0.875)(_pixels(subset, row)).astype(np.int32)
        assert np.abs(actual - expected).max() <= 1
