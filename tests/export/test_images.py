"""Image files are preprocessed as in a run."""

import pathlib

import jax
import numpy as np
from PIL import Image

from configs import remem
from remem_jax import data
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import images as image_files
from remem_jax.settings import plain
from remem_jax.storage import results
from remem_jax.workflow import context
from tests.data.inspection import photographs


def test_images_are_resized_twice_like_in_a_run_that_caches_squares(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    for split in ("train", "test"):
        for name, side in (("a/1", 80), ("b/1", 70), ("a/2", 60), ("b/2", 50)):
            path = tmp_path / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:side]).save(path)
    source = data.open_source("folder", path=str(tmp_path), data_dir="")
    storage = data.Storage("resident", 40, 1.0, str(tmp_path / ".cache"), 1)
    dataset = data.load(
        source, storage, data.Rules(validation=0.5, seed=0, near_duplicates=False), corrupt_limit=0
    )
    loader = data.make_loader(
        dataset, Preprocessing(32), crop_area=(1.0, 1.0), balance=0.0, seed=0, threads=1, workers=0
    )
    (batch,) = loader.evaluation("test", 4)
    expected = (np.asarray(loader.evaluation_transform(jax.random.key(0), batch.image)) + 1) * 127.5

    actual = [
        image_files.read_image(path, Preprocessing(32, 40))
        for path in image_files.image_paths(tmp_path / "test")
    ]

    assert dataset.source_size == (40, 40)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1)  # Within one grey level.
    once = image_files.read_image(tmp_path / "test" / "a" / "1.png", Preprocessing(32))
    assert np.abs(once - expected[0]).max() > 5


def test_the_images_of_an_earlier_run_are_divided_as_they_were(tmp_path: pathlib.Path) -> None:
    tiles = photographs.clear_tiles(64)[:40]
    for i, tile in enumerate(tiles):
        for copy in range(2):  # Which earlier versions divided.
            path = tmp_path / "images" / f"class {i % 2}" / f"{i:02}_{copy}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs.jpeg(tile, 95 - 10 * copy))
    config = remem.get_config("folder")
    config.data.path, config.data.cache = str(tmp_path / "images"), str(tmp_path / "cache")
    config.teacher.batch_size = config.student.batch_size = 8
    now = context.load_dataset(config, config.data)
    config.data.group_duplicates = False
    before = context.load_dataset(config, config.data)
    assert now.fingerprint != before.fingerprint
    settings = plain(config)
    for name in ("refit", "group_duplicates", "group_pattern", "group_feature"):
        del settings["data"][name]
    del settings["data"]["official_validation"]
    run = tmp_path / "run"
    record = {"fingerprint": before.fingerprint, "class_names": list(before.classes)}
    results.write(run / "config.json", settings)
    results.write(run / "results.json", {"data": record, "methods": []})

    dataset, _ = image_files.load(run)

    assert dataset.fingerprint == before.fingerprint


def test_images_of_a_folder_are_resized_like_pillow(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    (tmp_path / "below").mkdir()
    Image.fromarray(pixels).save(tmp_path / "below" / "one.png")
    (tmp_path / "notes.txt").write_text("no image")

    actual = image_files.read_folder(tmp_path, Preprocessing(32), 0)

    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert actual.labels is None
    np.testing.assert_allclose(actual.pixels[0], np.asarray(expected), atol=1)
