"""Images without labels: which of them students with a teacher get, and in which batches."""

import itertools
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.custom import folders, unlabelled
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.loaders import order
from remem_jax.records import Batch, DataLoader

LABELLED, OTHERS = 10, 7
BILINEAR = Image.Resampling.BILINEAR


def _save(path: pathlib.Path, rng: np.random.Generator, shape: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Two classes in train and test, and nine images without labels in two folders."""
    for split, number in (("train", 8), ("test", 3)):
        for i in range(number):
            _save(tmp_path / "mine" / split / f"class {i % 2}" / f"{i}.png", rng)
    for i in range(9):
        _save(tmp_path / "more" / ("deep/er" if i % 2 else ".") / f"{i}.png", rng)
    return tmp_path


def _load(folder: pathlib.Path, share: float = 0.75, **options: Any) -> data.Dataset:
    source = data.open_source("folder", path=str(folder / "mine"), data_dir="")
    source = data.with_unlabelled(source, str(folder / "more"), largest_share=share)
    storage = data.Storage("auto", 16, 1.0, cache=str(folder / "cache"), threads=1)
    storage = storage._replace(**options)
    return data.load(
        source, storage, data.Rules(validation=0.25, seed=0, near_duplicates=False), corrupt_limit=2
    )


def _loader(dataset: data.Dataset, *, seed: int = 0, workers: int = 0) -> DataLoader:
    return data.make_loader(
        dataset,
        Preprocessing(8),
        crop_area=(1.0, 1.0),
        balance=0.0,
        seed=seed,
        threads=2,
        workers=workers,
    )


def _batches(batches: Any, count: int) -> list[Batch]:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def _images(dataset: data.Dataset) -> data.Unlabelled:
    assert dataset.unlabelled
    return dataset.unlabelled


# The order.


def _mixed(share: float, batch_size: int) -> order.PartlyLabelledOrder:
    labelled = order.TrainOrder(np.zeros(LABELLED, np.int32), 0.0, seed=0)
    return order.partly_labelled(labelled, OTHERS, share, batch_size)


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 7 / 17, 0.9, 1.0])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batches_have_the_share_of_unlabelled_images(share: float, batch_size: int) -> None:
    rows = _mixed(share, batch_size).rows(np.arange(50 * batch_size), stage="student")

    without = (rows >= LABELLED).reshape(50, batch_size).sum(axis=1)
    expected = share * batch_size
    assert (np.abs(without - expected) < 1).all()  # Rounded up or down.
    assert abs(without.sum() - 50 * expected) < 1


def test_labelled_images_come_first_in_each_batch() -> None:
    rows = _mixed(0.6, 8).rows(np.arange(80), stage="student").reshape(10, 8)

    assert (np.diff((rows >= LABELLED).astype(int), axis=1) >= 0).all()


def test_both_kinds_of_images_occur_once_per_epoch_of_their_own() -> None:
    mixed = _mixed(0.6, 8)
    rows = mixed.rows(np.arange(8 * 70), stage="student")

    labelled, others = rows[rows < LABELLED], rows[rows >= LABELLED] - LABELLED
    # The labelled ones have the order that they have alone.
    alone = mixed.labelled.rows(np.arange(len(labelled)), stage="student")
    np.testing.assert_array_equal(labelled, alone)
    epochs = others[: len(others) // OTHERS * OTHERS].reshape(-1, OTHERS)
    np.testing.assert_array_equal(np.sort(epochs), [range(OTHERS)] * len(epochs))
    assert not np.array_equal(epochs[0], epochs[1])


def test_positions_may_be_requested_in_any_order(rng: np.random.Generator) -> None:
    positions = rng.permutation(200)

    actual = _mixed(0.6, 8).rows(positions, stage="student")

    np.testing.assert_array_equal(
        actual, _mixed(0.6, 8).rows(np.arange(200), stage="student")[positions]
    )


def test_stages_have_different_orders() -> None:
    first, second = (
        _mixed(1.0, 7).rows(np.arange(70), stage=stage) for stage in ("student", "teacher")
    )

    assert not np.array_equal(first, second)


# The folder.


def test_a_folder_of_any_layout_is_read(folder: pathlib.Path) -> None:
    (folder / "more" / "notes.txt").touch()
    (folder / "more" / ".hidden.png").touch()

    opened = unlabelled.folder(str(folder / "more"), largest_share=0.5)

    assert opened.split.examples == 9
    assert opened.split.labels is not None
    assert set(opened.split.labels) == {sources.NO_LABEL}
    names = {pathlib.Path(opened.split.name(i)).name for i in range(9)}
    assert names == {f"{i}.png" for i in range(9)}
    assert opened.skipped_files == {".txt": 1, "hidden": 1}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "there is no folder"),
        ("empty", "holds none"),
        ("mine/train/class 0/0.png", "no fo"),
    ],
)
def test_a_folder_without_images_is_refused(folder: pathlib.Path, path: str, message: str) -> None:
    (folder / "empty").mkdir()

    with pytest.raises(SettingError, match=rf"config\.data\.unlabelled must .*{message}"):
        unlabelled.folder(str(folder / path), largest_share=0.5)


def test_the_share_is_that_of_all_images_up_to_the_limit(folder: pathlib.Path) -> None:
    few, limited = _images(_load(folder)), _images(_load(folder, share=0.4))

    assert few.share == pytest.approx(9 / (9 + 6))  # Two of eight are held out for validation.
    assert limited.share == 0.4


def test_images_of_the_data_set_and_repeated_ones_are_left_out(folder: pathlib.Path) -> None:
    mine, more = folder / "mine", folder / "more"
    shutil.copy(mine / "test" / "class 0" / "0.png", more / "copied.png")
    (more / "linked.png").symlink_to(mine / "train" / "class 1" / "1.png")
    shutil.copy(more / "0.png", more / "again.png")

    images = _images(_load(folder))

    assert (images.images, images.known, images.repeated) == (9, 2, 1)
    names = [images.subset.split.name(int(row)) for row in images.subset.rows]
    kept = {pathlib.Path(name).name for name in names}
    assert not kept & {"copied.png", "linked.png"}
    assert len(kept & {"0.png", "again.png"}) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_that_has_only_images_of_the_data_set_is_refused(
    folder: pathlib.Path, cached: bool
) -> None:
    shutil.rmtree(folder / "more")
    shutil.copytree(folder / "mine", folder / "more")

    for _ in range(1 + cached):
        with pytest.raises(SettingError, match="no image to learn from: of its 11, 0 cannot"):
            _load(folder)


def test_unreadable_images_are_listed(folder: pathlib.Path) -> None:
    (folder / "more" / "0.png").write_bytes(b"no image")

    dataset = _load(folder)

    assert _images(dataset).images == 8
    assert [line.partition(": ")[0] for line in dataset.corrupt_images] == [
        str(folder / "more" / "0.png")
    ]


def test_unlabelled_images_do_not_change_what_identifies_the_others(folder: pathlib.Path) -> None:
    source = data.open_source("folder", path=str(folder / "mine"), data_dir="")
    storage = data.Storage("auto", 16, 1.0, cache="", threads=1)
    plain = data.load(
        source, storage, data.Rules(validation=0.25, seed=0, near_duplicates=False), corrupt_limit=2
    )
    dataset = _load(folder)
    first = _images(dataset).fingerprint

    assert dataset.fingerprint == plain.fingerprint
    assert plain.unlabelled is None
    _save(folder / "more" / "another.png", np.random.default_rng(5))
    assert _images(_load(folder)).fingerprint != first


@pytest.mark.parametrize("shape", [(8, 12), (20, 30)])
def test_resident_images_get_the_shape_of_the_training_images(
    folder: pathlib.Path, shape: tuple[int, int]
) -> None:
    for i, path in enumerate(sorted((folder / "more").rglob("*.png"))):
        _save(path, np.random.default_rng(i), shape)

    dataset = _load(folder)

    pixels = _images(dataset).pixels
    assert pixels is not None
    assert dataset.source_size == pixels.shape[1:3] == (8, 8)
    for row, image in zip(_images(dataset).subset.rows, pixels, strict=True):
        name = _images(dataset).subset.split.name(int(row))
        with Image.open(name) as original:
            # Larger images than `stored_size` are resized twice.
            small = original if max(shape) <= 16 else original.resize((16, 16), BILINEAR)
            expected = np.asarray(small.resize((8, 8), BILINEAR), int)
        assert np.abs(image - expected).max() <= 2


def test_images_that_do_not_fit_on_the_device_are_streamed(folder: pathlib.Path) -> None:
    gib = 12 * 8 * 8 * 3 / 2**30  # The labelled images fit, all do not.

    dataset = _load(folder, resident_gib=gib)

    assert dataset.pixels is None
    assert _images(dataset).pixels is None
    assert _loader(dataset).kind == "streamed"


# The loaders.


@pytest.mark.parametrize("kind", data.INPUTS[1:])
def test_only_students_with_a_teacher_get_unlabelled_images(
    folder: pathlib.Path, kind: str
) -> None:
    dataset = _load(folder, input=kind)
    loader = _loader(dataset)

    teacher = _batches(loader.train(5, 0, stage="teacher"), 12)
    student = _batches(loader.distillation(5, 0, stage="student"), 12)

    assert min(int(np.min(batch.label)) for batch in teacher) == 0
    without = np.stack([np.asarray(batch.label) == sources.NO_LABEL for batch in student])
    np.testing.assert_array_equal(without, [[False] * 2 + [True] * 3] * 12)
    assert all(np.all(batch.mask) for batch in student)


@pytest.mark.parametrize("kind", data.INPUTS[1:])
def test_batches_have_the_pixels_and_labels_of_the_files(folder: pathlib.Path, kind: str) -> None:
    dataset = _load(folder, input=kind)
    train, others = dataset.splits["train"], _images(dataset).subset
    source = data.open_source("folder", path=str(folder / "mine"), data_dir="")
    dataset = dataset._replace(flip=False)
    expected = {}
    for subset in (train, others):
        for row, label in zip(subset.rows, subset.labels, strict=True):
            with Image.open(subset.split.name(int(row))) as image:
                expected[np.asarray(image).tobytes()] = int(label)
    assert len(source.classes) == 2

    batches = _batches(_loader(dataset).distillation(5, 0, stage="student"), 9)

    seen = set()
    for batch in batches:
        for image, label in zip(np.asarray(batch.image), np.asarray(batch.label), strict=True):
            assert expected[image.tobytes()] == label
            seen.add(image.tobytes())
    assert seen == expected.keys()


@pytest.mark.parametrize("kind", data.INPUTS[1:])
@pytest.mark.parametrize("first_step", [1, 4])
def test_resuming_at_a_step_gives_the_batches_of_an_uninterrupted_run(
    folder: pathlib.Path, kind: str, first_step: int
) -> None:
    loader = _loader(_load(folder, share=0.45, input=kind))
    whole = _batches(loader.distillation(7, 0, stage="student"), first_step + 3)

    resumed = _batches(loader.distillation(7, first_step, stage="student"), 3)

    for expected, actual in zip(whole[first_step:], resumed, strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_both_inputs_have_the_same_order(folder: pathlib.Path) -> None:
    first, second = (
        _batches(
            _loader(_load(folder, input=kind)._replace(flip=False)).distillation(
                5, 2, stage="student"
            ),
            4,
        )
        for kind in data.INPUTS[1:]
    )

    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_without_unlabelled_images_students_get_the_batches_of_train(
    folder: pathlib.Path,
) -> None:
    source = data.open_source("folder", path=str(folder / "mine"), data_dir="")
    storage = data.Storage("auto", 16, 1.0, cache="", threads=1)
    loader = _loader(
        data.load(
            source,
            storage,
            data.Rules(validation=0.25, seed=0, near_duplicates=False),
            corrupt_limit=0,
        )
    )

    assert loader.distillation is loader.train


def test_worker_processes_read_unlabelled_images(folder: pathlib.Path) -> None:
    dataset = _load(folder, input="streamed")
    expected = _batches(_loader(dataset).distillation(4, 0, stage="student"), 3)

    actual = _batches(_loader(dataset, workers=1).distillation(4, 0, stage="student"), 3)

    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("place", ["more", "more/deep/run", "more/run"])
def test_a_run_folder_among_unlabelled_images_is_refused(folder: pathlib.Path, place: str) -> None:
    with pytest.raises(SettingError, match=r"--workdir .* lies in config\.data\.unlabelled"):
        folders.require_outside("digits", "", folder / place, unlabelled=str(folder / "more"))
